"""A plan makes its video model once per pipeline, and keeps no pipeline in memory."""

import gc
import warnings
import weakref
from dataclasses import replace

import torch
from diffusers import ControlNetModel
from tiny_models import tiny_motion_adapter, tiny_unet

from vala_research import VideoEditPipeline
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.editing.plan import Plan
from vala_research.evaluation.benchmark import edited_frames
from vala_research.evaluation.cases import ClipCase, Material
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.methods.fusion import FusionSchedule


def test_models_are_made_once_and_die_with_their_pipeline(checkpoint, tmp_path):
    tiny_motion_adapter().save_pretrained(tmp_path)
    plan = Plan(motion=str(tmp_path))
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    video = plan.built(pipe)[0].unet
    assert plan.built(pipe)[0].unet is video  # made once

    pipe.unet = tiny_unet(1)
    assert plan.built(pipe)[0].unet is not video  # of the UNet that the pipeline has now

    networks = [weakref.ref(network) for network in (pipe.unet, video)]
    del pipe, video
    gc.collect()
    assert [network() for network in networks] == [None, None]


def test_every_source_has_the_controlnet_and_the_adapter(tiny, video, tmp_path):
    """Both act in the video model of a plan, with the pipeline's weights, and leave with it."""
    tiny_motion_adapter().save_pretrained(tmp_path / "motion")
    control = ControlNetModel.from_unet(tiny.unet, conditioning_embedding_out_channels=(8, 8))
    for p in control.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    control.save_pretrained(tmp_path / "control")
    everywhere = AdapterSettings(uses_frame_tokens=False, interval=(0, 1))
    adapter = TemporalAdapter.attach(tiny.unet, everywhere)
    for name, p in adapter.lora_parameters():
        p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    adapter.save_pretrained(tmp_path / "adapter")
    adapter.detach()
    alone = EditSetting(fusion=Plan(schedule=FusionSchedule(tau=1.0), motion=f"{tmp_path}/motion"),
                        num_inference_steps=2)  # fmt: skip
    settings = {
        "alone": alone,
        "adapter": replace(alone, adapter=f"{tmp_path}/adapter"),
        "ControlNet": replace(alone, controlnet=f"{tmp_path}/control"),
        "alone again": alone,
    }
    case = ClipCase("edit", 0, tmp_path, "a", "b")
    material = Material(video, torch.zeros(2, 2, 16, 24), torch.ones(2, 1, 16, 24, dtype=bool))
    object.__setattr__(case, "material", lambda *_: material)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none says that the adapter does not reach a source
        edits = edited_frames(tiny, case, settings, 3, 16)
    assert torch.equal(edits["alone"], edits["alone again"])
    for name in ("adapter", "ControlNet"):
        assert (edits[name] - edits["alone"]).abs().max() > 1e-4, name

    tiny.load_adapter(tmp_path / "adapter")
    (source, _) = alone.fusion.built(tiny)
    ours, theirs = (dict(a.lora_parameters()) for a in (tiny.adapter, source.adapter))
    assert ours and all(theirs[name].data_ptr() == p.data_ptr() for name, p in ours.items())
    tiny.unload_adapter()
