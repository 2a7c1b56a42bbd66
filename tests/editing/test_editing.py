"""The pipeline: what it must reproduce, how it behaves among diffusers, what it refuses."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from tiny_models import N_TOKENS, tiny_unet

from vala_research import InputError, VideoEditPipeline
from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.fixed_point import QUICK, ExactSettings
from vala_research.diffusion.injection import Injection
from vala_research.diffusion.null_text import NullTextSettings
from vala_research.diffusion.patching import Patch, patched
from vala_research.methods.anchors import AnchorSettings, assign_anchors

SOURCE, TARGET = "a red circle", "a blue square"
N_STEPS = 3


@pytest.fixture(scope="module")
def exact(tiny, video):
    """The exact inversion of the video, with its trajectory."""
    return tiny.invert(video, SOURCE, N_STEPS, "exact", return_inversion=True)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * (a - b).double().square().mean().clamp_min(1e-30).log10().item()


def edit(pipe, video, prompt=TARGET, **kwargs) -> torch.Tensor:
    """The edited frames, f c h w."""
    settings = {"source_prompt": SOURCE, "num_inference_steps": N_STEPS, "output_type": "pt"}
    return pipe(video, prompt, **{**settings, **kwargs}).frames[0]


# Invariants.


@pytest.mark.parametrize("attention", ["own", "extended"])
def test_exact_inversion_reconstructs_the_vae_round_trip(tiny, video, attention):
    bound = tiny.decode(tiny.encode(video))
    results = {}
    for name, inversion in {"ddim": "ddim", "exact": "exact", "quick": QUICK}.items():
        z = tiny.invert(video, SOURCE, N_STEPS, inversion, attention)
        results[name] = psnr(tiny.reconstruct(z, SOURCE, N_STEPS, attention), bound)
    # fp32 with a tolerance of 1e-6 a step reaches about 120 dB, `QUICK` aims at 60; plain DDIM at
    # 3 steps is far off.
    assert results["exact"] > 90 > results["quick"] > 60 > results["ddim"], results


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 7.5])
def test_equal_prompts_reconstruct_at_any_guidance(tiny, video, exact, guidance_scale):
    settings = {"latents": exact, "guidance_scale": guidance_scale}
    same = edit(tiny, None, SOURCE, negative_prompt=SOURCE, **settings)
    # Negative-prompt inversion: guidance multiplies a difference of zero.
    assert psnr(same, tiny.decode(tiny.encode(video))) > 80
    if guidance_scale > 1:
        other = edit(tiny, None, SOURCE, **settings)  # the empty prompt
        assert psnr(other, same) < 80


def test_full_injection_with_equal_prompts_is_the_source(tiny, video, exact):
    same = edit(tiny, None, SOURCE, negative_prompt=SOURCE, latents=exact, injection=1.0)
    assert psnr(same, tiny.decode(tiny.encode(video))) > 80


def test_injection_pulls_towards_the_source_and_zero_is_off(tiny, exact):
    plain = edit(tiny, None, latents=exact)
    assert torch.equal(plain, edit(tiny, None, latents=exact, injection=0.0))
    assert torch.equal(plain, edit(tiny, None, latents=exact.latents))
    for injection in (1.0, Injection(attention=1.0, feature=0.0), Injection(0.0, 1.0)):
        assert not torch.allclose(plain, edit(tiny, None, latents=exact, injection=injection))
    # Without a trajectory the source branch samples itself; from an exact inversion that is the
    # same.
    stored = edit(tiny, None, latents=exact, injection=1.0)
    assert psnr(stored, edit(tiny, None, latents=exact.latents, injection=1.0)) > 80


def test_guidance_is_linear_between_its_ends(tiny, video):
    z = tiny.invert(video, SOURCE, 1)
    ends = {
        w: edit(
            tiny, None, latents=z, num_inference_steps=1, guidance_scale=w, output_type="latent"
        )
        for w in (0.0, 0.5, 1.0, 2.0, 3.0)
    }
    # One step is affine in the prediction: 3 lies on the line through 1 and 2.
    line = ends[1.0] + 2 * (ends[2.0] - ends[1.0])
    assert torch.allclose(ends[3.0], line, atol=1e-4) and not torch.equal(ends[2.0], ends[1.0])
    # As in diffusers 1 or less is no guidance: the prompt alone, as distilled models want it.
    assert torch.equal(ends[0.0], ends[1.0]) and torch.equal(ends[0.5], ends[1.0])


def test_chunks_do_not_change_an_edit(tiny, video):
    whole, parts = (edit(tiny, video, injection=0.5, frames_per_chunk=n) for n in (None, 1))
    assert psnr(whole, parts) > 80  # fp32 round-off, carried through all network calls


def test_same_inputs_same_edit_and_other_prompt_other_edit(tiny, video):
    first = edit(tiny, video, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, edit(tiny, video, generator=[torch.Generator().manual_seed(2)]))
    assert not torch.allclose(first, edit(tiny, video, "a grey square"))


def test_estimate_counts_the_evaluations_that_are_made(tiny, video, monkeypatch):
    from vala_research.diffusion import backbone

    made = []
    unpatched = backbone.Backbone.__call__

    def spy(self, z, *args, **kwargs):
        made.append(z.shape[0] * z.shape[1])
        return unpatched(self, z, *args, **kwargs)

    monkeypatch.setattr(backbone.Backbone, "__call__", spy)
    for kwargs in (
        {},
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0, "injection": 0.5},
        {"injection": Injection(0.25, 1.0)},
    ):
        made.clear()
        edit(tiny, video, **kwargs)
        estimate = tiny.estimate(3, 16, 24, N_STEPS, **kwargs)
        assert estimate.n_evaluations == sum(made)
    assert tiny.estimate(3, 16, 24, N_STEPS, inversion="exact").n_evaluations > sum(made)
    never = NullTextSettings(n_iterations=2, early_stop=0.0)
    made.clear()
    edit(tiny, video, inversion=never)
    estimate = tiny.estimate(3, 16, 24, N_STEPS, inversion=never)
    assert estimate.n_evaluations == sum(made)


def test_estimated_memory_grows_with_size_and_is_bounded_by_chunks(tiny):
    small, long, large = (
        tiny.estimate(*shape).peak_bytes for shape in [(8, 64, 64), (64, 64, 64), (8, 512, 512)]
    )
    assert small < long < large
    chunked = tiny.estimate(64, 512, 512, frames_per_chunk=1).peak_bytes
    assert chunked < tiny.estimate(64, 512, 512, frames_per_chunk=64).peak_bytes * 0.7


# Behaviour of a diffusers pipeline.


def test_output_types(tiny, video):
    tensor = tiny(video, TARGET, SOURCE, num_inference_steps=2, output_type="pt").frames
    assert tensor.shape == (1, *video.shape) and 0 <= tensor.min() and tensor.max() <= 1
    array = tiny(video, TARGET, SOURCE, num_inference_steps=2, output_type="np").frames
    assert array.shape == (1, 3, 16, 24, 3)
    assert np.allclose(array[0], tensor[0].permute(0, 2, 3, 1).numpy())
    (images,) = tiny(video, TARGET, SOURCE, num_inference_steps=2).frames
    assert (
        len(images) == 3 and isinstance(images[0], PIL.Image.Image) and images[0].size == (24, 16)
    )
    latents = tiny(video, TARGET, SOURCE, num_inference_steps=2, output_type="latent").frames
    assert torch.allclose(tiny.decode(latents[0]), tensor[0])
    tuple_of_one = tiny(
        video, TARGET, SOURCE, num_inference_steps=2, output_type="pt", return_dict=False
    )
    assert isinstance(tuple_of_one, tuple) and torch.equal(tuple_of_one[0], tensor)


def test_every_form_of_video_gives_the_same_frames(tiny, video):
    pixels = (video * 255).round().to(torch.uint8)
    last = pixels.permute(0, 2, 3, 1).numpy()
    images = [PIL.Image.fromarray(frame) for frame in last]
    expected = tiny.encode(pixels.float() / 255)
    clip = SimpleNamespace(frames=pixels.float() / 255, fps=8.0)
    for form in (pixels, last, pixels.numpy(), last.astype("float32") / 255, images, clip):
        # fp32 division by 255 in numpy and torch may differ in the last bit.
        assert torch.allclose(tiny.encode(form), expected, atol=1e-5)


def test_callback_sees_every_step_and_may_change_or_stop_it(tiny, video):
    seen = []

    def watch(pipe, i, t, tensors):
        seen.append((i, t, sorted(tensors)))
        return tensors

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    plain = edit(tiny, video, output_type="latent")
    watched = edit(tiny, video, output_type="latent", callback_on_step_end=watch,
                   callback_on_step_end_tensor_inputs=names)  # fmt: skip
    assert torch.equal(plain, watched)
    assert [s[0] for s in seen] == list(range(N_STEPS)) and seen[0][1] > seen[-1][1]
    assert seen[0][2] == sorted(names)
    zeros = edit(tiny, video, output_type="latent",
                 callback_on_step_end=lambda p, i, t, x: {"latents": 0 * x["latents"]})  # fmt: skip
    assert zeros.abs().max() == 0

    def stop(pipe, i, t, tensors):
        seen.append(i)
        pipe._interrupt = True
        return tensors

    seen.clear()
    edit(tiny, video, callback_on_step_end=stop)
    assert seen == [0]


def test_saves_and_loads_and_opens_in_plain_diffusers(tiny, video, tmp_path):
    tiny.save_pretrained(tmp_path / "saved")
    again = VideoEditPipeline.from_pretrained(str(tmp_path / "saved"))
    again.set_progress_bar_config(disable=True)
    assert torch.equal(edit(again, video), edit(tiny, video))
    plain = StableDiffusionPipeline.from_pretrained(
        tmp_path / "saved",
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    plain.set_progress_bar_config(disable=True)
    assert plain(TARGET, num_inference_steps=1, height=16, width=16).images
    reused = VideoEditPipeline(**tiny.components)
    assert isinstance(reused, DiffusionPipeline) and reused.unet is tiny.unet


def test_sampling_is_plain_diffusers_sampling(tiny, checkpoint):
    """One frame from the same noise, guided: what StableDiffusionPipeline itself makes."""
    plain = StableDiffusionPipeline.from_pretrained(
        checkpoint, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    plain.set_progress_bar_config(disable=True)
    z = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    kwargs = {"num_inference_steps": 5, "guidance_scale": 4.0, "latents": z}
    theirs = plain(TARGET, negative_prompt="red", height=16, width=24, output_type="pt", **kwargs)
    ours = tiny(None, TARGET, negative_prompt="red", output_type="pt", **kwargs).frames[0]
    assert torch.allclose(ours, theirs.images, atol=1e-5)  # fp32 solver on both sides


def test_half_precision_network_with_a_float32_solver(checkpoint, tiny, video):
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint), dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.dtype == pipe.vae.dtype == torch.bfloat16
    found = pipe.invert(video, SOURCE, N_STEPS, "exact", return_inversion=True)
    assert found.latents.dtype == torch.float32
    # bf16 keeps 8 bits: three digits of the fp32 edit at best.
    assert psnr(edit(pipe, video), edit(tiny, video)) > 25
    assert pipe.to(torch.float32).unet.dtype == torch.float32


def test_progress_bars_can_be_shown(checkpoint, video, capsys):
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    capsys.readouterr()
    edit(pipe, video)
    assert f"{N_STEPS}/{N_STEPS}" in capsys.readouterr().err


# Bad input: one sentence that names the input, the problem and the remedy.


BAD_ARGUMENTS = {
    "attention": ("dense", "attention 'dense'.*own, first, sparse_causal, extended"),
    "inversion": ("null", "inversion 'null'.*ddim, exact"),
    "num_inference_steps": (0, "num_inference_steps.*1 to 1000"),
    "guidance_scale": (-1.0, "guidance_scale is -1.0.*at least 0"),
    "injection": (1.5, "injection.*from 0 to 1"),
    "output_type": ("gif", "output_type 'gif'.*pil, np, pt, latent"),
    "generator": ([torch.Generator()] * 2, "list of 2"),
    "latents": (torch.zeros(1, 3, 4, 4), "latents have shape.*4 x height"),
    "callback_on_step_end_tensor_inputs": (["noise"], "noise.*latents"),
    "frames_per_chunk": (0, "frames_per_chunk is 0"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(tiny, video, name):
    value, message = BAD_ARGUMENTS[name]
    with pytest.raises(InputError, match=message) as caught:
        edit(tiny, video, **{name: value})
    assert "\n" not in str(caught.value)


def test_nan_and_infinite_guidance_are_refused(tiny, video):
    for value in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="guidance_scale"):
            edit(tiny, video, guidance_scale=value)


BAD_VIDEOS = {
    "no frames": (torch.zeros(0, 3, 16, 16), "empty"),
    "empty list": ([], "empty list"),
    "four channels": (torch.zeros(2, 4, 16, 16), "4 channels"),
    "grey array": (np.zeros((2, 16, 16, 1), "uint8"), "1 channels"),
    "one image": (torch.zeros(3, 16, 16), "shape"),
    "odd size": (torch.zeros(2, 3, 17, 16), "17 pixels high.*multiples of 2.*16 high"),
    "range": (torch.full((1, 3, 16, 16), 200.0), r"200.*\[0, 1\]"),
    "nan": (torch.full((1, 3, 16, 16), float("nan")), "finite"),
    "path": ("clip.mp4", "is a str"),
    "strings": (["a.png"], "list of str"),
    "sizes": ([PIL.Image.new("RGB", (16, 16)), PIL.Image.new("RGB", (8, 8))], "different sizes"),
    "nothing": (None, "NoneType"),
}


@pytest.mark.parametrize("name", BAD_VIDEOS)
def test_bad_videos(tiny, name):
    value, message = BAD_VIDEOS[name]
    with pytest.raises(InputError, match=message) as caught:
        edit(tiny, value)
    assert "\n" not in str(caught.value)


def test_inversion_of_other_steps_is_refused(tiny, video):
    found = tiny.invert(video, SOURCE, 2, return_inversion=True)
    with pytest.raises(InputError, match="2 steps.*edit has 3"):
        edit(tiny, None, latents=found)


def test_an_edit_uses_the_anchors_of_its_inversion(tiny, video, monkeypatch):
    two = AnchorSettings(n_anchors=2)
    found = tiny.invert(video, SOURCE, N_STEPS, attention=two, return_inversion=True)
    alone = edit(tiny, None, latents=found, attention="anchors")
    one = AnchorSettings(n_anchors=1)
    by_settings = edit(tiny, video, latents=found, attention=one)
    assert not torch.allclose(alone, by_settings)
    given = assign_anchors(tiny.encode(video).flatten(2).mT, one)
    assert torch.equal(by_settings, edit(tiny, video, latents=found, attention=given))
    # Another clip beside the inversion is not even encoded.
    monkeypatch.setattr(VideoEditPipeline, "_encode", lambda *_: pytest.fail("encoded the clip"))
    assert torch.equal(alone, edit(tiny, 1 - video, latents=found, attention="anchors"))


def test_long_prompts_and_unknown_words_warn(tiny):
    long = "a red circle moves over the grey background slowly " + "blue " * 5 + "square"
    with pytest.warns(UserWarning, match=f"reads {N_TOKENS - 2}: cut off '.*square'"):
        tiny.encode_prompt([long])
    with pytest.warns(UserWarning, match="'elephant'.*'a red elephant'"):
        tiny.encode_prompt(["a red elephant"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.encode_prompt([SOURCE, "", "A Blue square, over the grey background."])


def test_nan_in_the_network_or_the_vae_is_named(checkpoint, video):
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="VAE.*float32"):
        edit(pipe, video)
    pipe.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"step t=\d+ in torch.float32"):
        edit(pipe, video)


def test_inpainting_unets_are_refused(tiny):
    parts = {**tiny.components, "unet": tiny_unet(in_channels=9)}
    with pytest.raises(InputError, match="reads 9 channels"):
        VideoEditPipeline(**parts)


def test_unreadable_weights_are_refused(checkpoint, tmp_path):
    import shutil

    folder = shutil.copytree(checkpoint, tmp_path / "cut")
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded.*fetch it again") as caught:
        VideoEditPipeline.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)


# Threads.


def test_two_threads_on_one_pipeline_take_turns(tiny, video):
    """Each edits as if it were alone, and the UNet is restored."""
    calls = [dict(attention="extended", injection=0.5), dict(attention="own")]

    alone = [edit(tiny, video, **call) for call in calls]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda call: edit(tiny, video, **call), calls))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not any("forward" in m.__dict__ for m in tiny.unet.modules())


def test_threads_that_share_a_network_take_turns(tiny, video):
    """Also without a pipeline: a patch of one thread never reaches the call of another."""
    unet, entered, left = tiny.unet, threading.Event(), []
    z, text = torch.zeros(1, 2, 4, 8, 8), torch.zeros(1, 12, 16)
    plain = Backbone(unet)(z, 1, text)
    doubled = Patch(
        lambda name, _: name == "conv_out", forward=lambda _n, _m, old: lambda x: 2 * old(x)
    )

    def call() -> None:
        entered.wait()
        left.append(Backbone(unet)(z, 1, text))

    thread = threading.Thread(target=call)
    thread.start()
    with patched(unet, doubled):
        entered.set()
        thread.join(0.2)
        assert thread.is_alive() and torch.equal(Backbone(unet)(z, 1, text), 2 * plain)
    thread.join()
    assert torch.equal(left[0], plain)


# The miniature: trained weights, so numbers are about quality.


def test_miniature_inverts_exactly(pipe):
    scene = torch.zeros(2, 3, 64, 64)
    scene[:, 2] = 0.5
    scene[0, 0, 20:44, 16:40] = scene[1, 0, 20:44, 20:44] = 0.9
    bound = pipe.decode(pipe.encode(scene))
    prompt = ""
    z = pipe.invert(scene, prompt, 10, ExactSettings(max_iterations=60))
    # Plain DDIM reaches about 40 dB, so a looser gate would test nothing.
    assert psnr(pipe.reconstruct(z, prompt, 10), bound) >= 60
