"""Latents of several diffusion models are mixed while they denoise, by weights that change.

FLDM (arXiv 2310.16400) 3.2, Eq. (4): each model takes its own step, then
`z = sum_m a_m z_m` replaces the latent of every one, from step tau on. Source 0 is the video model.
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

    kind: how the weight of source 0 goes on from `initial`, progress p = (step - tau) / (N - tau):
        "constant"; "decay_image" (the released code: rises by (1 - a_0) p); "decay_video" (falls by
        a_0 p); "cosine" (rises by (1 - a_0)(1 - cos(pi p)) / 2: slowly at both ends); or a callable
        `p -> weights`, which then says everything (`initial` gives their number). The other sources
        keep their proportions (equal ones, where all are zero).
    initial: the weights at step tau, at least two, none negative, their sum 1.
    tau: the first step that fuses: a step if it is an int, a fraction of the steps if a float. At
        tau = N nothing is fused and source 0 is the result.

    Differs from paper: it speaks of one weight of the video model; with two sources this is it.
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
        """tau in steps. Raises InputError when it lies beyond the last one."""
        tau = self.tau if isinstance(self.tau, int) else round(self.tau * n_steps)
        if tau > n_steps:
            raise InputError(f"tau is {tau} and the edit has {n_steps} steps: give 0 to {n_steps}.")
        return tau

    def weights(self, step: int, n_steps: int) -> list[float] | None:
        """The weights after step 0..n_steps-1, None before tau."""
        tau = self.first_step(n_steps)
        if not 0 <= step < n_steps:
            raise InputError(f"step is {step} of {n_steps}: give 0 to {n_steps - 1}.")
        if step < tau:
            return None
        p = (step - tau) / (n_steps - tau)
        if callable(self.kind):
            found = [float(a) for a in self.kind(p)]
            check_weights(found, f"The fusion weights at progress {p:g}", len(self.initial))
            return found
        a, rest = self.initial[0], self.initial[1:]
        rise = {"constant": 0.0, "decay_image": p, "cosine": (1 - math.cos(math.pi * p)) / 2}
        video = a * (1 - p) if self.kind == "decay_video" else a + (1 - a) * rise[self.kind]
        if video == a:  # nothing to scale: the weights stay what was given, to the last bit
            return list(self.initial)
        whole = sum(rest)
        shares = [x / whole for x in rest] if whole else [1 / len(rest)] * len(rest)
        return [video, *((1 - video) * share for share in shares)]


def fuse(
    latents: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float], normalise: bool = False
) -> Float[Tensor, "*shape"]:
    """sum_m a_m z_m; Eq. (4), FLDM 3.2.

    latents: one a source, f c h w, of one shape. normalise: first give every source the mean and
    standard deviation of source 0, channel by channel over the clip (the seed's second check).
    A mean of latents that disagree has less variance than each: that is not mended here.
    Raises InputError for other shapes or numbers of weights.
    """
    check_weights(weights, "The fusion weights", len(latents))
    shapes = {tuple(z.shape) for z in latents}
    if len(shapes) > 1:
        raise InputError(
            f"The sources' latents have shapes {', '.join(map(str, sorted(shapes)))}: they must "
            "share one."
        )
    if normalise:
        latents = [latents[0], *(match_moments(z, latents[0]) for z in latents[1:])]
    mixed = torch.zeros_like(latents[0])
    for a, z in zip(weights, latents, strict=True):
        # Every source, whatever its weight: 1 z + 0 z' is z to the last bit.
        mixed = mixed + a * z.to(mixed)
    return mixed


def match_moments(
    z: Float[Tensor, "f c h w"], reference: Float[Tensor, "f c h w"]
) -> Float[Tensor, "f c h w"]:
    """z with the reference's mean and standard deviation of each channel, over f, h and w."""
    reference = reference.to(z)
    axes = dict(dim=(0, 2, 3), keepdim=True)
    scale = reference.std(**axes) / z.std(**axes).clamp_min(torch.finfo(z.dtype).tiny)
    return (z - z.mean(**axes)) * scale + reference.mean(**axes)


def check_weights(weights: Sequence[float], name: str, n: int | None = None) -> None:
    """Refuse what is not a point of the simplex of two or more sources (of n, if given)."""
    weights = list(weights)
    text = f"{name} are {[round(float(a), 4) for a in weights]}"
    if len(weights) < 2 or (n is not None and len(weights) != n):
        raise InputError(f"{text}: give one a source, {n or 'two or more'}.")
    if not all(math.isfinite(a) and a >= 0 for a in weights) or abs(sum(weights) - 1) > 1e-6:
        raise InputError(f"{text}: give weights that are not negative and sum to 1.")
