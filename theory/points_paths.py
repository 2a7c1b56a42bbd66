"""Schedules and errors at which the bounds of denoising paths are attained: C.6, C.8, C.9, DDIM.

No search, some milliseconds. Closed forms over all steps are approached as steps become fine.
"""

import math
from functools import cache

import torch
from torch import Tensor

from theory.ddim_inversion import contraction_rate, fixed_point_errors
from theory.error_factors import (
    ddim_coefficients,
    denoising_factors,
    inversion_factors,
    levels_of,
    log_denoising_bound,
    log_growth,
    log_inversion_bound,
    log_update_bound,
    mean_norm,
    noise_gain,
    noise_gain_bound,
    rms_closed_form,
    rms_step_bound,
    stable_diffusion,
    step_bound,
    update_factor,
    update_factors,
    update_mean,
)
from theory.verdict import attains, known_points
from vala_research.diffusion.schedule import ddim_step


@cache
def fine_path(n_steps: int = 8000, signal: float = 6.0) -> Tensor:
    """Levels from 1 to exp(-signal) in fine steps, finest near 1, where the factors vary most."""
    return torch.exp(-signal * torch.linspace(0, 1, n_steps + 1, dtype=torch.float64) ** 2)


@known_points("C.6", "C.8")
def step() -> dict[str, bool]:
    """One step of the update: eps = -L x, then the filter's shift and the noise along the error."""
    x, (alpha, alpha_bar) = torch.tensor([3.0, 4.0], dtype=torch.float64), (0.9, 0.5)
    c = update_factor(alpha, alpha_bar)
    levels = torch.tensor(
        [1.0, 1.0, 0.9, 0.9 * 0.7], dtype=torch.float64
    )  # two of them without noise
    factors = [update_mean(x, -2 * x, float(b / a), float(b)).norm() / 5
               for a, b in zip(levels[:-1], levels[1:], strict=True)]  # fmt: skip

    # Error 5, shift 2.5 and noise 1.5 in one direction, or noise across it.
    carried = update_mean(1.5 * x, -1.5 * x, alpha, alpha_bar).norm()
    return {
        "known points: C_t": attains(factors, update_factors(levels, 2.0).tolist(), 1 - 1e-9)
        and attains(update_mean(x, -x, alpha, alpha_bar).norm() / 5, c, 1 - 1e-9),
        "known points: one step": attains(carried + 1.5, step_bound(c, 5.0, 2.5, 1.5), 1 - 1e-9),
        "known points: one step in the mean": attains(
            (carried**2 + 1.5**2).sqrt(), rms_step_bound(c, 5.0, 2.5, 1.5), 1 - 1e-9
        ),
    }


@known_points("C.9")
def products() -> dict[str, bool]:
    """The closed form of fine paths, and a path with errors, noise and filter carried step by step.

    The path's three parts are attained one by one; the noise at L = 0.
    """
    levels, ratios, limits = fine_path(), [], []
    for lipschitz, path in ((0.0, levels[:9]), (1.0, levels), (2.0, levels[4000:])):
        ratios.append(update_factors(path, lipschitz).log().sum())
        limits.append(log_update_bound(path, lipschitz))

    # (L, R_T, b sigma): an error alone, noise alone, the filter's shift alone.
    short = fine_path(24, 0.005)
    ends = [_end_of_path(short, lipschitz, start, bias, level)
            for lipschitz, start, bias, level in
            ((1.0, 2.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.1, 0.0))]  # fmt: skip
    bound = [rms_closed_form(short, *which) for which in
             ((1.0, 9, 2e6, 0.0), (0.0, 9, 0.0, 0.0), (1.0, 9, 0.0, 1e6))]  # fmt: skip
    scaled = [ends[0] * 1e6, ends[1], ends[2] * 1e7]
    return {
        "known points: the closed form": attains(ratios, limits, 0.997),
        "known points: start, noise and filter": attains(scaled, bound, 0.985),
    }


