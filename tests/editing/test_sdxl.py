"""Stable Diffusion XL: a tiny random checkpoint of its layout in the whole pipeline; 15 s."""

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from safetensors.torch import save_file
from tiny_models import tiny_motion_adapter, tiny_sdxl_checkpoint

from vala_research import InputError, VideoEditPipeline
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.injection import Injection
from vala_research.diffusion.motion import load_motion_unet
from vala_research.editing.fusion import Fusion
from vala_research.editing.source import Source
from vala_research.methods.fusion import FusionSchedule

SOURCE, TARGET = "a red circle", "a blue square"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sdxl_checkpoint(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def theirs(folder):
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def xl(folder):
    pipe = VideoEditPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def clip():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def edit(pipe, clip, **given):
    call = dict(num_inference_steps=2, guidance_scale=3.0, attention="own", output_type="pt")
    return pipe(clip, TARGET, SOURCE, **call | given).frames[0]


def test_text_is_read_as_by_diffusers(xl, theirs):
    ours = xl.encode_prompt([TARGET])
    text, _, pooled, _ = theirs.encode_prompt(TARGET, do_classifier_free_guidance=False)
    torch.testing.assert_close(ours[:, :-1], text)
    torch.testing.assert_close(ours[:, -1, : pooled.shape[1]], pooled)
    skipped, *_ = theirs.encode_prompt(TARGET, do_classifier_free_guidance=False, clip_skip=0)
    torch.testing.assert_close(xl.encode_prompt([TARGET], clip_skip=0)[:, :-1], skipped)
    with pytest.raises(InputError, match="clip_skip"):
        xl.encode_prompt([TARGET], clip_skip=1)


def test_motion_modules_act_with_one_pooled_text_per_clip(xl, clip):
    """Frames that meet by them differ from frames alone; with weight 0 they are frames alone."""
    motion = load_motion_unet(xl.unet, tiny_motion_adapter())
    alone = edit(xl, clip)
    halves, first = (FusionSchedule("constant", w, 0.0) for w in ((0.5, 0.5), (0.0, 1.0)))
    fused = edit(xl, clip, fusion=Fusion([Source(motion), Source()], halves))
    assert fused.shape == clip.shape and not torch.allclose(fused, alone, atol=1e-3)
    assert torch.equal(edit(xl, clip, fusion=Fusion([Source(motion), Source()], first)), alone)


@pytest.mark.parametrize("negative", [None, "a circle"])
def test_sampling_equals_diffusers(xl, theirs, negative):
    """One frame from the same noise; without a negative prompt, zeros stand for it."""
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    image = theirs(
        TARGET, negative_prompt=negative, latents=noise.clone(), num_inference_steps=3, height=32,
        width=32, guidance_scale=4.0, output_type="latent",
    ).images  # fmt: skip
    ours = xl(
        None, TARGET, SOURCE, negative, num_inference_steps=3, guidance_scale=4.0, latents=noise,
        attention="own", output_type="latent",
    ).frames[0]  # fmt: skip
    torch.testing.assert_close(ours, image, atol=1e-4, rtol=0)
    other = xl(
        None, TARGET, SOURCE, "" if negative is None else None, num_inference_steps=3,
        guidance_scale=4.0, latents=noise, attention="own", output_type="latent",
    ).frames[0]  # fmt: skip
    assert (other - image).abs().max() > 1e-3


def test_exact_inversion_returns_to_the_clip(xl, clip):
    inverted = xl.invert(clip, SOURCE, 3, "exact", "extended")
    trip = xl.decode(xl.encode(clip))
    again = xl.reconstruct(inverted, SOURCE, 3, "extended")
    assert (again - trip).abs().max() < 1e-3


def test_every_part_of_the_engine_takes_it(xl, clip):
    plain = edit(xl, clip)
    halves = FusionSchedule("constant", (0.5, 0.5), 0.0)
    for given in (
        dict(attention="anchors"), dict(attention="grid_shuffle"),
        dict(attention=None, host="token_flow"), dict(injection=1.0),
        dict(injection=Injection(0, 0, words=1.0)), dict(inversion="bilateral"),
        dict(inversion="null_text"),
        dict(fusion=Fusion([Source(guidance_scale=2.0), Source()], halves)),
    ):  # fmt: skip
        found = edit(xl, clip, **given)
        assert torch.isfinite(found).all() and not torch.equal(found, plain), given


def test_an_adapter_and_its_tokens_fit(xl, clip):
    plain = edit(xl, clip)
    settings = AdapterSettings(n_shared=2, uses_frame_tokens=False, interval=(0.0, 1.0))
    adapter = TemporalAdapter.attach(xl.unet, settings)
    try:
        xl.adapter = adapter
        assert not torch.equal(edit(xl, clip), plain)
    finally:
        xl.adapter = None
        adapter.detach()
    assert torch.equal(edit(xl, clip), plain)


def test_a_lora_changes_the_edit(xl, clip, tmp_path):
    plain, down = edit(xl, clip), torch.Generator().manual_seed(0)
    site = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    width = xl.unet.get_submodule(site).weight.shape
    tensors = {
        f"unet.{site}.lora_A.weight": torch.randn(2, width[1], generator=down),
        f"unet.{site}.lora_B.weight": torch.randn(width[0], 2, generator=down),
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.warns(UserWarning, match="second text encoder"):
        xl.load_lora_weights(tmp_path / "lora.safetensors")
    assert not torch.equal(edit(xl, clip), plain)
    xl.unload_lora_weights()
    assert torch.equal(edit(xl, clip), plain)
    with pytest.raises(InputError, match="two text encoders"):
        xl.load_textual_inversion({"<x>": torch.ones(16)})


def test_a_saved_pipeline_is_opened_by_both(xl, clip, tmp_path):
    xl.save_pretrained(tmp_path)
    again = VideoEditPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(edit(again, clip), edit(xl, clip)) and again.zeros_are_empty
    theirs = StableDiffusionXLPipeline.from_pretrained(tmp_path, add_watermarker=False)
    assert theirs.text_encoder_2 is not None
    ours = VideoEditPipeline(**theirs.components)
    ours.set_progress_bar_config(disable=True)
    assert torch.equal(edit(ours, clip), edit(xl, clip))


def test_what_does_not_fit_is_refused(xl, tiny, clip):
    parts = xl.components | {"text_encoder_2": None, "tokenizer_2": None}
    with pytest.raises(InputError, match="has one text encoder and needs two"):
        VideoEditPipeline(**parts)
    with pytest.raises(InputError, match="One of text_encoder_2 and tokenizer_2"):
        VideoEditPipeline(**xl.components | {"tokenizer_2": None})
    with pytest.raises(InputError, match="has one text encoder and needs two"):
        edit(tiny, clip, fusion=Fusion([Source(xl.unet), Source()]))
