"""The schedule: parity with diffusers, and one step that undoes itself."""

import math

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    IPNDMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from tiny_models import SD_SCHEDULE, GaussianMixture

from vala_research import InputError
from vala_research.diffusion.level import Level
from vala_research.diffusion.schedule import Schedule, Step, carried, ddim_step, sample

BETAS = {k: v for k, v in SD_SCHEDULE.items() if k != "clip_sample"}
KINDS = ("epsilon", "v_prediction", "sample")


def toy_network(z: torch.Tensor, t: int) -> torch.Tensor:
    """A prediction that depends on z and on t, so that a wrong timestep shows."""
    return torch.tanh(0.7 * z.flip(-1) + t / 1000)


@pytest.mark.parametrize("prediction_type", KINDS)
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("offset, spacing", [(1, "leading"), (0, "leading"), (0, "trailing")])
def test_sampling_equals_diffusers_ddim(prediction_type, set_alpha_to_one, offset, spacing):
    config = {**SD_SCHEDULE, "steps_offset": offset}
    scheduler = DDIMScheduler(
        **config,
        prediction_type=prediction_type,
        set_alpha_to_one=set_alpha_to_one,
        timestep_spacing=spacing,
    )
    # fp64 tables on both sides, so that only the formulas can differ.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    if not set_alpha_to_one:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    schedule = Schedule.from_scheduler(scheduler, 20)
    scheduler.set_timesteps(20)
    assert list(schedule.timesteps) == scheduler.timesteps.tolist()

    z = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, theirs = sample(toy_network, z, schedule), z
    for t in scheduler.timesteps:
        theirs = scheduler.step(toy_network(theirs, int(t)), t, theirs, eta=0.0).prev_sample
    # 20 steps of fp64 arithmetic, errors amplified by at most 1/sqrt(alpha_bar_T) = 15.
    assert (ours - theirs).abs().max() < 1e-11
    # One timestep off, as in diffusers issues 3267 and 5703, is far outside the tolerance.
    shifted = sample(lambda z, t: toy_network(z, t - 50), z, schedule)
    assert (shifted - theirs).abs().max() > 1e-3


SHIPPED = [
    (PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **BETAS), False),
    (PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True, **BETAS), True),
    (EulerDiscreteScheduler(**BETAS), True),
    (EulerDiscreteScheduler(timestep_spacing="leading", **BETAS), True),
    (DPMSolverMultistepScheduler(prediction_type="v_prediction"), True),
    (DPMSolverMultistepScheduler(timestep_spacing="leading", steps_offset=1), True),
    (DPMSolverMultistepScheduler(final_sigmas_type="sigma_min"), False),
    (DPMSolverSinglestepScheduler(), True),
    (UniPCMultistepScheduler(timestep_spacing="trailing"), True),
]


@pytest.mark.parametrize(
    "scheduler, ends_on_data", SHIPPED, ids=[type(s).__name__ for s, _ in SHIPPED]
)
@pytest.mark.filterwarnings("ignore")
def test_reads_the_schedulers_checkpoints_ship(scheduler, ends_on_data, tmp_path):
    """Their own timesteps and final level, also where they were made with defaults."""
    schedule = Schedule.from_scheduler(scheduler, 10)
    scheduler.set_timesteps(10)
    own = {round(t) for t in scheduler.timesteps.tolist()}  # PNDM and others visit some twice
    assert list(schedule.timesteps) == sorted(own, reverse=True)
    assert schedule.prediction_type == scheduler.config.prediction_type
    assert torch.tensor(schedule.alpha_bar).float().equal(scheduler.alphas_cumprod)
    assert schedule.final_alpha_bar == (1.0 if ends_on_data else schedule.alpha_bar[0])
    # A file holds the defaults too, so nothing changes by saving and loading.
    scheduler.save_pretrained(tmp_path)
    assert Schedule.from_scheduler(type(scheduler).from_pretrained(tmp_path), 10) == schedule


