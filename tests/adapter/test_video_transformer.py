"""The temporal adapter in a video transformer of Wan's class, tiny and random. Costs 20 s."""

import json

import pytest
import torch
from diffusers import WanPipeline
from tiny_models import tiny_ltx, tiny_unet
from tiny_videos import tiny_wan_checkpoint

from vala_research import InputError, VideoEditPipeline
from vala_research.adapter.loss import Batch, LossSettings, Noising, adapter_loss
from vala_research.adapter.settings import AdapterSettings, lora_config
from vala_research.adapter.temporal_adapter import (
    TemporalAdapter,
    hook_sites,
    temporal_features,
)
from vala_research.adapter.training import TrainingSettings, train
from vala_research.diffusion.experts import Experts
from vala_research.diffusion.injection import attention_patches
from vala_research.diffusion.patching import patched

SETTINGS = AdapterSettings(uses_frame_tokens=False, n_shared=2, interval=(0.0, 1.0), scale=1.0)
LOSS = LossSettings(attention="extended", lambda_diffusion=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_wan_checkpoint(tmp_path_factory.mktemp("wan"))


@pytest.fixture
def wan(folder):
    pipe = VideoEditPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clips(n: int = 2, n_frames: int = 9) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"frames": torch.rand(n_frames, 3, 16, 16, generator=generator), "caption": "a red circle"}
        for _ in range(n)
    ]


def edit(pipe, **kwargs) -> torch.Tensor:
    settings = dict(num_inference_steps=3, guidance_scale=2.0, inversion="ddim", output_type="pt")
    return pipe(clips(1)[0]["frames"], "a blue circle", "a red circle", **settings | kwargs).frames


def test_the_lora_goes_into_all_attention_of_the_blocks(wan):
    names = lora_config(wan.unet, SETTINGS).target_modules
    assert len(names) == 2 * 2 * 4 and "blocks.1.attn2.to_out.0" in names
    first = lora_config(wan.unet, AdapterSettings(blocks="down")).target_modules
    assert first == {n for n in names if n.startswith("blocks.0.")}
    assert "transformer_blocks.0.attn1.to_q" in lora_config(tiny_ltx(), SETTINGS).target_modules
    assert hook_sites(wan.unet) == ["blocks.1.attn1"]


def test_the_temporal_loss_reads_latent_frames_of_each_clip(wan):
    """Features of clip g, frame f, whatever else is in the batch."""
    adapter = TemporalAdapter.attach(wan.unet, SETTINGS, generator=torch.Generator().manual_seed(0))
    z = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    text = wan.encode_prompt(["a red circle", "a blue square"])
    t = torch.tensor([[600] * 3, [800] * 3])
    noising = Noising(t, torch.randn(z.shape, generator=torch.Generator().manual_seed(2)), True)
    both = adapter_loss(adapter, wan.scheduler, Batch(z, text), noising, LOSS)
    one = [
        adapter_loss(adapter, wan.scheduler, Batch(z[i : i + 1], text[i : i + 1]),
                     Noising(t[i : i + 1], noising.eps[i : i + 1], True), LOSS)
        for i in range(2)
    ]  # fmt: skip
    for name in ("diffusion", "temporal", "similarity"):
        mean = (one[0][name] + one[1][name]) / 2
        assert torch.allclose(both[name], mean, atol=1e-6), name
    # The error is that of the velocity n - z_0 at z_s = (1 - s) z_0 + s n.
    s = torch.tensor([0.6, 0.8]).view(2, 1, 1, 1, 1)
    z_s = torch.lerp(z, noising.eps, s)
    rows = torch.cat([adapter.condition(x[None])[0] for x in text])
    out = wan.transformer(z_s.transpose(1, 2), 1000 * s.flatten(), rows, return_dict=False)[0]
    expected = (out.transpose(1, 2) - (noising.eps - z)).square().mean()
    assert torch.allclose(both["diffusion"], expected, atol=1e-5)
    patches = attention_patches(wan.unet, "extended", 1, 3, size=(8, 8))
    with patched(wan.unet, *patches), temporal_features(wan.unet) as features:
        wan.transformer(z_s[:1].transpose(1, 2), 1000 * s.flatten()[:1], rows[:1])
    assert features["blocks.1.attn1"].shape == (1, 3 * 16, 24)


def test_training_saving_and_editing(wan, folder, tmp_path):
    before = edit(wan)
    adapter = TemporalAdapter.attach(wan.unet, SETTINGS, generator=torch.Generator().manual_seed(0))
    settings = TrainingSettings(max_steps=4, batch_size=2, learning_rate=1e-2, loss=LOSS)
    train(wan, adapter, clips(), tmp_path / "adapter", settings)
    adapter.detach()
    assert torch.equal(edit(wan), before)

    # It acts in edits, by its interval and scale; its tokens are read before the text.
    wan.load_adapter(tmp_path / "adapter")
    found = edit(wan)
    assert found.isfinite().all() and not torch.allclose(found, before, atol=1e-4)
    off = edit(wan, adapter_scale=0.0, adapter_interval=(0.0, 0.0))
    assert torch.allclose(off, before, atol=1e-6)
    assert edit(wan, inversion="flow_edit").isfinite().all()

    # Plain diffusers loads its LoRA, with alpha.
    weights = {k: v for k, v in wan.adapter.lora_parameters()}
    assert any(v.abs().max() > 0 for k, v in weights.items() if "lora_B" in k)
    plain = WanPipeline.from_pretrained(folder)
    plain.load_lora_weights(tmp_path / "adapter")
    z = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    text = wan.encode_prompt(["a red circle"])
    with torch.no_grad(), wan.adapter.active(True):
        ours = wan.transformer(z, torch.tensor([500.0]), text, return_dict=False)[0]
        theirs = plain.transformer(z, torch.tensor([500.0]), text, return_dict=False)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)
    with torch.no_grad(), wan.adapter.active(False):
        bare = wan.transformer(z, torch.tensor([500.0]), text, return_dict=False)[0]
    assert not torch.allclose(bare, theirs, atol=1e-4)


def test_an_adapter_of_another_backbone_is_refused(wan, tmp_path):
    adapter = TemporalAdapter.attach(wan.unet, SETTINGS)
    adapter.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter.json").read_text())["backbone"]["num_layers"] == 2
    adapter.detach()
    with pytest.raises(InputError, match="another backbone"):
        TemporalAdapter.load(tmp_path, tiny_unet())


def test_what_a_video_transformer_cannot_have_is_refused(wan, tmp_path):
    with pytest.raises(InputError, match="one prompt for all frames.*uses_frame_tokens=False"):
        TemporalAdapter.attach(wan.unet, AdapterSettings(), 8)
    with pytest.raises(InputError, match="two transformers"):
        TemporalAdapter.attach(Experts(wan.unet, wan.unet, 0.5), SETTINGS)
    adapter = TemporalAdapter.attach(wan.unet, SETTINGS)
    for loss in (LossSettings(), LossSettings(variant="released", attention="extended")):
        with pytest.raises(InputError, match="attention='extended'"):
            train(wan, adapter, clips(), tmp_path, TrainingSettings(max_steps=1, loss=loss))
    with pytest.raises(InputError, match="1 frames.*needs at least 3"):
        train(wan, adapter, clips(1, 1), tmp_path, TrainingSettings(max_steps=1, loss=LOSS))
