"""GE-Adapter's update: the mean of DDPM and noise on top; how far its path may err.

GE-Adapter (arXiv 2501.04606) eqs 8 and 12; stability of it: arXiv 2504.16016, Lemmas C.8 and C.9.
It denoises, t -> t-1, and is not DDIM: with noise in every step nothing inverts it.
"""

from collections.abc import Iterator, Sequence
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
    """(z - (1 - alpha) / sqrt(1 - alpha_bar) eps) / sqrt(alpha) + noise_level N(0, 1), Eq. (12).

    z: the filtered latent, at level alpha_bar; eps: predicted there. alpha: alpha_bar by that of
    the level which the step ends at. noise_level: sqrt(1 - alpha) of the next step; 0 draws
    nothing. generator: on the CPU, or on the device of z.
    """
    mean = (z - (1 - alpha) / sqrt(1 - alpha_bar) * eps) / sqrt(alpha)
    if noise_level == 0:
        return mean
    device = z.device if generator is None else generator.device
    noise = torch.randn(z.shape, generator=generator, device=device, dtype=z.dtype)
    return mean + noise_level * noise.to(z.device)


def update_levels(schedule: Schedule) -> Iterator[tuple[float, float, float]]:
    """alpha, alpha_bar and noise level of each step, in sampling order; the last one is noiseless.

    alpha_t = alpha_bar_t / alpha_bar_s of the step t -> s, however many levels it skips.
    Raises InputError where a step starts from no signal at all, which eq 12 divides by.
    """
    steps = list(schedule)
    if steps[0].alpha_bar_t == 0:
        raise InputError(
            "The step rule 'paper_eq12' divides by the signal, of which this schedule's noisiest "
            "level has none: use 'ddim', or a scheduler without rescaled betas."
        )
    alphas = [step.alpha_bar_t / step.alpha_bar_s for step in steps]
    for step, alpha, following in zip(steps, alphas, [*alphas[1:], 1.0], strict=True):
        yield alpha, step.alpha_bar_t, sqrt(1 - following)


def error_factor(alpha: float, alpha_bar: float, lipschitz: float) -> float:
    """C_t = (1 + (1 - alpha) L / sqrt(1 - alpha_bar)) / sqrt(alpha): what a step makes of an error.

    The Lipschitz constant of the update's mean for a network of constant L, attained by
    eps = -L z; always above 1.
    """
    return (1 + (1 - alpha) / sqrt(1 - alpha_bar) * lipschitz) / sqrt(alpha)


def rms_error_bound(
    schedule: Schedule,
    lipschitz: float,
    n_values: int,
    start: float = 0.0,
    bias: float | Sequence[float] = 0.0,
) -> list[float]:
    """R after each step: sqrt(E |z - zbar|^2) to the path zbar that is neither noised nor filtered.

    R_s^2 <= C_t^2 (R_t + bias sqrt(n_values))^2 + noise_level^2 n_values: the noise is independent
    of the past and of mean 0, so that squares add up, not norms. n_values: numbers in a latent.
    start: R at the noisiest level. bias: `bias_bound` of the filter, of all steps or of each.
    Differs from paper: its Lemma C.9 adds norms, and grows without bound with the steps.
    """
    levels = list(update_levels(schedule))
    biases = [bias] * len(levels) if isinstance(bias, int | float) else list(bias)
    r, found = start, []
    for (alpha, alpha_bar, noise_level), b in zip(levels, biases, strict=True):
        carried = error_factor(alpha, alpha_bar, lipschitz) * (r + b * sqrt(n_values))
        r = sqrt(carried**2 + noise_level**2 * n_values)
        found.append(r)
    return found
