"""Motion modules of a pipeline, and a checkpoint that brings all its extras; tiny, about 10 s."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, StableDiffusionPipeline
from diffusers import UNet2DConditionModel as ImageUNet
from test_control import strong
from tiny_models import tiny_motion_adapter

from vala_research import InputError, VideoEditPipeline
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.controlnet import ControlSettings
from vala_research.diffusion.motion import load_motion_unet
from vala_research.editing.defaults import EditDefaults
from vala_research.editing.extras import BARE
from vala_research.editing.fusion import Fusion
from vala_research.editing.source import Source
from vala_research.methods.fusion import FusionSchedule

WORDS = ("a blue square", "a red circle")
MILD = dict(num_inference_steps=2, guidance_scale=2.0)
LORA = AdapterSettings(rank=2, n_shared=0, uses_frame_tokens=False, interval=(0, 1))


def edit(pipe, video, **given):
    return pipe(video, *WORDS, output_type="pt", **given).frames[0]


def opened(folder, **given):
    pipe = VideoEditPipeline.from_pretrained(folder, **given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def host(checkpoint):
    return opened(checkpoint)


@pytest.fixture(scope="module")
def lora(checkpoint, tmp_path_factory):
    """Folder of a temporal adapter that changes much."""
    unet = VideoEditPipeline.from_pretrained(str(checkpoint)).unet
    adapter = TemporalAdapter.attach(unet, LORA, generator=torch.Generator().manual_seed(0))
    for p in adapter.trainable():
        p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    adapter.save_pretrained(folder := tmp_path_factory.mktemp("lora"))
    return folder


@pytest.fixture(scope="module")
def full(checkpoint, lora, tmp_path_factory):
    """Folder of a checkpoint with a ControlNet, motion modules and a temporal adapter."""
    pipe = opened(checkpoint)
    pipe.controlnet = strong(pipe.unet)
    pipe.edit_defaults = EditDefaults(2, 2.0, control=ControlSettings(in_inversion=False))
    pipe.load_motion_adapter(tiny_motion_adapter())
    pipe.load_adapter(lora)
    pipe.save_pretrained(folder := tmp_path_factory.mktemp("full"))
    return folder


def test_edits_use_the_motion_modules_until_they_are_unloaded(host, video):
    plain, image = edit(host, video, **MILD), host.unet
    host.load_motion_adapter(tiny_motion_adapter())
    moved = edit(host, video, **MILD)
    assert host.edit_defaults.attention == "own" and host.image_unet is image
    assert {id(p) for p in image.parameters()} <= {id(p) for p in host.unet.parameters()}
    assert (moved - plain).abs().max() > 0.01

    # The same video model as the only one that counts in a fusion.
    video_model = Source(load_motion_unet(image, tiny_motion_adapter()))
    host.unload_motion_adapter()
    alone = Fusion([video_model, Source()], FusionSchedule("constant", (1.0, 0.0)))
    torch.testing.assert_close(edit(host, video, fusion=alone, **MILD), moved, atol=1e-5, rtol=0)
    assert host.unet is image and host.edit_defaults == EditDefaults()
    assert torch.equal(edit(host, video, **MILD), plain)


def test_attention_of_a_call_acts_beside_motion_modules(host, video):
    host.load_motion_adapter(tiny_motion_adapter())
    own = edit(host, video, **MILD)
    assert torch.equal(edit(host, video, attention="own", **MILD), own)
    assert (edit(host, video, attention="first", **MILD) - own).abs().max() > 1e-4


def test_a_short_clip_is_edited_without_the_motion_modules(host, video):
    """motion_from frames and more have them. An adapter and a ControlNet act all the same."""
    plain = edit(host, video, attention="own", **MILD)
    host.load_motion_adapter(tiny_motion_adapter())
    moved = edit(host, video, **MILD)
    host.edit_defaults = replace(host.edit_defaults, motion_from=len(video))
    assert torch.equal(edit(host, video, **MILD), moved)
    host.edit_defaults = replace(host.edit_defaults, motion_from=len(video) + 1)
    torch.testing.assert_close(edit(host, video, **MILD), plain, atol=1e-5, rtol=0)
    known = host.invert(video, WORDS[1], 2, "exact", "own", return_inversion=True)
    found = host.reconstruct(known, WORDS[1], 2)
    torch.testing.assert_close(found, host.decode(host.encode(video)), atol=1e-4, rtol=0)
    assert (edit(host, video, fusion=alone(host), **MILD) - plain).abs().max() > 0.01


def alone(pipe) -> Fusion:
    """A video model of the caller's own, whatever the clip's length is."""
    video = Source(load_motion_unet(pipe.image_unet, tiny_motion_adapter()))
    return Fusion([video, Source()], FusionSchedule("constant", (1.0, 0.0)))


def test_an_inversion_is_undone_by_the_same_network(host, video):
    host.load_motion_adapter(tiny_motion_adapter())
    known = host.invert(video, WORDS[1], 3, "exact", "own", return_inversion=True)
    found = host.reconstruct(known, WORDS[1], 3)
    torch.testing.assert_close(found, host.decode(host.encode(video)), atol=1e-4, rtol=0)
    host.unload_motion_adapter()
    assert (host.reconstruct(known, WORDS[1], 3) - found).abs().max() > 0.01


def test_a_long_clip_goes_in_windows(host, video):
    adapter = tiny_motion_adapter()
    limit = adapter.config.motion_max_seq_length
    host.load_motion_adapter(adapter)
    long = video.repeat(limit // 3 + 2, 1, 1, 1)[: limit + 2]
    assert edit(host, long, **MILD).shape == long.shape
    seen = []
    hook = host.unet.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[2]))
    edit(host, long, num_inference_steps=1, guidance_scale=1)
    hook.remove()
    counted = host.estimate(len(long), 16, 24, num_inference_steps=1, guidance_scale=1)
    assert counted.n_evaluations == sum(seen) == 4 * limit  # two windows, there and back
    with pytest.raises(InputError, match="windows of .* frames, and its attention"):
        edit(host, long, attention="anchors", **MILD)


def test_a_checkpoint_brings_all_its_extras(full, checkpoint, lora, video):
    brought = edit(opened(full), video)
    host = opened(checkpoint)
    host.load_motion_adapter(MotionAdapter.from_pretrained(full / "motion_adapter"))
    host.load_adapter(lora)
    host.load_controlnet(full / "controlnet", in_inversion=False)
    torch.testing.assert_close(edit(host, video, **MILD), brought, atol=1e-6, rtol=0)

    # Each may be left out.
    for part in BARE:
        assert (edit(opened(full, **{part: None}), video) - brought).abs().max() > 1e-3
    bare = opened(full, **BARE)
    assert isinstance(bare.unet, ImageUNet) and bare.edit_defaults.attention == "anchors"
    assert torch.equal(edit(bare, video), edit(opened(checkpoint), video, **MILD))


def test_what_was_saved_is_loaded_again(full, video, tmp_path):
    pipe = opened(full)
    before = edit(pipe, video)
    pipe.save_pretrained(tmp_path / "again")
    assert torch.equal(edit(pipe, video), before)
    assert torch.equal(edit(opened(tmp_path / "again"), video), before)
    values = json.loads((tmp_path / "again" / "edit_defaults.json").read_text())
    assert values["brings"] == ["motion_adapter", "temporal_adapter"]

    # Plain diffusers sees the parts of Stable Diffusion, and nothing of ours in them.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = StableDiffusionPipeline.from_pretrained(tmp_path / "again", safety_checker=None)
    assert not any("lora" in name for name, _ in plain.unet.named_parameters())
    motion = MotionAdapter.from_pretrained(tmp_path / "again" / "motion_adapter")
    AnimateDiffPipeline.from_pipe(plain, motion_adapter=motion)

    # What was taken off is not brought any more.
    pipe.unload_adapter()
    pipe.unload_motion_adapter()
    pipe.unload_controlnet()
    pipe.save_pretrained(tmp_path / "again")
    assert "brings" not in json.loads((tmp_path / "again" / "edit_defaults.json").read_text())
    assert opened(tmp_path / "again").image_unet is None


def test_a_pipeline_of_another_s_parts_edits_alike(full, video):
    pipe = opened(full)
    again = VideoEditPipeline.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(edit(again, video), edit(pipe, video))


def test_extras_of_one_s_own(full, checkpoint, lora, video):
    alone = opened(checkpoint, motion_adapter=tiny_motion_adapter())
    assert alone.edit_defaults.attention == "own"  # as after load_motion_adapter
    given = opened(full, motion_adapter=tiny_motion_adapter(), adapter=lora)
    assert torch.isfinite(edit(given, video)).all() and given.image_unet is not None


def test_what_would_be_lost_is_refused(full, host, lora):
    pipe = opened(full)
    for change in (pipe.unload_motion_adapter, lambda: pipe.load_motion_adapter("miniature")):
        with pytest.raises(InputError, match=r"pipe.unload_adapter\(\)"):
            change()
    with pytest.raises(InputError, match="pipe.image_unet"):
        load_motion_unet(pipe.unet, tiny_motion_adapter())
    host.unload_motion_adapter()  # nothing to unload
    with pytest.raises(InputError, match="no-such-folder"):
        host.load_motion_adapter("no-such-folder")
    assert host.image_unet is None and isinstance(host.unet, ImageUNet)