def _end_of_path(
    levels: Tensor, lipschitz: float, start: float, bias: float, noise: float
) -> float:
    """R_0 by the recursion of B4, for N = 9 values. noise: factor of the noise of each step."""
    size, n = start, 9
    factors = update_factors(levels, lipschitz).tolist()
    before = [1.0, *(levels[1:-1] / levels[:-2]).tolist()]  # alpha_{t-1}
    for c, a in zip(reversed(factors), reversed(before), strict=True):
        size = rms_step_bound(c, size, bias * n**0.5, noise * ((1 - a) * n) ** 0.5)
    return size


@known_points("C.9-noise")
def noise() -> dict[str, bool]:
    """E||z|| of few dimensions, and H: at L = 0 its own, else the largest gain of B4 squared."""
    exact = [math.sqrt(2 / math.pi), math.sqrt(math.pi / 2), 2 * math.sqrt(2 / math.pi)]
    levels = fine_path(300)
    largest = (2 * log_update_bound(levels[:-1], 0.8)).exp() * (1 - levels[-2])

    # Two steps by hand: noise of variance 1 - alpha_1, stretched by the last step.
    two = torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
    by_hand = float(update_factors(two, 1.5)[0] ** 2 * 0.4)
    return {
        "known points: E||z||": attains([mean_norm(d) for d in (1, 2, 3)], exact, 1 - 1e-9),
        "known points: H at L = 0": attains(
            noise_gain(levels, 0.0), noise_gain_bound(levels, 0.0), 1 - 1e-9
        ),
        "H is the largest gain": attains(largest, noise_gain_bound(levels, 0.8), 1 - 1e-9),
        "known points: the gain of two steps": attains(noise_gain(two, 1.5), by_hand, 1 - 1e-9),
    }


@known_points("DDIM", "DDIM-inversion")
def ddim() -> dict[str, bool]:
    """Constants of a step against the library's; closed forms on fine paths, or one long step."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    a, b = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64)
    parts = [ddim_step(one, zero, 0.3, 0.8), ddim_step(zero, one, 0.3, 0.8)]
    pair, levels = torch.cat([b, a]), fine_path()
    steps = [ddim_step(one, -1.5 * one, 0.3, 0.8), ddim_step(one, 1.5 * one, 0.8, 0.3)]
    constants = [denoising_factors(pair, 1.5)[0], inversion_factors(pair, 1.5)[0]]

    # K of one step of 1.25 is 2; products over fine steps; a long step where L is below 1.
    growth = log_growth(torch.tensor([1.0, 0.64], dtype=torch.float64))
    long = torch.tensor([1.0, 1e-280], dtype=torch.float64)
    scale, noisy = long[-1].log() / 2, levels[2400:]
    ratios = [
        *(denoising_factors(path, 1.5).log().sum() for path in (levels, noisy)),
        *(inversion_factors(path, 2.5).log().sum() for path in (levels, noisy)),
        inversion_factors(long, 0.5).log().sum() - scale,
    ]
    limits = [
        *(log_denoising_bound(path, 1.5) for path in (levels, noisy)),
        *(log_inversion_bound(path, 2.5) for path in (levels, noisy)),
        log_inversion_bound(long, 0.5) - scale,
    ]
    return {
        "the coefficients are the library's": torch.allclose(
            torch.cat(ddim_coefficients(a, b)), torch.cat(parts)
        ),
        "known points: constants of a step": attains(steps, constants, 1 - 1e-9),
        "known points: K(.64) = 2": attains(growth, math.log(2), 1 - 1e-9),
        "known points: closed forms": attains(ratios, limits, 0.99),
    }


@known_points("DDIM-inversion")
def fixed_point() -> dict[str, bool]:
    """eps = L x contracts by exactly q; Stable Diffusion's levels are those of its betas."""
    rates, limits = [], []
    for ends in ((0.5, 0.7, 0.8), (0.2, 0.9, 0.3)):
        _, errors = fixed_point_errors(*ends, n_iterations=3, is_linear=True)
        rates.append(errors[2] / errors[1])
        limits.append(contraction_rate(*ends))
    levels = levels_of(stable_diffusion())
    return {
        "known points: q": attains(rates, limits, 1 - 1e-9),
        "Stable Diffusion ends at its level": abs(float(levels[-1]) - 0.0046601) < 1e-6
        and len(levels) == 1001
        and float(levels[0]) == 1.0,
    }
