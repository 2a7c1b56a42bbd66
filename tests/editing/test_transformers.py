"""Edits by video transformers: tiny checkpoints of the genuine classes. Costs 40 s."""

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    StableDiffusion3Pipeline,
    WanPipeline,
)
from tiny_videos import (
    SHIFT,
    tiny_ltx_checkpoint,
    tiny_sd3_checkpoint,
    tiny_wan_checkpoint,
    tiny_wan_vae,
)

from vala_research import InputError, VideoEditPipeline
from vala_research.diffusion.difference import DifferenceEdit
from vala_research.diffusion.experts import Experts
from vala_research.diffusion.fixed_point import ExactSettings
from vala_research.diffusion.injection import Injection
from vala_research.diffusion.null_text import NullTextSettings
from vala_research.diffusion.vae import completed, n_latent_frames, n_pixel_frames

SOURCE, TARGET = "a red circle", "a blue square"


@pytest.fixture(scope="module")
def wan_folder(tmp_path_factory):
    return tiny_wan_checkpoint(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def ltx_folder(tmp_path_factory):
    return tiny_ltx_checkpoint(tmp_path_factory.mktemp("ltx"))


@pytest.fixture(scope="module")
def wan(wan_folder):
    return quiet(wan_folder)


def quiet(folder) -> VideoEditPipeline:
    pipe = VideoEditPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def video() -> torch.Tensor:
    return torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def edit(pipe, video=None, **kwargs) -> torch.Tensor:
    settings = dict(num_inference_steps=4, guidance_scale=3.0, output_type="pt") | kwargs
    settings.setdefault("generator", torch.Generator().manual_seed(1))
    return pipe(video, TARGET, SOURCE, **settings).frames[0]


# --- loading and saving ---------------------------------------------------------------------------


def test_a_wan_folder_is_edited_with_all_frames_meeting(wan, video):
    assert type(wan.unet).__name__ == "WanTransformer3DModel" and wan.unet is wan.transformer
    assert wan.edit_defaults.attention == "extended"
    assert wan.edit_defaults.inversion == "flow_edit"
    frames = edit(wan, video)
    assert frames.shape == video.shape and frames.isfinite().all()


@pytest.mark.parametrize("kind", ["wan", "ltx"])
def test_sampling_equals_diffusers(kind, wan_folder, ltx_folder):
    """From one noise, with guidance: text, levels, shift, Euler steps and layout are theirs."""
    folder, cls = (wan_folder, WanPipeline) if kind == "wan" else (ltx_folder, LTXPipeline)
    theirs = cls.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    z = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = edit(
        quiet(folder), latents=z[0].transpose(0, 1), inversion="ddim", negative_prompt="a red",
        output_type="latent",
    )  # fmt: skip
    common = dict(prompt=TARGET, negative_prompt="a red", num_inference_steps=4, guidance_scale=3.0,
                  output_type="latent")  # fmt: skip
    if kind == "wan":
        found = theirs(**common, latents=z, num_frames=5, height=16, width=16).frames[0]
        assert torch.allclose(ours, found.transpose(0, 1), atol=1e-5)
        return
    packed = z.flatten(2).transpose(1, 2)
    found = theirs(**common, latents=packed, num_frames=9, height=32, width=32).frames
    found = found.transpose(1, 2).unflatten(2, (3, 8, 8))[0].transpose(0, 1)
    assert torch.allclose(ours, found, atol=1e-4)


def test_saved_folders_open_by_us_and_by_diffusers(wan, wan_folder, video, tmp_path):
    wan.save_pretrained(tmp_path)
    assert type(WanPipeline.from_pretrained(tmp_path).transformer) is type(wan.transformer)
    assert torch.equal(edit(quiet(tmp_path), video), edit(wan, video))
    again = WanPipeline(**{k: wan.components[k] for k in (
        "tokenizer", "text_encoder", "vae", "scheduler", "transformer"
    )})  # fmt: skip
    assert again.transformer is wan.transformer


def test_two_experts_share_the_levels_at_the_boundary(tmp_path, video):
    pipe = quiet(tiny_wan_checkpoint(tmp_path, experts=2))
    assert isinstance(pipe.unet, Experts) and pipe.unet.boundary == 0.5
    both = edit(pipe, video, inversion="ddim")
    one = VideoEditPipeline(pipe.vae, pipe.text_encoder, pipe.tokenizer, None, pipe.scheduler,
                            transformer=pipe.transformer)  # fmt: skip
    one.set_progress_bar_config(disable=True)
    assert not torch.allclose(both, edit(one, video, inversion="ddim"), atol=1e-4)
    pipe.transformer_2 = pipe.transformer
    assert torch.allclose(edit(pipe, video, inversion="ddim"),
                          edit(one, video, inversion="ddim"), atol=1e-6)  # fmt: skip


def test_components_may_be_replaced(wan_folder, video):
    pipe = VideoEditPipeline.from_pretrained(
        wan_folder, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0)
    )
    pipe.set_progress_bar_config(disable=True)
    assert not torch.allclose(edit(pipe, video), edit(quiet(wan_folder), video))
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    assert torch.equal(edit(pipe, video), edit(quiet(wan_folder), video))


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_frames", [1, 2, 5, 6, 8, 9])
def test_as_many_frames_come_out_as_go_in(wan, n_frames):
    video = torch.rand(n_frames, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert edit(wan, video).shape == video.shape
    inverted = wan.invert(video, SOURCE, 3, "ddim", return_inversion=True)
    assert len(inverted.latents) == n_latent_frames(wan.vae, n_frames)
    assert len(wan.reconstruct(inverted, SOURCE, 3)) == n_frames
    assert len(edit(wan, latents=inverted, num_inference_steps=3)) == n_frames


def test_latents_are_those_of_diffusers(wan, video):
    vae, clip = wan.vae, completed(wan.vae, video[:6])
    assert len(clip) == 9 and torch.equal(clip[5:], video[5:6].expand(4, -1, -1, -1))
    own = vae.encode(2 * clip.transpose(0, 1)[None] - 1).latent_dist.mode()
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in
                 (vae.config.latents_mean, vae.config.latents_std))  # fmt: skip
    z = wan.encode(video[:6])
    assert torch.allclose(z, ((own - mean) / std)[0].transpose(0, 1), atol=1e-6)
    assert n_pixel_frames(vae, len(z)) == 9 and len(wan.decode(z, n_pixel_frames=6)) == 6


