"""Inversion on a denoiser whose score is known in closed form."""

import math
import warnings
from collections import deque

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_models import SD_SCHEDULE, GaussianMixture

from vala_research import InputError
from vala_research.diffusion.fixed_point import QUICK, ExactSettings, fixed_point, rms
from vala_research.diffusion.inversion import direction, extrapolated, invert
from vala_research.diffusion.schedule import Schedule, ddim_step, sample

# The residual of one step is amplified on the way back by the steps' constants at most:
# a few hundred here; 1e-13 a step leaves the round trip below 1e-10.
TIGHT = ExactSettings(tolerance=1e-13, max_iterations=200)


def mixture(n_steps: int, kind: str = "epsilon", set_alpha_to_one: bool = False, **more):
    scheduler = DDIMScheduler(
        prediction_type=kind, set_alpha_to_one=set_alpha_to_one, **SD_SCHEDULE, **more
    )
    schedule = Schedule.from_scheduler(scheduler, n_steps)
    return GaussianMixture(schedule.alpha_bar, kind), schedule


def round_trip_error(n_steps: int, method: str, kind: str = "epsilon", **schedule_kwargs) -> float:
    """RMS distance between x and sample(invert(x))."""
    predict, schedule = mixture(n_steps, kind, **schedule_kwargs)
    x = predict.draw(12)
    found = invert(predict, x, schedule, TIGHT if method == "exact" else method)
    return (sample(predict, found.latents, schedule) - x).square().mean().sqrt().item()


def test_plain_ddim_is_of_first_order():
    steps = (25, 50, 100, 200)  # divisors of 1000, so that all cover the whole schedule
    errors = [round_trip_error(n, "ddim") for n in steps]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    # Halving the step halves the error: measured orders lie within 0.05 of 1. A second-order
    # method would show 2, a wrong timestep (an error that does not shrink) 0.
    assert all(0.85 < order < 1.15 for order in orders), orders


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("n_steps", [5, 10, 50])
def test_exact_inverts_to_rounding_where_ddim_does_not(kind, n_steps):
    exact, plain = (round_trip_error(n_steps, method, kind) for method in ("exact", "ddim"))
    assert exact < 1e-10
    assert plain > 1e-4  # what a "solver" that stopped after one iteration would leave


