"""The paper's update errs by its factors, by no more, and by as much."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import SD_SCHEDULE

from vala_research import InputError
from vala_research.diffusion.ddpm_update import ddpm_update, error_factor, update_levels
from vala_research.diffusion.schedule import Schedule

L = 1.0


def schedule_of(n_steps: int, **changes) -> Schedule:
    return Schedule.from_scheduler(DDIMScheduler(**SD_SCHEDULE | changes), n_steps)


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


def test_no_signal_at_all_is_refused():
    changes = dict(timestep_spacing="trailing", prediction_type="v_prediction")
    schedule = schedule_of(4, rescale_betas_zero_snr=True, **changes)
    with pytest.raises(InputError, match="'paper_eq12' divides by the signal"):
        list(update_levels(schedule))
