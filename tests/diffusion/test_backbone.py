"""Backbone: patches restore, chunks change nothing, bad checkpoints are refused with a reason."""

import json
import shutil

import huggingface_hub.errors
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny_models import (
    D_TEXT,
    N_TOKENS,
    packed,
    tiny_motion_unet,
    tiny_sdxl_unet,
    tiny_unet,
)

from vala_research import InputError
from vala_research.diffusion.attention import POLICIES
from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.checkpoint import resolve_checkpoint
from vala_research.diffusion.injection import attention_patches
from vala_research.diffusion.patching import Patch, is_heavy_per_frame, is_self_attention, patched


def inputs(g: int = 2, f: int = 4, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents g f c h w and text g n d."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(g, f, 4, size, size, generator=generator)
    return z, torch.randn(g, N_TOKENS, D_TEXT, generator=generator)


def state(unet) -> list:
    """Everything a patch may have left behind."""
    return [
        (name, module.__dict__.get("forward"), getattr(module, "processor", None))
        for name, module in unet.named_modules()
    ]


# Patches.


def test_patched_restores_after_use_exceptions_and_nesting():
    unet = tiny_unet()
    before = state(unet)
    doubled = Patch(
        is_heavy_per_frame, forward=lambda _n, _m, old: lambda *a, **k: 2 * old(*a, **k)
    )
    fresh = Patch(is_self_attention, processor=lambda _n, _m: AttnProcessor2_0())
    with pytest.raises(RuntimeError, match="inside"), patched(unet, doubled, fresh):
        assert state(unet) != before
        raise RuntimeError("inside")
    assert state(unet) == before
    resnet = unet.mid_block.resnets[0]
    x, temb = torch.randn(1, 16, 4, 4), torch.randn(1, 32)
    plain = resnet(x, temb)
    with patched(unet, doubled):
        outer = state(unet)
        with patched(unet, doubled):
            assert torch.equal(resnet(x, temb), 4 * plain)
        assert state(unet) == outer and torch.equal(resnet(x, temb), 2 * plain)
    assert state(unet) == before and torch.equal(resnet(x, temb), plain)


def test_patched_counts_and_refuses_to_patch_nothing():
    unet = tiny_unet()
    fresh = Patch(is_self_attention, processor=lambda _n, _m: AttnProcessor2_0())
    nothing = Patch(lambda name, _: name == "no.such.layer", forward=lambda _n, _m, old: old)
    with patched(unet, fresh) as count:
        # A decoder block of two, an encoder block of one, one in the middle.
        assert count == 4
    before = state(unet)
    with pytest.raises(LookupError, match="no module"), patched(unet, fresh, nothing):
        pass
    assert state(unet) == before


def test_a_patch_that_fails_half_way_restores_what_it_did():
    unet = tiny_unet()
    before, seen = state(unet), []

    def fails_third(name, _module):
        seen.append(name)
        if len(seen) == 3:
            raise RuntimeError("third")
        return AttnProcessor2_0()

    broken = Patch(is_self_attention, processor=fails_third)
    with pytest.raises(RuntimeError, match="third"), patched(unet, broken):
        pass
    assert state(unet) == before


def test_motion_modules_are_never_selected():
    unet = tiny_motion_unet()
    for select in (is_self_attention, is_heavy_per_frame):
        names = [n for n, m in unet.named_modules() if select(n, m)]
        assert names and not any("motion_modules" in n for n in names)


# One contract for every class of UNet.


def test_equals_the_unet_called_by_hand():
    unet, (z, text) = tiny_unet(), inputs()
    ours = Backbone(unet)(z, 501, text)
    for g in range(2):
        for f in range(4):
            theirs = unet(z[g, f][None], 501, text[g][None]).sample[0]
            # Batched and single matrix products may round differently in fp32.
            assert torch.allclose(ours[g, f], theirs, atol=1e-5)


def test_sdxl_conditions_follow_their_branch():
    (unet, added), (z, text) = tiny_sdxl_unet(), inputs()
    rows = {"text_embeds": torch.cat([added["text_embeds"], 2 * added["text_embeds"]])}
    rows["time_ids"] = added["time_ids"].expand(2, -1)
    both = packed(text, rows)
    ours = Backbone(unet)(z, 501, both)
    for g in range(2):
        one = {k: v[g : g + 1] for k, v in rows.items()}
        theirs = unet(z[g, 1][None], 501, text[g][None], added_cond_kwargs=one).sample[0]
        assert torch.allclose(ours[g, 1], theirs, atol=1e-5)
    other = packed(text, {"text_embeds": rows["text_embeds"].flip(0)})
    assert not torch.allclose(ours, Backbone(unet)(z, 501, other))
    assert not torch.allclose(ours, Backbone(unet, vae_factor=4)(z, 501, both))


def test_motion_unet_with_zeroed_motion_is_the_image_unet():
    z, text = inputs()
    image = Backbone(tiny_unet())(z, 501, text)
    assert torch.allclose(Backbone(tiny_motion_unet(True))(z, 501, text), image, atol=1e-5)
    assert not torch.allclose(Backbone(tiny_motion_unet())(z, 501, text), image, atol=1e-3)


def test_odd_latent_sizes_pass():
    z, text = inputs(1, 2, 7)
    assert Backbone(tiny_unet())(z, 1, text).shape == z.shape


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["sd", "sdxl", "motion"])
@pytest.mark.parametrize("size", [1, 3])
def test_chunks_change_nothing(kind, policy, size):
    z, text = inputs(3, 5)
    unet, added = {
        "sd": lambda: (tiny_unet(), None),
        "motion": lambda: (tiny_motion_unet(), None),
    }.get(kind, tiny_sdxl_unet)()
    unet, z, text = unet.double(), z.double(), text.double()
    text = packed(text, added)

    def run(size):
        patches = attention_patches(unet, policy, 3, size, True, True)
        return Backbone(unet, size)(z, 501, text, patches)

    # fp64, so that only round-off of differently shaped products is left; frames mixed up between
    # chunks would differ in the first digit.
    assert (run(size) - run(5)).abs().max() < 1e-12


