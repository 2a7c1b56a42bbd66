"""Mix the latents of several diffusion models while they denoise, by weights that change.

FLDM (arXiv 2310.16400) 3.2, Eq. (4): each model takes its own step; from step tau on,
`z = sum_m a_m z_m` then replaces the latent of every model. Source 0 is the video model.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError

KINDS = ("constant", "decay_image", "decay_video", "cosine")
Weights = Callable[[float], Sequence[float]]  # progress in [0, 1) -> a point of the simplex


@dataclass(frozen=True)
class FusionSchedule:
    """Weights of the sources at every step.

    kind: change of the weight of source 0 from its initial value a_0, at progress
        p = (step - tau) / (N - tau):
        "constant": none;
        "decay_image" (the released code): rises by (1 - a_0) p;
        "decay_video": falls by a_0 p;
        "cosine": rises by (1 - a_0)(1 - cos(pi p)) / 2, slowly at both ends;
        a callable `p -> weights`: sets all weights; `initial` gives only their number.
        The other sources keep their proportions, or share equally where all are zero.
    initial: weights at step tau: at least two, none negative, with sum 1.
    tau: first step that fuses: an int is a step, a float is a fraction of the steps. At tau = N
        nothing is fused and source 0 is the result.

    Differs from paper: the paper has one weight, of the video model. Two sources are that case.
    """

    kind: str | Weights = "decay_image"
    initial: Sequence[float] = (0.7, 0.3)
    tau: int | float = 0.5

    def __post_init__(self):
        if not callable(self.kind) and self.kind not in KINDS:
            raise InputError(
                f"Unknown fusion schedule {self.kind!r}: choose one of {', '.join(KINDS)}, or give "
                "a function of the progress."
            )
        check_weights(self.initial, "The initial fusion weights")
        object.__setattr__(self, "initial", tuple(float(a) for a in self.initial))
        top = math.inf if isinstance(self.tau, int) else 1
        is_number = isinstance(self.tau, int | float) and not isinstance(self.tau, bool)
        if not is_number or not 0 <= self.tau <= top:
            raise InputError(
                f"tau is {self.tau!r}: give a step (an int, 0 or more) or a fraction of the steps "
                "(a float from 0 to 1)."
            )

    def first_step(self, n_steps: int) -> int:
        """tau in steps. Raises InputError when it lies beyond the last step."""
        tau = self.tau if isinstance(self.tau, int) else round(self.tau * n_steps)
        if tau > n_steps:
            raise InputError(f"tau is {tau} and the edit has {n_steps} steps: give 0 to {n_steps}.")
        return tau

    def weights(self, step: int, n_steps: int) -> list[float] | None:
        """The weights after a step, 0 to n_steps - 1; None before tau."""
        tau = self.first_step(n_steps)
        if not 0 <= step < n_steps:
            raise InputError(f"step is {step} of {n_steps}: give 0 to {n_steps - 1}.")
        if step < tau:
            return None
        p = (step - tau) / (n_steps - tau)
        if callable(self.kind):
            weights = [float(a) for a in self.kind(p)]
            check_weights(weights, f"The fusion weights at progress {p:g}", len(self.initial))
            return weights

        # The weight of source 0 by its formula; unchanged weights stay as given, to the last bit.
        a, rest = self.initial[0], self.initial[1:]
        rise = {"constant": 0.0, "decay_image": p, "cosine": (1 - math.cos(math.pi * p)) / 2}
        video = a * (1 - p) if self.kind == "decay_video" else a + (1 - a) * rise[self.kind]
        if video == a:
            return list(self.initial)

        # The other sources share what is left, in their initial proportions.
        whole = sum(rest)
        shares = [x / whole for x in rest] if whole else [1 / len(rest)] * len(rest)
        return [video, *((1 - video) * share for share in shares)]


def fuse(
    latents: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float], normalise: bool = False
) -> Float[Tensor, "*shape"]:
    """Mix latents: sum_m a_m z_m; Eq. (4), FLDM 3.2.

    latents: one per source, f c h w, all of one shape.
    weights: one per source.
    normalise: first give every source the mean and standard deviation of source 0, per channel
        over the clip.
    A mean of latents that disagree has less variance than each of them. This is not corrected.
    Raises InputError for other shapes or numbers of weights.
    """
    check_weights(weights, "The fusion weights", len(latents))
    shapes = {tuple(z.shape) for z in latents}
    if len(shapes) > 1:
        raise InputError(
            f"The sources' latents have shapes {', '.join(map(str, sorted(shapes)))}: they must "
            "share one."
        )

    # Every source counts, whatever its weight: 1 z + 0 z' is z to the last bit.
    if normalise:
        latents = [latents[0], *(match_moments(z, latents[0]) for z in latents[1:])]
    mixed = torch.zeros_like(latents[0])
    for a, z in zip(weights, latents, strict=True):
        mixed = mixed + a * z.to(mixed)
    return mixed


def match_moments(
    z: Float[Tensor, "f c h w"], reference: Float[Tensor, "f c h w"]
) -> Float[Tensor, "f c h w"]:
    """Give z the reference's mean and standard deviation per channel, over f, h and w."""
    reference = reference.to(z)
    axes = dict(dim=(0, 2, 3), keepdim=True)
    scale = reference.std(**axes) / z.std(**axes).clamp_min(torch.finfo(z.dtype).tiny)
    return (z - z.mean(**axes)) * scale + reference.mean(**axes)


def check_weights(weights: Sequence[float], name: str, n: int | None = None) -> None:
    """Refuse weights off the simplex, or for fewer than two sources (other than n, if given)."""
    weights = list(weights)
    text = f"{name} are {[round(float(a), 4) for a in weights]}"
    if len(weights) < 2 or (n is not None and len(weights) != n):
        raise InputError(f"{text}: give one per source, {n or 'two or more'}.")
    if not all(math.isfinite(a) and a >= 0 for a in weights) or abs(sum(weights) - 1) > 1e-6:
        raise InputError(f"{text}: give weights that are not negative and sum to 1.")