def test_frames_that_do_not_fit_are_told(wan, video):
    wan.encode(video[:5], complete=False)
    with pytest.raises(InputError, match="6 frames.*1 frame and then 4.*give 5 or 9"):
        wan.encode(video[:6], complete=False)
    vae = tiny_wan_vae()
    assert [n_latent_frames(vae, n) for n in (1, 2, 5, 6, 9)] == [1, 3, 3, 5, 5]


# --- editing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wan", "ltx"])
def test_exact_inversion_returns_to_the_latents(kind, wan_folder, ltx_folder, video):
    pipe = quiet(wan_folder if kind == "wan" else ltx_folder)
    exact = ExactSettings(tolerance=1e-6, max_iterations=100)
    for attention in ("extended", "anchors"):
        errors = {}
        for method in (exact, "ddim"):
            inverted = pipe.invert(video, SOURCE, 4, method, attention, return_inversion=True)
            back = pipe(
                None, SOURCE, SOURCE, latents=inverted, num_inference_steps=4, guidance_scale=1.0,
                output_type="latent", inversion="ddim", attention=attention,
            ).frames[0]  # fmt: skip
            errors[method] = float((back - pipe.encode(video)).square().mean().sqrt())
        assert errors[exact] < 1e-4 and errors[exact] < 0.1 * errors["ddim"]


@pytest.mark.parametrize("attention", ["own", "first", "sparse_causal", "anchors"])
def test_policies_change_the_edit(wan, video, attention):
    native, found = edit(wan, video), edit(wan, video, attention=attention)
    assert found.isfinite().all() and not torch.allclose(found, native, atol=1e-6)


