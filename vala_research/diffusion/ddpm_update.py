"""GE-Adapter's update: the mean of DDPM plus noise; and how far a step carries an error.

GE-Adapter (arXiv 2501.04606), Eqs. (8) and (12); its stability: Lemmas C.8 and C.9 there. The
update denoises, t -> t-1. It is not DDIM: with noise in every step nothing inverts it.
"""

from collections.abc import Iterator
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.schedule import Schedule


def ddpm_update(
    z: Float[Tensor, "*shape"],
    eps: Float[Tensor, "*shape"],
    alpha: float,
    alpha_bar: float,
    noise_level: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    """Take one step of the update; Eq. (12), GE-Adapter:

    (z - (1 - alpha) / sqrt(1 - alpha_bar) eps) / sqrt(alpha) + noise_level N(0, 1).

    z: the filtered latent, at level alpha_bar.
    eps: the prediction there.
    alpha: alpha_bar divided by the alpha_bar of the level at which the step ends.
    noise_level: sqrt(1 - alpha) of the next step; 0 draws nothing.
    generator: on the CPU, or on the device of z.
    """
    mean = (z - (1 - alpha) / sqrt(1 - alpha_bar) * eps) / sqrt(alpha)
    if noise_level == 0:
        return mean
    device = z.device if generator is None else generator.device
    noise = torch.randn(z.shape, generator=generator, device=device, dtype=z.dtype)
    return mean + noise_level * noise.to(z.device)


def update_levels(schedule: Schedule) -> Iterator[tuple[float, float, float]]:
    """Yield alpha, alpha_bar and noise level per step, in sampling order. The last has no noise.

    alpha_t = alpha_bar_t / alpha_bar_s for the step t -> s, however many levels it skips.
    Raises InputError where the first step has no signal at all, since Eq. (12) divides by it.
    """
    steps = list(schedule)
    if schedule.flow:
        raise InputError(
            "The step rule 'paper_eq12' is that of a diffusion model, and this one is a rectified "
            "flow: use 'ddim'."
        )
    if steps[0].alpha_bar_t == 0:
        raise InputError(
            "The step rule 'paper_eq12' divides by the signal, but this schedule's noisiest level "
            "has none: use 'ddim', or a scheduler without rescaled betas."
        )
    alphas = [step.alpha_bar_t / step.alpha_bar_s for step in steps]
    for step, alpha, following in zip(steps, alphas, [*alphas[1:], 1.0], strict=True):
        yield alpha, step.alpha_bar_t, sqrt(1 - following)


def error_factor(alpha: float, alpha_bar: float, lipschitz: float) -> float:
    """Largest growth of an error in one step.

    C_t = (1 + (1 - alpha) L / sqrt(1 - alpha_bar)) / sqrt(alpha).

    C_t is the Lipschitz constant of the update's mean, for a network with Lipschitz constant L.
    It is attained by eps = -L z, and above 1 wherever alpha is below 1.
    """
    if alpha == 1:  # both levels are one, also where neither has noise
        return 1.0
    return (1 + (1 - alpha) / sqrt(1 - alpha_bar) * lipschitz) / sqrt(alpha)
