"""Inversion from smoothed latents: what is filtered, when, where, and what it may not be asked."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import SD_SCHEDULE, tiny_motion_unet, tiny_unet

from vala_research import InputError
from vala_research.diffusion.bilateral_inversion import (
    RELEASED,
    BilateralInversion,
    bilateral_sample,
    fractions,
    frame_filter,
)
from vala_research.diffusion.inversion import get_inversion, invert
from vala_research.diffusion.patching import patched
from vala_research.diffusion.schedule import Schedule, sample
from vala_research.methods.bilateral import BilateralSettings, bilateral_filter_frames

SOURCE, N_STEPS = "a red circle", 3


def schedule_of(n_steps: int, **changes) -> Schedule:
    return Schedule.from_scheduler(DDIMScheduler(**SD_SCHEDULE | changes), n_steps)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tilted(z, t):
    """A denoiser whose answer depends on all it is given."""
    return 0.4 * z + 0.1 * z.roll(1, dims=-1) + t / 2000


@pytest.mark.parametrize("n_steps", [1, 2, 7])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_each_step_starts_from_the_filtered_latent(n_steps, kernel_size):
    """Written out: filter, ask the network there, renoise from there; any steps, any window."""
    schedule, z = schedule_of(n_steps), noise(2, 4, 8, 8)
    settings = BilateralInversion(kernel_size, schedule=lambda fraction: 1 - fraction / 2)
    found = invert(tilted, z, schedule, settings)
    levels = [z]
    for i, step in enumerate(reversed(list(schedule))):
        smooth = settings(levels[0], i / max(1, n_steps - 1))
        a, b = step.alpha_bar_s, step.alpha_bar_t
        eps = tilted(smooth, step.t)
        x0 = (smooth - math.sqrt(1 - a) * eps) / math.sqrt(a)
        levels.insert(0, math.sqrt(b) * x0 + math.sqrt(1 - b) * eps)
    for ours, expected in zip(found.trajectory, levels, strict=True):
        assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
    assert found.n_evaluations == n_steps and found.residuals == ()
    plain = invert(tilted, z, schedule)
    assert torch.equal(plain.latents, found.latents) == (kernel_size == 1)


def test_a_schedule_of_zero_is_plain_inversion():
    schedule, z = schedule_of(5), noise(2, 4, 8, 8)
    plain = invert(tilted, z, schedule)
    never = BilateralInversion(schedule=lambda _: 0.0)
    same = invert(tilted, z, schedule, never)
    assert torch.equal(plain.latents, same.latents)
    last = BilateralInversion(schedule=lambda fraction: float(fraction == 1))
    late = invert(tilted, z, schedule, last)
    for level, (a, b) in enumerate(zip(late.trajectory, plain.trajectory, strict=True)):
        assert torch.equal(a, b) == (level > 0)  # only the noisiest, which is the first, differs


def test_fractions_follow_the_inversion():
    schedule = schedule_of(5)
    found = fractions(schedule)
    assert [found[t] for t in reversed(schedule.timesteps)] == [0, 0.25, 0.5, 0.75, 1]
    assert list(fractions(schedule_of(1)).values()) == [0.0]


# Along frames, inside the network.


def test_frames_are_filtered_at_the_last_decoder_blocks_first_two_attentions():
    unet = tiny_unet(up_block_types=("CrossAttnUpBlock2D",) * 2, layers_per_block=2)
    names = [n for n, m in unet.named_modules() if frame_filter(unet, RELEASED).select(n, m)]
    sites = [f"up_blocks.1.attentions.{i}.transformer_blocks.0.attn1" for i in (0, 1)]
    assert names == sites  # of three: as up_blocks[3].attentions[0] and [1] of Stable Diffusion
    with patched(tiny_motion_unet(), frame_filter(tiny_motion_unet(), RELEASED)) as count:
        assert count == 2  # and no motion module's attention in time
    bare = tiny_unet(up_block_types=("UpBlock2D",) * 2)
    with pytest.raises(InputError, match="no self-attention in its decoder: filter the 'latent'"):
        frame_filter(bare, RELEASED)


def test_frame_filter_changes_what_the_attention_returns_and_nothing_stays():
    unet = tiny_unet()
    settings = BilateralInversion(3, unit="absolute", place="frames", schedule=lambda x: 1 + x)
    patch = frame_filter(unet, settings, 0.5)
    module = next(m for n, m in unet.named_modules() if patch.select(n, m))
    x = torch.randn(4, 6, module.to_q.in_features, generator=torch.Generator().manual_seed(0))
    plain = module(x)
    with patched(unet, patch):
        assert torch.allclose(module(x), bilateral_filter_frames(plain, 3, 1.0, 1.5), atol=1e-6)
    assert torch.equal(module(x), plain) and "forward" not in vars(module)


@pytest.mark.parametrize("attention", ["own", "extended", "anchors"])
def test_pipeline_inverts_with_either_place(tiny, video, attention):
    run = lambda method, **kwargs: tiny.invert(video, SOURCE, N_STEPS, method, attention, **kwargs)  # noqa: E731
    plain, default = run("ddim"), run("bilateral")
    frames = run(BilateralInversion(3, place="frames"))
    zero = BilateralInversion(3, place="frames", schedule=lambda _: 0.0)
    never = run(zero)
    assert torch.equal(plain, never)
    assert not torch.equal(plain, default) and not torch.equal(plain, frames)
    assert torch.equal(run("ddim"), plain)  # the network is as it was
    in_chunks = BilateralInversion(3, place="frames")
    for chunk in (1, 2):
        again = run(in_chunks, frames_per_chunk=chunk)
        assert torch.allclose(again, frames, atol=1e-5)


def test_an_edit_takes_its_settings(tiny, video):
    call = dict(source_prompt=SOURCE, num_inference_steps=N_STEPS, output_type="pt")
    edit = lambda **kwargs: tiny(video, "a blue square", **call, **kwargs).frames  # noqa: E731
    settings = BilateralInversion(3, sigma_intensity=2.0)
    once = edit(inversion=settings)
    found = tiny.invert(video, SOURCE, N_STEPS, settings, "anchors", return_inversion=True)
    parts = tiny(None, "a blue square", latents=found, **call).frames
    assert torch.allclose(once, parts, atol=1e-5)
    assert not torch.allclose(once, edit(inversion="bilateral"), atol=1e-3)
    assert tiny.estimate(3, 16, 24, N_STEPS, inversion="bilateral") == tiny.estimate(
        3, 16, 24, N_STEPS
    )


# The denoising direction.


def test_denoising_by_ddim_is_sampling_where_nothing_is_filtered():
    schedule, z = schedule_of(6), noise(1, 2, 6, 6)
    never = BilateralInversion(schedule=lambda _: 0.0)
    assert torch.equal(bilateral_sample(tilted, z, schedule, never), sample(tilted, z, schedule))
    smoothed = bilateral_sample(tilted, z, schedule, BilateralInversion())
    assert not torch.allclose(smoothed, sample(tilted, z, schedule), atol=1e-3)


def test_paper_eq12_is_written_out_and_draws_from_the_generator():
    schedule, z = schedule_of(4), noise(2, 2, 6, 6)
    settings = BilateralInversion(step_rule="paper_eq12", unit="absolute", sigma_intensity=0.5)
    run = lambda seed: bilateral_sample(tilted, z, schedule, settings, torch.manual_seed(seed))  # noqa: E731
    found = run(7)
    assert torch.equal(found, run(7)) and not torch.equal(found, run(8))
    generator, x, steps = torch.Generator().manual_seed(7), z, list(schedule)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        x = BilateralSettings(unit="absolute", sigma_intensity=0.5)(x)
        alpha = step.alpha_bar_t / step.alpha_bar_s
        eps = tilted(x, step.t)
        x = (x - (1 - alpha) / math.sqrt(1 - step.alpha_bar_t) * eps) / math.sqrt(alpha)
        if following is not None:
            alpha_next = following.alpha_bar_t / following.alpha_bar_s
            draw = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = x + math.sqrt(1 - alpha_next) * draw
    assert torch.allclose(found, x, rtol=0, atol=1e-12)


# Bad input: one sentence, before the network is asked.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: BilateralInversion(4), "kernel_size is 4: give a positive odd"),
        (lambda: BilateralInversion(0), "kernel_size is 0: give a positive odd"),
        (lambda: BilateralInversion(place="pixels"), "Unknown place of the filter 'pixels'"),
        (lambda: BilateralInversion(step_rule="euler"), "Unknown step rule 'euler': .*paper_eq12"),
        (lambda: BilateralInversion(step_rule="paper_eq12"), "denoises and inverts nothing"),
        (lambda: BilateralInversion(schedule=lambda x: 0.5 - x), "schedule gives -.* at fraction"),
        (lambda: BilateralInversion(17), "window of 17 does not fit 8 sites of the clip's latents"),
        (lambda: BilateralInversion(7, place="frames"), "window of 7 does not fit 3 frames of"),
    ],
)
def test_bad_settings_are_refused_before_the_network_is_asked(tiny, video, settings, message):
    def never(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    unet = tiny.unet
    unet.forward = never
    try:
        with pytest.raises(InputError, match=message):
            tiny.invert(video, SOURCE, N_STEPS, settings())
        with pytest.raises(InputError, match=message):
            tiny(video, "a blue square", inversion=settings())
    finally:
        del unet.forward


def test_settings_of_the_filter_alone_are_not_enough():
    with pytest.raises(InputError, match="Unknown inversion BilateralSettings.*settings of one"):
        get_inversion(BilateralSettings())