def test_equal_prompts_and_scales_leave_the_clip(wan, video):
    """FlowEdit's difference is zero, draw by draw; so is FlowAlign's."""
    z = wan.encode(video)
    for way in (DifferenceEdit(1.0, source_guidance=3.0), DifferenceEdit(1.0, zeta=0.01)):
        found = wan(video, SOURCE, SOURCE, inversion=way, num_inference_steps=4, guidance_scale=3.0,
                    generator=torch.Generator().manual_seed(0), output_type="latent")  # fmt: skip
        assert torch.allclose(found.frames[0], z, atol=1e-5)


def test_flow_edit_is_the_published_step(wan, video):
    """z_e += (s' - s) [v(z_tar, target) - v(z_src, source)], with z_tar = z_e + z_src - z_0."""
    found = edit(wan, video, inversion=DifferenceEdit(1.0, source_guidance=1.0),
                 guidance_scale=1.0, num_inference_steps=3, output_type="latent")  # fmt: skip
    generator, z_0 = torch.Generator().manual_seed(1), wan.encode(video)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(3)
    source, target = wan.encode_prompt([SOURCE]), wan.encode_prompt([TARGET])

    def velocity(z, t, text):
        x = z.transpose(0, 1)[None]
        return wan.transformer(x, t[None], text, return_dict=False)[0][0].transpose(0, 1)

    z_e, levels = z_0, scheduler.sigmas
    with torch.no_grad():
        for t, s, s_next in zip(scheduler.timesteps, levels, levels[1:], strict=False):
            noise = torch.randn(z_0.shape, generator=generator)
            z_src = (1 - s) * z_0 + s * noise
            dv = velocity(z_e + z_src - z_0, t, target) - velocity(z_src, t, source)
            z_e = z_e + (s_next - s) * dv
    assert torch.allclose(found, z_e, atol=1e-5)


@pytest.mark.parametrize("way", [
    dict(inversion="ddim", injection=Injection(attention=0.5, feature=0)),
    dict(inversion="ddim", injection=Injection(0, 0, values=0.5)),
    dict(inversion="ddim", negative_prompt=SOURCE), dict(inversion="bilateral"),
    dict(inversion="noise"), dict(inversion="flow_align"), dict(guidance_rescale=0.5),
    dict(inversion=NullTextSettings(n_iterations=2)), dict(inversion="motion_field"),
    dict(inversion=DifferenceEdit(0.8, 0.3, n_avg=2)),
])  # fmt: skip
def test_ways_of_an_edit_run_and_differ(wan, video, way):
    plain = edit(wan, video, inversion="ddim")
    found = edit(wan, video, **way)
    assert found.shape == video.shape and found.isfinite().all()
    assert not torch.allclose(found, plain, atol=1e-6)