@pytest.mark.parametrize(
    "scheduler, message",
    [
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "from the data.*invert_sigmas"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling"),
        (DPMSolverMultistepScheduler(use_flow_sigmas=True), "prediction type 'epsilon'"),
        (FlowMatchHeunDiscreteScheduler(), "FlowMatchHeunDiscreteScheduler.*flow-matching"),
        (EDMEulerScheduler(), "EDMEulerScheduler, of EDM models"),
        (EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"), "EDM"),
        (IPNDMScheduler(), "IPNDMScheduler, which has no alphas_cumprod"),
    ],
    ids=range(7),
)  # fmt: skip
def test_schedulers_of_other_models_are_refused_in_words(scheduler, message):
    with pytest.raises(InputError, match=message):
        Schedule.from_scheduler(scheduler, 4)


@pytest.mark.parametrize("cls", [DDIMScheduler, EulerDiscreteScheduler])
def test_epsilon_where_no_signal_is_left_is_the_schedule_s_fault(cls):
    kwargs = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(InputError, match=r"scheduler.*t=999.*rescale_betas_zero_snr.*'epsilon'"):
        Schedule.from_scheduler(cls(**kwargs), 4)
    Schedule.from_scheduler(cls(prediction_type="v_prediction", **kwargs), 4)
    # Steps that do not visit that level are run, as in diffusers.
    kwargs["timestep_spacing"] = "leading"
    assert Schedule.from_scheduler(cls(**kwargs), 4).timesteps[0] == 750


def test_strength_leaves_the_last_steps():
    schedule = Schedule.from_scheduler(DDIMScheduler(), 10)
    assert schedule.last_part(1.0) == schedule
    assert schedule.last_part(0.35).timesteps == (200, 100, 0)
    for strength in (0.0, 0.09, 1.1, -1):
        with pytest.raises(InputError, match="strength is"):
            schedule.last_part(strength)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_step_ends_where_the_next_begins(spacing):
    steps = list(Schedule.from_scheduler(DDIMScheduler(timestep_spacing=spacing), 30))
    assert len(steps) == 30
    assert all(a.s == b.t for a, b in zip(steps, steps[1:], strict=False))
    assert all(a.alpha_bar_s == b.alpha_bar_t for a, b in zip(steps, steps[1:], strict=False))
    assert (steps[-1].s, steps[-1].alpha_bar_s) == (-1, 1.0)


def test_ddim_step_undoes_itself_between_any_levels():
    z, eps = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, b in [(0.9, 0.1), (0.1, 0.9), (1.0, 0.005), (0.3, 1.0)]:
        there = ddim_step(z, eps, a, b)
        # Round-off, times sqrt(b/a) <= 15 on the way.
        assert (ddim_step(there, eps, b, a) - z).abs().max() < 1e-13
        x0 = (z - (1 - a) ** 0.5 * eps) / a**0.5
        assert torch.allclose(there, b**0.5 * x0 + (1 - b) ** 0.5 * eps, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_split_recovers_signal_and_noise(kind):
    x0, eps = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    a = 0.37
    z = a**0.5 * x0 + (1 - a) ** 0.5 * eps
    v = a**0.5 * eps - (1 - a) ** 0.5 * x0
    prediction = {"epsilon": eps, "sample": x0, "v_prediction": v}[kind]
    schedule = Schedule((1.0, a), 1.0, kind, (1,))
    found_x0, found_eps = schedule.split(z, prediction, Level.preserving(a))
    assert torch.allclose(found_x0, x0, atol=1e-14) and torch.allclose(found_eps, eps, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_renoise_undoes_denoise_at_its_own_answer(kind):
    z = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    scheduler = DDIMScheduler(prediction_type=kind, set_alpha_to_one=False, **SD_SCHEDULE)
    schedule = Schedule.from_scheduler(scheduler, 10)
    for step in schedule:
        prediction = toy_network(z, step.t)
        z_s = schedule.denoise(z, prediction, step)
        # The guess is the answer, so the implicit equation must hold to round-off (x 15, above).
        assert (schedule.renoise(z_s, z, prediction, step) - z).abs().max() < 1e-12


@pytest.mark.parametrize("alpha_bar_t", [0.0, 0.2, 0.4])
def test_renoise_holds_the_network_s_own_output(alpha_bar_t):
    z_s, z_t, output = torch.randn(
        3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )[:, None]
    ends = Level.preserving(alpha_bar_t), Level.preserving(0.6)
    step, a_t, a_s = Step(9, 5, *ends), alpha_bar_t**0.5, 0.6**0.5
    b_t, b_s = (1 - alpha_bar_t) ** 0.5, 0.4**0.5
    d = math.acos(a_t) - math.acos(a_s)
    held = {
        "v_prediction": (z_s + math.sin(d) * output) / math.cos(d),
        "sample": b_t / b_s * z_s + (a_t - a_s * b_t / b_s) * output,
        "epsilon": a_t / a_s * z_s + (b_t - a_t / a_s * b_s) * output,
    }
    for kind, expected in held.items():
        schedule = Schedule((0.9, alpha_bar_t), 1.0, kind, (1,))
        found = schedule.renoise(z_s, z_t, output, step)
        assert torch.allclose(found, expected, atol=1e-14), kind


def test_zero_terminal_snr_samples_without_dividing_by_zero():
    scheduler = DDIMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    schedule = Schedule.from_scheduler(scheduler, 5)
    assert schedule.alpha_bar[schedule.timesteps[0]] < 1e-12
    assert torch.isfinite(sample(toy_network, torch.ones(4, 4), schedule)).all()


@pytest.mark.parametrize("n_steps", [0, -1, 1001, True, 1000])
def test_steps_out_of_range_are_refused(n_steps):
    # 1000 steps with steps_offset 1 would ask the network for timestep 1000, which does not exist.
    with pytest.raises(InputError, match="num_inference_steps"):
        Schedule.from_scheduler(DDIMScheduler(**SD_SCHEDULE), n_steps)


def test_unknown_prediction_type_is_refused():
    with pytest.raises(InputError, match="raw_velocity.*epsilon"):
        Schedule((0.9,), 1.0, "raw_velocity", (0,))


FLOWS = {
    "euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "terminal": FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=0.1, base_shift=0.95, max_shift=2.05
    ),
    "unipc": UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_reads_the_levels_of_a_rectified_flow(name):
    """The scheduler's own levels, among them its shifts; the scheduler stays as it is."""
    scheduler = FLOWS[name]
    before = scheduler.sigmas.clone()
    schedule = Schedule.from_scheduler(scheduler, 8, n_tokens=1024)
    assert scheduler.sigmas.equal(before)
    assert schedule.prediction_type == "flow_prediction" and schedule.n_timesteps == 1000
    assert len(schedule) == 8 and len(schedule.flow) == 9 and schedule.flow[-1] == 0
    assert list(schedule.flow) == sorted(schedule.flow, reverse=True)
    steps = list(schedule)
    assert all(0 <= step.t - 1000 * step.noisy.s + 1 <= 2 for step in steps)  # UniPC truncates
    assert schedule.last_part(0.5).flow == schedule.flow[4:]
    if name == "terminal":
        assert schedule.flow[-2] == pytest.approx(0.1)
        with pytest.raises(InputError, match="n_tokens"):
            Schedule.from_scheduler(scheduler, 8)


@pytest.mark.parametrize("name", FLOWS)
def test_flow_sampling_equals_diffusers_euler(name):
    schedule = Schedule.from_scheduler(FLOWS[name], 6, n_tokens=256)
    euler = FlowMatchEulerDiscreteScheduler()
    euler.set_timesteps(sigmas=list(schedule.flow[:-1]))
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours, theirs = sample(toy_network, z, schedule), z
    for t, own in zip(euler.timesteps, schedule.timesteps, strict=True):
        theirs = euler.step(toy_network(theirs, own), t, theirs).prev_sample
    assert (ours - theirs).abs().max() < 1e-5


def test_cogvideox_schedulers_are_read_as_diffusion_without_signal_at_the_end():
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0,
        timestep_spacing="trailing", set_alpha_to_one=True,
    )  # fmt: skip
    schedule = Schedule.from_scheduler(scheduler, 5)
    assert schedule.alpha_bar[schedule.timesteps[0]] == 0 and not schedule.flow
    assert torch.isfinite(sample(toy_network, torch.ones(4, 4), schedule)).all()


@pytest.mark.parametrize("kind", (*KINDS, "flow_prediction"))
@pytest.mark.parametrize("ends", [
    (Level.preserving(0.3), Level.preserving(0.6)), (Level.flow(0.7), Level.flow(0.4)),
    (Level.flow(0.9), Level.flow(0.0)),
], ids=["diffusion", "flow", "onto data"])  # fmt: skip
def test_every_output_type_steps_on_every_path(kind, ends):
    """A step keeps x0 and noise; splitting finds both; inverting with the output held undoes it."""
    x0, noise = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    noisy, clean = ends
    z = noisy.a * x0 + noisy.b * noise
    p, q = noisy.predicted(kind)
    schedule = Schedule((0.9,), 1.0, kind, (0,))
    found = schedule.split(z, p * x0 + q * noise, noisy)
    assert torch.allclose(found[0], x0, atol=1e-13) and torch.allclose(found[1], noise, atol=1e-13)
    step = Step(9, 5, noisy, clean)
    z_s = schedule.denoise(z, p * x0 + q * noise, step)
    assert torch.allclose(z_s, clean.a * x0 + clean.b * noise, atol=1e-13)
    assert torch.allclose(schedule.renoise(z_s, z, p * x0 + q * noise, step), z, atol=1e-13)
    a, b = carried(kind, step)
    assert torch.allclose(a * z + b * (p * x0 + q * noise), z_s, atol=1e-13)


def test_the_velocity_of_a_flow_is_noise_minus_data_at_any_scale():
    assert Level.flow(0.3).predicted("flow_prediction") == (-1.0, 1.0)
    v = Level.preserving(0.36).predicted("v_prediction")
    assert v == pytest.approx((-0.8, 0.6))
    # Equal signal-to-noise ratio: a flow level is a diffusion level, divided by a + b.
    level = Level.preserving(0.36)
    same = Level.flow(level.s)
    assert (same.a, same.b) == pytest.approx((level.a / 1.4, level.b / 1.4))
    assert same.alpha_bar == pytest.approx(0.36) and same.angle == pytest.approx(level.angle)


def test_a_flow_of_levels_outside_0_to_1_is_refused():
    with pytest.raises(InputError, match="levels run from 1.2 to 0"):
        Schedule((), 1.0, "flow_prediction", (1200.0,), (1.2, 0.0))


def test_two_analytic_denoisers_of_one_distribution_agree_on_each_other_s_path():
    """A velocity at s = b / (a + b), z / (a + b) says the x0 and the noise that eps says at z."""
    scheduler = DDIMScheduler(set_alpha_to_one=False, **SD_SCHEDULE)
    schedule = Schedule.from_scheduler(scheduler, 20)
    noise, velocity = GaussianMixture(schedule.alpha_bar), GaussianMixture((), "flow_prediction")
    of_flow = Schedule(schedule.alpha_bar, 1.0, "flow_prediction", schedule.timesteps)
    z = alone = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    for step in schedule:
        size = step.noisy.a + step.noisy.b
        v = velocity(z / size, 1000 * step.noisy.s)
        eps = noise(z, step.t)
        for one, other in zip(schedule.split(z, eps, step.noisy), of_flow.split(z, v, step.noisy),
                              strict=True):  # fmt: skip
            assert (one - other).abs().max() < 1e-9
        z = (schedule.denoise(z, eps, step) + of_flow.denoise(z, v, step)) / 2
        alone = schedule.denoise(alone, noise(alone, step.t), step)
    assert (z - alone).abs().max() < 1e-9
