"""The paper's update errs by its factors and its noise, by no more, and by as much."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import SD_SCHEDULE

from vala_research import InputError
from vala_research.diffusion.ddpm_update import (
    ddpm_update,
    error_factor,
    rms_error_bound,
    update_levels,
)
from vala_research.diffusion.schedule import Schedule
from vala_research.methods.bilateral import bias_bound, bilateral_filter, neighbour_mass

L = 1.0


def schedule_of(n_steps: int, **changes) -> Schedule:
    return Schedule.from_scheduler(DDIMScheduler(**SD_SCHEDULE | changes), n_steps)


def run(x, schedule, generator=None, sigma=0.0, is_noisy=True):
    """Every level of the update under eps = -L x, of images n 1 4 4."""
    for alpha, alpha_bar, noise_level in update_levels(schedule):
        if sigma:
            x = bilateral_filter(x, 3, 1.0, sigma)
        x = ddpm_update(x, -L * x, alpha, alpha_bar, noise_level if is_noisy else 0.0, generator)
        yield x


def test_one_step_stretches_an_error_by_its_factor_exactly():
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for alpha, alpha_bar, _ in update_levels(schedule_of(10)):
        factor = error_factor(alpha, alpha_bar, L)
        assert factor > 1
        worst = ddpm_update(x, -L * x, alpha, alpha_bar, 0.0)
        assert torch.allclose(worst, factor * x, rtol=1e-12)
        for direction in (L, 0.3, -0.9):  # any other network of that constant stretches less
            other = ddpm_update(x, direction * x, alpha, alpha_bar, 0.0)
            assert other.norm() <= factor * x.norm()


def test_all_steps_and_the_last_without_noise():
    """Against the schedule's own betas, where no step is skipped."""
    schedule = schedule_of(1000, steps_offset=0)
    alphas, alpha_bars, noises = zip(*update_levels(schedule), strict=True)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - betas.flip(0)).tolist()
    assert alphas[:-1] == pytest.approx(expected[:-1], rel=1e-5)  # the scheduler has float32
    assert noises[:-1] == pytest.approx([math.sqrt(1 - a) for a in alphas[1:]], rel=1e-12)
    assert noises[-1] == 0 and alpha_bars == tuple(s.alpha_bar_t for s in schedule)


@pytest.mark.parametrize("sigma", [0.0, 0.02])
def test_rms_error_keeps_its_bound_and_nearly_attains_it(sigma):
    """Linear worst case, 30 steps, 16 values: measured over 4000 paths beside the noise-free one.

    Adding norms as the paper does gives several times as much. Filtered, the bound is looser: the
    worst bias at every site and step, all in one direction, is not met.
    """
    schedule, n = schedule_of(30), 16
    start = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    error, many = 0.1, 4000
    x = start.repeat(many, 1, 1, 1)
    x[:, :, 0, 0] += error
    mean_path = list(run(start, schedule, is_noisy=False))
    paths = run(x, schedule, torch.Generator().manual_seed(1), sigma)
    bias = bias_bound(neighbour_mass(3, 1.0), sigma)
    bound = rms_error_bound(schedule, L, n, error, bias)
    ratios = [
        (path - clean).square().sum((1, 2, 3)).mean().sqrt().item() / b
        for path, clean, b in zip(paths, mean_path, bound, strict=True)
    ]
    # The mean of 4000 squares of 16 values has a relative deviation below 1%; the root, half.
    assert max(ratios) < 1.015
    assert ratios[-1] > (0.98 if sigma == 0 else 0.4), ratios[-1]
    norms, r = [], error
    for alpha, alpha_bar, noise_level in update_levels(schedule):
        r = error_factor(alpha, alpha_bar, L) * (r + bias * 4) + noise_level * 4
        norms.append(r)
    assert norms[-1] > 2 * bound[-1]


def test_biases_may_differ_by_step():
    schedule = schedule_of(3)
    same = rms_error_bound(schedule, L, 16, 0.1, [0.2] * 3)
    assert same == rms_error_bound(schedule, L, 16, 0.1, 0.2)
    assert rms_error_bound(schedule, L, 16, 0.1, [0.2, 0.1, 0.0])[-1] < same[-1]


def test_no_signal_at_all_is_refused():
    schedule = schedule_of(4, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(InputError, match="'paper_eq12' divides by the signal"):
        list(update_levels(schedule))