def flow(n_steps: int, shift: float = 1.0):
    """The mixture's velocity, and Euler steps from noise to the data."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return GaussianMixture((), "flow_prediction"), Schedule.from_scheduler(scheduler, n_steps)


def flow_error(n_steps: int, settings) -> float:
    predict, schedule = flow(n_steps)
    x = predict.draw(12)
    found = invert(predict, x, schedule, settings)
    return (sample(predict, found.latents, schedule) - x).square().mean().sqrt().item()


def test_plain_inversion_of_a_flow_is_of_first_order():
    errors = [flow_error(n, "ddim") for n in (50, 100, 200, 400)]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(0.85 < order < 1.15 for order in orders), orders


@pytest.mark.parametrize("n_steps", [5, 10, 50])
def test_exact_inverts_a_flow_to_rounding(n_steps):
    # z_t = z_s + (s_t - s_s) v(z_t): all of the noise is reached, where no signal is left.
    assert flow_error(n_steps, TIGHT) < 1e-10 < 1e-4 < flow_error(n_steps, "ddim")


def test_a_flow_starts_on_the_line_through_the_steps_before():
    """A velocity linear in the level s costs one evaluation a step."""
    _, schedule = flow(12, shift=3.0)
    x0 = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    past, z = deque(maxlen=3), x0
    for step in list(schedule)[::-1]:
        v = x0 * (1 + 0.5 * step.noisy.s)
        z_t = z + (step.noisy.s - step.clean.s) * v
        assert torch.allclose(direction(z, z_t, step, "flow_prediction"), v)
        guess = extrapolated(z, step, past, "flow_prediction")
        assert torch.allclose(guess, z_t) == (len(past) == 3)
        past.append((step.noisy.s, v))
        z = z_t


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("n_steps", [2, 5, 50])
def test_exact_inverts_where_no_signal_is_left(kind, set_alpha_to_one, n_steps):
    """At zero terminal SNR eps is z_t itself, so holding eps would call every z_t exact."""
    zero_snr = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    predict, schedule = mixture(n_steps, kind, set_alpha_to_one, **zero_snr)
    assert schedule.alpha_bar[schedule.timesteps[0]] < 1e-12
    x = predict.draw(12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latents = invert(predict, x, schedule, TIGHT).latents
    assert (sample(predict, latents, schedule) - x).abs().max() < 1e-10
    # The clean latents are still in z_T, and a wrong z_T does not lead back to them.
    assert (sample(predict, latents + 0.1, schedule) - x).abs().max() > 1e-3
    # The start extrapolates the output: a step costs hardly more than plain DDIM's.
    if n_steps == 50:
        assert invert(predict, x, schedule, QUICK).n_evaluations <= 1.2 * n_steps


def test_exact_survives_a_last_step_onto_the_data():
    # With alpha_bar_s = 1 the last step maps a whole neighbourhood to nearly one point when the
    # denoiser is sure of itself; the mixture's components are wide enough for an inverse to exist.
    assert round_trip_error(10, "exact", set_alpha_to_one=True) < 1e-9


def test_two_steps_are_too_large_for_ddim_and_not_for_exact():
    assert round_trip_error(2, "ddim") > 0.1
    assert round_trip_error(2, "exact") < 1e-10


def test_inversion_finds_the_latents_it_was_sampled_from():
    predict, schedule = mixture(20)
    z = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = invert(predict, sample(predict, z, schedule), schedule, TIGHT)
    # The flow contracts the data less than it expands noise: conditioning costs three digits.
    assert (found.latents - z).abs().max() < 1e-9


def test_record_of_an_inversion():
    predict, schedule = mixture(10)
    x = predict.draw(4)
    plain = invert(predict, x, schedule, "ddim")
    assert plain.n_evaluations == predict.n_calls == len(schedule)
    assert len(plain.trajectory) == len(schedule) + 1 and plain.residuals == ()
    assert plain.trajectory[-1] is x and plain.trajectory[0] is plain.latents
    predict.n_calls = 0
    exact = invert(predict, x, schedule, TIGHT, keep_trajectory=False)
    assert exact.n_evaluations == predict.n_calls > len(schedule)
    assert exact.trajectory == () and len(exact.residuals) == len(schedule)
    assert max(exact.residuals) <= TIGHT.tolerance


def test_network_is_asked_at_the_timesteps_of_sampling_reversed():
    predict, schedule = mixture(7)
    asked = []

    def spy(z, t):
        asked.append(t)
        return predict(z, t)

    invert(spy, predict.draw(2), schedule, "ddim")
    assert tuple(reversed(asked)) == schedule.timesteps


def test_fp32_latents_are_solved_in_fp32_and_half_is_raised():
    predict, schedule = mixture(5)
    assert invert(predict, predict.draw(2).half(), schedule).latents.dtype != torch.float16


def test_anderson_converges_where_plain_iteration_diverges():
    # z = A z + b with eigenvalues to -3: plain iteration diverges like 3^n; GMRES-like mixing
    # solves a 4-dimensional linear problem in five steps, in exact arithmetic.
    a = torch.diag(torch.tensor([-3.0, -1.5, 0.2, 0.5], dtype=torch.float64))
    b = torch.ones(4, dtype=torch.float64)
    truth = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - a, b)
    fast = fixed_point(lambda z: a @ z + b, torch.zeros_like(b), ExactSettings(1e-10, 40, 5))
    assert fast.residual <= 1e-10 and (fast.z - truth).abs().max() < 1e-9
    plain = fixed_point(lambda z: a @ z + b, torch.ones_like(b), ExactSettings(1e-10, 40, 0))
    assert plain.residual > 1e-10  # damped, not solved, and kept from diverging:
    assert (plain.z - truth).abs().max() < 10


@pytest.mark.parametrize("n_steps", [25, 50])
def test_quick_costs_at_most_twice_plain_ddim(n_steps):
    """And its tolerance is kept: predicted residuals, measured here, are not wishful."""
    predict, schedule = mixture(n_steps)
    found = invert(predict, predict.draw(12), schedule, QUICK)
    assert found.n_evaluations <= 2 * n_steps
    for step, z_t, z_s in zip(schedule, found.trajectory, found.trajectory[1:], strict=False):
        again = schedule.renoise(z_s, z_t, predict(z_t, step.t), step)
        assert rms(again - z_t) <= 2 * QUICK.tolerance * rms(z_t)


def test_starts_on_the_line_through_the_steps_before():
    """eps linear in the log-SNR is met exactly; a step costs one evaluation there."""
    _, schedule = mixture(20)
    x0 = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps, past, z = list(schedule)[::-1], deque(maxlen=3), x0
    for step in steps:
        eps = x0 * (1 + 0.1 * step.noisy.log_snr)
        z_t = ddim_step(z, eps, step.alpha_bar_s, step.alpha_bar_t)
        assert torch.allclose(direction(z, z_t, step), eps)
        guess = extrapolated(z, step, past)
        assert torch.allclose(guess, z_t) == (len(past) == 3)
        past.append((step.noisy.log_snr, eps))
        z = z_t


def test_missing_the_tolerance_warns_and_returns_the_best_iterate():
    predict, schedule = mixture(5)
    x = predict.draw(4)
    with pytest.warns(UserWarning, match="missed its tolerance.*5 of 5 steps"):
        found = invert(predict, x, schedule, ExactSettings(1e-16, max_iterations=3))
    assert found.n_evaluations == 15
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        invert(predict, x, schedule, "exact")


def test_unknown_inversion_lists_the_valid_ones():
    predict, schedule = mixture(5)
    with pytest.raises(InputError, match="'null'.*ddim, exact"):
        invert(predict, predict.draw(1), schedule, "null")