def test_a_filter_along_latent_frames_runs(wan):
    video = torch.rand(17, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    from vala_research.diffusion.bilateral_inversion import BilateralInversion

    smooth = BilateralInversion(place="frames", kernel_size=3)
    found, plain = (wan.invert(video, SOURCE, 3, x) for x in (smooth, "ddim"))
    assert found.isfinite().all() and not torch.allclose(found, plain)


def test_estimates_count_latent_frames(wan, video):
    calls = []
    inner = wan.transformer.forward
    wan.transformer.forward = lambda x, *a, **k: calls.append(x.shape[0] * x.shape[2]) or inner(
        x, *a, **k
    )
    edit(wan, video, inversion="ddim")
    del wan.transformer.forward
    estimate = wan.estimate(len(video), 16, 16, 4, 3.0, "ddim")
    assert estimate.n_evaluations == sum(calls) and estimate.peak_bytes > 0


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("call, message", [
    (dict(injection=0.5, inversion="ddim"), "feature.*needs a UNet"),
    (dict(injection=Injection(0, 0, words=0.5), inversion="ddim"), "words.*UNet's cross-attention"),
    (dict(attention="token_flow"), "editor lays out the frames of a UNet"),
    (dict(attention="grid_shuffle"), "editor lays out the frames of a UNet"),
])  # fmt: skip
def test_what_needs_a_unet_is_refused_before_the_first_step(wan, video, call, message):
    with pytest.raises(InputError, match=message):
        edit(wan, video, **call)


def test_parts_of_stable_diffusion_are_refused(wan, tmp_path):
    for load in (wan.load_controlnet, wan.load_motion_adapter):
        with pytest.raises(InputError, match="made for a UNet.*WanTransformer3DModel"):
            load("miniature")
    with pytest.raises(InputError, match="made for a UNet"):
        wan.load_lora_weights({"x": torch.zeros(1)})
    with pytest.raises(InputError, match="made for a UNet"):
        wan.load_ip_adapter("nowhere", "", "x.safetensors")


def test_image_to_video_checkpoints_are_refused(wan):
    from tiny_models import tiny_wan

    wider = tiny_wan(in_channels=9)
    with pytest.raises(InputError, match="reads 9 channels.*image to video"):
        VideoEditPipeline(wan.vae, wan.text_encoder, wan.tokenizer, None, wan.scheduler,
                          transformer=wider)  # fmt: skip


def test_arrays_of_the_batch(wan, video):
    found = wan(video, TARGET, SOURCE, num_inference_steps=2, output_type="np",
                generator=torch.Generator().manual_seed(0)).frames  # fmt: skip
    assert isinstance(found, np.ndarray) and found.shape == (1, 7, 16, 16, 3)


def test_a_mask_of_words_keeps_what_lies_outside(wan, video):
    found = edit(wan, video, inversion=DifferenceEdit(1.0, mask="words"), output_type="latent")
    kept = (found == wan.encode(video)).all(1)
    assert found.shape == wan.encode(video).shape and 0.01 < kept.float().mean() < 0.95


def test_a_mask_of_pixel_frames_acts_on_their_latent_frames(wan, video):
    """The first frame alone, then pairs of frames: 7 frames are 9 when completed, and 5 latents."""
    mask = torch.zeros(7, 16, 16)
    mask[3:] = 1  # latent frame 2 holds pixel frames 3 and 4, counted from 0
    found = edit(wan, video, inversion=DifferenceEdit(1.0, mask=mask), output_type="latent")
    same = (found == wan.encode(video)).flatten(1).all(1)
    assert same.tolist() == [True, True, False, False, False]


# --- Stable Diffusion 3 ---------------------------------------------------------------------------


@pytest.mark.parametrize("has_t5", [True, False])
def test_stable_diffusion_3_samples_as_diffusers_does(has_t5, tmp_path):
    folder = tiny_sd3_checkpoint(tmp_path, has_t5)
    none = {} if has_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipe, theirs = quiet(folder), StableDiffusion3Pipeline.from_pretrained(folder, **none)
    theirs.set_progress_bar_config(disable=True)
    side = 2 * pipe.transformer.config.sample_size // 2
    z = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(3))
    ours = edit(pipe, latents=z, inversion="ddim", negative_prompt="a red", attention="own",
                output_type="latent")  # fmt: skip
    size = side * pipe.vae_scale_factor
    for frame, latents in zip(ours, z, strict=True):
        found = theirs(TARGET, negative_prompt="a red", latents=latents[None], height=size,
                       width=size, num_inference_steps=4, guidance_scale=3.0,
                       output_type="latent").images[0]  # fmt: skip
        assert torch.allclose(frame, found, atol=1e-4)


def test_stable_diffusion_3_edits_frames_that_meet_by_a_policy(tmp_path):
    pipe = quiet(tiny_sd3_checkpoint(tmp_path))
    assert pipe.edit_defaults.inversion == "flow_edit" and pipe.edit_defaults.guidance_scale == 13.5
    side = pipe.transformer.config.sample_size * pipe.vae_scale_factor
    video = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    found = {a: edit(pipe, video, attention=a) for a in ("own", "anchors", "extended")}
    assert all(x.shape == video.shape and x.isfinite().all() for x in found.values())
    assert not torch.allclose(found["own"], found["extended"], atol=1e-5)
    exact = ExactSettings(tolerance=1e-6, max_iterations=100)
    inverted = pipe.invert(video, SOURCE, 3, exact, "extended", return_inversion=True)
    z = pipe(None, SOURCE, SOURCE, latents=inverted, num_inference_steps=3, guidance_scale=1.0,
             output_type="latent", attention="extended").frames[0]  # fmt: skip
    assert (z - pipe.encode(video)).abs().max() < 1e-2
    pipe.save_pretrained(tmp_path / "again")
    assert torch.equal(edit(quiet(tmp_path / "again"), video), edit(pipe, video))
