"""Penalise features that change unevenly from frame to frame. Even change is not yet alignment.

FTC blocks of GE-Adapter (arXiv 2501.04606) 3.2, Eqs. (3) and (4); theory in its appendix C.1.

    s_t = <F_t, F_{t+1}> / (|F_t| |F_{t+1}|),   L = 1/(T-1) sum_{t=2}^{T-1} (s_t - s_{t-1})^2

L vanishes whenever all s_t are equal. Frames e, -e, e, -e have similarity -1 throughout and L = 0:
the strongest flicker is a global minimum, and so is a clip that turns evenly. Always report the
mean similarity beside the loss; or use L + w mean(1 - s_t), which vanishes only where all frames
share a direction.

The similarity is undefined at a zero feature. Its gradient has norm sqrt(1 - s^2) / |F|, which is
unbounded near zero. A zero is therefore refused. An epsilon would hide it and break this identity.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, chosen_from

VARIANTS = ("triples", "released")


@dataclass(frozen=True)
class TemporalSettings:
    """Which temporal loss, and which similarity of two frames.

    variant: "triples" of consecutive frames (the paper) or "released" (the published code).
    per_token: the similarity is the mean of the tokens' cosines, not one cosine of the flattened
        features.
    flicker_weight: w of w mean(1 - s_t), added to L; 0 is the paper.
    """

    variant: str = "triples"
    per_token: bool = False
    flicker_weight: float = 0.0

    def __post_init__(self):
        chosen_from("variant", self.variant, VARIANTS)
        if self.per_token and self.variant == "released":
            raise InputError(
                "The released variant takes its cosine over the batch, not over tokens: leave "
                "per_token out."
            )
        if not 0 <= self.flicker_weight < float("inf"):
            raise InputError(f"flicker_weight is {self.flicker_weight}: give a number from 0 on.")
        if self.flicker_weight and self.variant == "released":
            raise InputError(
                "The released variant compares two steps and has no similarity of frames: leave "
                "flicker_weight at 0."
            )


def frame_similarity(
    features: Float[Tensor, " f *rest"], per_token: bool = False
) -> Float[Tensor, " f-1"]:
    """Compute s_t of consecutive frames, in [-1, 1] up to rounding; Eq. (3), GE-Adapter 3.2.

    features: one feature per frame, of any shape; f n d with `per_token`. Half precision is raised
        to float32: sums of many squares then neither overflow nor hide a change of a thousandth.
    per_token: average the cosines of tokens.
    Raises InputError for one frame, NaN, infinity, or a frame (token, with `per_token`) of zeros.
    """
    _check(features, 2, "A similarity")
    if per_token and features.ndim != 3:
        raise InputError(
            f"Features of shape {tuple(features.shape)} have no token axis: give f n d, or leave "
            "per_token out."
        )

    # A frame is one token, unless tokens are compared one by one.
    x = features if per_token else features.reshape(len(features), 1, -1)
    is_zero = (x == 0).all(-1)  # f n
    if is_zero.any():
        frame, token = is_zero.nonzero()[0].tolist()
        where = f"Token {token} of frame {frame}" if per_token else f"Frame {frame}"
        raise InputError(
            f"{where} of the features is zero and has no direction to compare: take features "
            "from a layer where it is not."
        )
    u = _directions(x, -1)
    return (u[:-1] * u[1:]).sum(-1).mean(-1)


def temporal_consistency_loss(
    features: Float[Tensor, " f *rest"],
    variant: str = "triples",
    per_token: bool = False,
    flicker_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """Measure how unevenly features change; Eq. (4), GE-Adapter 3.2. Lower is better.

    "triples": L above, over f >= 3 consecutive frames: f - 2 terms, divisor f - 1. L is below 4.

    "released": f = 4 b rows, in blocks of b samples: [frame i at step t; frame j at t; i at t'; j
    at t']. Each block has its own noise. The loss is the mean over *rest of
    (cos(i, j at t) - cos(i, j at t'))^2, with cosines over the b samples; a zero gives 0. With one
    sample a cosine is a sign and the gradient is exactly zero: at the published batch size of 1
    this loss trains nothing.

    flicker_weight: w of L + w mean(1 - s_t). Steady flicker of similarity s has loss w (1 - s). The
        only minima are frames of one direction; every other critical point is a strict saddle.

    Differs from paper: Eq. (4) starts at a term that needs a frame before the first, and calls T
    timesteps. The sum here is Eq. (22) of the paper's appendix.
    Raises InputError as `frame_similarity`, and for fewer than 3 frames, or rows not by 4.
    """
    TemporalSettings(variant, per_token, flicker_weight)
    if variant == "released":
        return _released(features)
    _check(features, 3, "The temporal loss over triples")
    s = frame_similarity(features, per_token)
    loss = s.diff().square().sum() / (len(features) - 1)
    return loss + flicker_weight * (1 - s).mean() if flicker_weight else loss


def _released(features: Tensor) -> Tensor:
    _check(features, 4, "The released temporal loss")
    if len(features) % 4:
        raise InputError(
            f"{len(features)} rows of features are not four blocks: give the released loss [frame "
            "i; frame j] at one diffusion step, then both at another."
        )
    u = _directions(features.unflatten(0, (2, 2, -1)), 2)  # step frame b *rest
    cosines = (u[:, 0] * u[:, 1]).sum(1)
    return (cosines[0] - cosines[1]).square().mean()


def _directions(x: Tensor, dim: int) -> Tensor:
    """Divide x by its norm along `dim`, in at least float32. Zero stays zero.

    The largest number is divided out first, as a constant; a direction has no scale. So nothing
    overflows, the norm is at least 1, and the norm of a single number is exactly 1.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = x.detach().abs().amax(dim, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(1)


def _check(features: Tensor, least: int, purpose: str) -> None:
    n = len(features)
    if n < least:
        raise InputError(
            f"{purpose} needs features of at least {least} frames, not {n}: give more frames."
        )
    if not features.numel():
        raise InputError(f"Features of shape {tuple(features.shape)} are empty: give some numbers.")
    is_finite = features.isfinite().reshape(n, -1).all(-1)
    if not is_finite.all():
        raise InputError(
            f"Frame {int((~is_finite).nonzero()[0])} of the features holds NaN or infinity: look "
            "for an overflow upstream, often of float16; use bfloat16 or float32."
        )