def test_chunks_bound_what_a_heavy_module_sees():
    unet, (z, text) = tiny_unet(), inputs(2, 6)
    seen = []

    def spy(_name, _module, forward):
        return lambda x, *a, **k: (seen.append(x.shape[0]), forward(x, *a, **k))[1]

    with patched(unet, Patch(is_heavy_per_frame, forward=spy)):  # outside: runs within the chunks
        Backbone(unet, 2)(z, 1, text)
    assert set(seen) == {4}  # two frames of two branches


def test_chunk_size_is_automatic():
    backbone = Backbone(tiny_unet())
    assert backbone.chunk_size(16, 2, 16, 16) == 16  # small: all at once
    assert backbone.chunk_size(64, 2, 64, 64) == 8  # 512 x 512 pixels: bounded
    assert backbone.chunk_size(64, 3, 512, 512) == 1


def test_counts_frames_and_names_step_and_dtype_of_nan():
    unet, (z, text) = tiny_unet().bfloat16(), inputs()
    backbone = Backbone(unet)
    out = backbone(z, 1, text)
    assert backbone.n_frame_forwards == 8 and out.dtype == torch.float32
    unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="t=941 in torch.bfloat16.*float32"):
        backbone(z, 941, text)


# Checkpoints.


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A copy to break."""
    return shutil.copytree(checkpoint, tmp_path / "broken")


def edit_index(folder, **changes):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **changes}))


def test_a_complete_folder_resolves_to_itself(checkpoint):
    assert resolve_checkpoint(str(checkpoint)) == str(checkpoint)


def test_unknown_names_list_what_is_possible(tmp_path):
    for name in ("miniture", "./nowhere", str(tmp_path / "absent")):
        with pytest.raises(InputError, match="Unknown model.*'miniature'.*folder.*hub id"):
            resolve_checkpoint(name)


def test_files_and_folders_without_an_index(tmp_path, checkpoint):
    with pytest.raises(InputError, match="is a file"):
        resolve_checkpoint(str(checkpoint / "model_index.json"))
    with pytest.raises(InputError, match="no model_index.json"):
        resolve_checkpoint(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        resolve_checkpoint(str(tmp_path))


def test_another_class_is_named(broken):
    edit_index(
        broken,
        _class_name="StableDiffusion3Pipeline",
        text_encoder_3=["transformers", "T5EncoderModel"],
    )
    with pytest.raises(InputError, match="is a StableDiffusion3Pipeline"):
        resolve_checkpoint(str(broken))
    edit_index(broken, _class_name="FluxPipeline", text_encoder_3=None, unet=None)
    with pytest.raises(InputError, match="is a FluxPipeline, whose unet is missing"):
        resolve_checkpoint(str(broken))


def test_missing_parts_are_named(broken):
    next((broken / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match="unet .* has no weights"):
        resolve_checkpoint(str(broken))
    (broken / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="unet .* pickled.*safetensors"):
        resolve_checkpoint(str(broken))
    shutil.rmtree(broken / "vae")
    with pytest.raises(InputError, match="lacks its vae folder"):
        resolve_checkpoint(str(broken))


@pytest.mark.parametrize(
    "error, message",
    [
        (huggingface_hub.errors.LocalEntryNotFoundError("no"), "hub cannot be reached"),
        (huggingface_hub.errors.OfflineModeIsEnabled("no"), "hub cannot be reached"),
        (huggingface_hub.errors.HFValidationError("no"), "hub has no model"),
        (huggingface_hub.errors.EntryNotFoundError("no"), "model_index.json"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_hub_errors_become_one_sentence(monkeypatch, error, message):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(InputError, match=message):
        resolve_checkpoint("someone/some-model")


def test_a_compiled_video_model_keeps_its_axis_of_frames():
    unet = tiny_motion_unet()
    z, text = torch.randn(1, 3, 4, 8, 8), torch.randn(1, 4, unet.config.cross_attention_dim)
    expected = Backbone(unet)(z, 500, text)
    with torch.compiler.set_stance("force_eager"):  # nothing is compiled
        torch.testing.assert_close(Backbone(torch.compile(unet))(z, 500, text), expected)
