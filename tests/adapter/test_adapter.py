"""The adapter: an identity until trained, gradients where the released loss has none, any UNet."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_models import (
    D_TEXT,
    N_TOKENS,
    packed,
    tiny_motion_unet,
    tiny_sdxl_unet,
    tiny_unet,
    tiny_unet3d,
)
from torch import nn

from vala_research import InputError
from vala_research.adapter import storage
from vala_research.adapter.settings import AdapterSettings, lora_config
from vala_research.adapter.temporal_adapter import TemporalAdapter, hook_sites, temporal_features
from vala_research.diffusion.attention import AnchorAttention
from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.injection import attention_patches
from vala_research.diffusion.patching import Patch, is_temporal, patched
from vala_research.methods.anchors import AnchorSettings, assign_anchors
from vala_research.methods.temporal import temporal_consistency_loss

D_VISION = 6
BARE = AdapterSettings(n_shared=0, uses_frame_tokens=False)
UNETS = {
    "sd": lambda: (tiny_unet(), None),
    "sdxl": tiny_sdxl_unet,
    "motion": lambda: (tiny_motion_unet(), None),
}


def random(*shape, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def trained(unet, settings: AdapterSettings = BARE, seed: int = 0) -> TemporalAdapter:
    """An adapter whose LoRA is no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    adapter = TemporalAdapter.attach(unet, settings, D_VISION, generator, "miniature")
    for name, p in adapter.lora_parameters():
        if ".lora_B." in name:
            p.data.copy_(random(*p.shape, seed=seed + 1))
    return adapter


def double(name: str):
    """(UNet in float64, a call of it on 2 branches of 3 frames)."""
    unet, added = UNETS[name]()
    unet = unet.double()
    z, text = random(2, 3, 4, 8, 8), random(2, N_TOKENS, D_TEXT, seed=1)

    def call(text=text, patches=(), frames_per_chunk=None, z=z) -> torch.Tensor:
        return Backbone(unet, frames_per_chunk)(z, 500, packed(text, added), patches)

    return unet, call


# The LoRA.


@pytest.mark.parametrize("blocks", ["all", "down_up", "down"])
@pytest.mark.parametrize("name", list(UNETS))
def test_an_untrained_lora_is_the_identity_and_alone_asks_for_gradients(name, blocks):
    unet, call = double(name)
    unet.conv_in.requires_grad_(True)
    before, n_unet = call(), sum(p.numel() for p in unet.parameters())
    adapter = TemporalAdapter.attach(unet, AdapterSettings(blocks=blocks), D_VISION)
    assert torch.equal(call(), before)
    asking = {id(p) for p in unet.parameters() if p.requires_grad}
    assert asking == {id(p) for _, p in adapter.lora_parameters()}
    n_tokens = 18 * D_TEXT + (D_VISION + 1) * D_TEXT
    n_lora = sum(p.numel() for p in unet.parameters()) - n_unet
    assert adapter.n_parameters == n_lora + n_tokens > n_tokens
    assert all(p.requires_grad for p in adapter.trainable())
    where = {n.partition(".")[0] for n, _ in adapter.lora_parameters()}
    assert (
        where
        == {
            "all": {"down_blocks", "mid_block", "up_blocks"},
            "down_up": {"down_blocks", "up_blocks"},
            "down": {"down_blocks"},
        }[blocks]
    )
    assert not any("motion_modules" in n for n, _ in adapter.lora_parameters())
    adapter.detach()
    assert torch.equal(call(), before)
    assert sum(p.numel() for p in unet.parameters()) == n_unet
    assert [n for n, p in unet.named_parameters() if p.requires_grad] == [
        "conv_in.weight", "conv_in.bias",
    ]  # fmt: skip


def test_attention_along_time_gets_no_lora():
    """ModelScope-class UNets name their temporal attentions otherwise than motion modules."""
    unet = tiny_unet3d()
    assert any("temp_attentions" in n and n.endswith("attn1") for n, _ in unet.named_modules())
    targets = lora_config(unet, AdapterSettings()).target_modules
    assert targets and not [n for n in targets if is_temporal(n)]
    assert any(n.startswith("down_blocks.0.attentions.0.") for n in targets)


def test_drawn_from_the_generator_and_nothing_else():
    state, drawn = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        unet = tiny_unet()
        state = torch.get_rng_state()
        adapter = trained(unet, AdapterSettings(), seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(torch.cat([p.flatten() for p in adapter.trainable()]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_matrix_a_is_normal_with_deviation_one_over_rank():
    adapter = TemporalAdapter.attach(tiny_unet(), replace(BARE, rank=8))
    a = torch.cat([p.flatten() for n, p in adapter.lora_parameters() if ".lora_A." in n])
    assert a.std().item() == pytest.approx(1 / 8, rel=4 / len(a) ** 0.5)  # four standard errors
    assert not any(p.any() for n, p in adapter.lora_parameters() if ".lora_B." in n)


def test_active_scales_switches_off_and_always_restores():
    unet, call = double("sd")
    before = call()
    adapter = trained(unet, replace(BARE, alpha=8))
    full = call()
    assert not torch.allclose(full, before)
    with adapter.active(True, 0.5):
        half = call()
    with adapter.active(False):
        assert torch.equal(call(), before)
    with pytest.raises(KeyError), adapter.active(True, 3.0):
        raise KeyError
    with pytest.raises(KeyError), adapter.active(False):
        raise KeyError
    assert torch.equal(call(), full)
    assert not any("forward" in m.__dict__ for m in unet.modules())
    for layer in adapter.lora.layers.values():  # W + 0.5 (alpha / rank) B A, by hand
        a, b = layer.lora_A["temporal"].weight, layer.lora_B["temporal"].weight
        layer.weight.data += 0.5 * 8 / 4 * (b @ a).detach()
    with adapter.active(False):
        torch.testing.assert_close(call(), half.detach(), rtol=0, atol=1e-11)


# The temporal loss reaches it.


def clip_loss(unet, variant: str) -> torch.Tensor:
    """Of one clip: three frames, or the released pair of frames at two steps."""
    n_frames = 3 if variant == "triples" else 4
    z, text = random(1, n_frames, 4, 8, 8), random(1, N_TOKENS, D_TEXT, seed=1)
    with temporal_features(unet) as features:
        Backbone(unet)(z, 500, text)
    return sum(temporal_consistency_loss(x, variant) for x in features.values())


def test_every_lora_before_a_hook_has_the_gradient_that_the_released_loss_lacks():
    unet = tiny_unet().double()
    adapter = TemporalAdapter.attach(unet, BARE, generator=torch.Generator().manual_seed(0))
    b = {n: p for n, p in adapter.lora_parameters() if ".lora_B." in n}
    last = hook_sites(unet)[-1].removesuffix("attn1") + "attn2"  # the only one after all hooks
    upstream = {n: p for n, p in b.items() if not n.startswith(last)}
    assert len(upstream) == len(b) - 4 > 0

    loss = clip_loss(unet, "triples")
    found = torch.autograd.grad(loss, list(b.values()), allow_unused=True)
    gradients = dict(zip(b, found, strict=True))
    assert {n for n, g in gradients.items() if g is None} == set(b) - set(upstream)
    for i, (name, p) in enumerate(upstream.items()):
        # Along the gradient and, as much, a random direction: the slope by central differences.
        g, other = gradients[name], random(*p.shape, seed=i)
        direction = g / g.norm() + other / other.norm()
        slope, h, values = (g * direction).sum().item(), 1e-4, []
        for sign in (1, -1):
            p.data.add_(sign * h * direction)
            values.append(clip_loss(unet, "triples").item())
            p.data.zero_()
        # Rounding of the loss, 1e-16 / h, and h^2 times a third derivative of order 1.
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(slope, rel=1e-4, abs=1e-10)
        assert gradients[name].norm() > 1e-7, name

    released = torch.autograd.grad(clip_loss(unet, "released"), list(upstream.values()))
    assert not any(g.any() for g in released)


@pytest.mark.parametrize("name", list(UNETS))
def test_hooks_read_every_decoder_self_attention_but_the_first(name):
    unet, call = double(name)
    sites = hook_sites(unet)
    assert all(s.startswith("up_blocks.") and s.endswith("attn1") for s in sites)
    assert "up_blocks.0.attentions.0.transformer_blocks.0.attn1" not in sites
    with temporal_features(unet) as features:
        first = call()
    assert list(features) == sites or set(features) == set(sites)
    assert all(x.shape[0] == 6 and x.shape[1] in (4, 16, 64) for x in features.values())
    with pytest.raises(KeyError), temporal_features(unet):
        raise KeyError
    assert not any("forward" in m.__dict__ for m in unet.modules())
    assert torch.equal(call(), first)


def test_hook_sites_of_stable_diffusion_are_the_eight_of_the_paper(sd15):
    block = "up_blocks.{}.attentions.{}.transformer_blocks.0.attn1"
    places = [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    assert hook_sites(sd15) == [block.format(*place) for place in places]


# Tokens.


def test_cross_attention_sees_another_sequence_for_every_frame():
    unet, call = double("sd")
    adapter = trained(unet, AdapterSettings(n_shared=2))
    text = random(2, N_TOKENS, D_TEXT, seed=1)
    rows = adapter.condition(text, random(3, 5, D_VISION))
    assert rows.shape == (2, 3, 2 + 3 + N_TOKENS, D_TEXT) and rows.dtype == text.dtype
    seen = []

    def look(name, module, forward):
        def looked(x, encoder_hidden_states=None, **kwargs):
            seen.append(encoder_hidden_states)
            return forward(x, encoder_hidden_states=encoder_hidden_states, **kwargs)

        return looked

    cross = Patch(lambda n, _: n.endswith("attn2"), forward=look)
    with patched(unet, cross):
        call(rows)
    assert len(seen) == 4
    for tokens in seen:
        tokens = tokens.unflatten(0, (2, 3))  # g f l d
        assert torch.equal(tokens[0, :, :5], tokens[1, :, :5])  # both guidance branches alike
        assert torch.equal(tokens[:, :, 5:], text[:, None].expand(-1, 3, -1, -1))
        assert torch.equal(tokens[0, 0, :2], tokens[0, 1, :2])  # shared tokens
        assert not torch.isclose(tokens[0, 0, 2:5], tokens[0, 1, 2:5]).any()


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_frame_is_conditioned_on_its_own_tokens_whatever_the_chunks(name):
    unet, call = double(name)
    adapter = trained(unet, AdapterSettings(n_shared=2))
    text, vision = random(2, N_TOKENS, D_TEXT, seed=1), random(3, 5, D_VISION)
    rows, z = adapter.condition(text, vision), random(2, 3, 4, 8, 8)
    whole = call(rows)
    for i in range(3):
        alone = call(rows[:, i : i + 1], z=z[:, i : i + 1])[:, 0]
        torch.testing.assert_close(alone, whole[:, i], rtol=0, atol=1e-11)
    assert not torch.allclose(call(rows.flip(1)), whole, atol=1e-6)
    with pytest.raises(InputError, match="2 rows of text for 3 frames"):
        call(rows[:, :2])


@pytest.mark.parametrize("frames_per_chunk", [1, 2])
@pytest.mark.parametrize("policy", ["own", "extended", "anchors"])
@pytest.mark.parametrize("name", list(UNETS))
def test_policies_and_chunks_leave_the_adapter_as_it_is(name, policy, frames_per_chunk):
    unet, call = double(name)
    if policy == "anchors":
        anchors = assign_anchors(random(3, 64, 4).float(), AnchorSettings(n_anchors=2))
        policy = AnchorAttention(anchors, (8, 8))
    without = call(patches=attention_patches(unet, policy, 2, 3))
    adapter = trained(unet, AdapterSettings(n_shared=2))
    rows = adapter.condition(random(2, N_TOKENS, D_TEXT, seed=1), random(3, 5, D_VISION))
    found = []
    for size in (3, frames_per_chunk):
        with temporal_features(unet) as features:
            y = call(rows, attention_patches(unet, policy, 2, size), size)
        assert set(features) == set(hook_sites(unet))
        found.append([y, *features.values()])
    assert not torch.allclose(found[0][0], without, atol=1e-3)
    # Sums in another order: a group norm of few values blows their last digit up to 3e-11.
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-8)
    with adapter.active(False):
        assert torch.equal(call(patches=attention_patches(unet, policy, 2, 3)), without)


def test_token_configurations():
    text, vision = random(1, N_TOKENS, D_TEXT), random(3, 5, D_VISION)
    lengths = {}
    for n_shared, uses_frame_tokens in [(0, False), (4, False), (0, True), (4, True)]:
        settings = AdapterSettings(n_shared=n_shared, uses_frame_tokens=uses_frame_tokens)
        adapter = TemporalAdapter.attach(tiny_unet(), settings, D_VISION)
        lengths[n_shared, uses_frame_tokens] = adapter.condition(text, vision).shape[1:3]
        if uses_frame_tokens:
            with pytest.raises(InputError, match="give the frames' image tokens"):
                adapter.condition(text)
        else:
            assert adapter.condition(text).shape[1] == 1
    n = N_TOKENS
    assert lengths == {
        (0, False): (1, n), (4, False): (1, n + 4), (0, True): (3, n + 3), (4, True): (3, n + 7),
    }  # fmt: skip


# Files.


@pytest.mark.parametrize("settings", [BARE, AdapterSettings(rank=2, alpha=8, blocks="down")])
def test_saved_and_loaded_is_the_same(tmp_path, settings):
    unet, call = double("sd")
    adapter = trained(unet, settings)
    adapter.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(storage.FILES)
    before, tensors = call(), [p.detach().clone() for p in adapter.trainable()]
    adapter.detach()
    for is_trainable in (True, False):
        again = TemporalAdapter.load(str(tmp_path), unet, is_trainable)
        assert again.settings == settings and again.vision_encoder == "miniature"
        pairs = zip(again.trainable(), tensors, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert torch.equal(call(), before)
        assert {p.requires_grad for p in again.trainable()} == {is_trainable}
        again.detach()


def test_half_precision_trains_in_single_and_edits_in_half(tmp_path):
    unet = tiny_unet().to(torch.bfloat16)
    adapter = trained(unet)
    for name, p in adapter.lora_parameters():
        p.data *= 0.05 if ".lora_B." in name else 1  # larger, the network is a chaos of its own
    assert {p.dtype for p in adapter.trainable()} == {torch.float32}
    assert unet.dtype == torch.bfloat16
    y = Backbone(unet)(random(1, 3, 4, 8, 8), 500, random(1, N_TOKENS, D_TEXT))
    adapter.save_pretrained(tmp_path)
    adapter.detach()
    adapter = TemporalAdapter.load(tmp_path, unet)
    assert {p.dtype for _, p in adapter.lora_parameters()} == {torch.bfloat16}
    again = Backbone(unet)(random(1, 3, 4, 8, 8), 500, random(1, N_TOKENS, D_TEXT))
    assert (y - again).norm() / y.norm() < 0.05


@pytest.mark.parametrize("alpha, blocks", [(4, "all"), (8, "down_up")])
def test_plain_diffusers_loads_and_fuses_the_lora(checkpoint, tmp_path, alpha, blocks):
    """The same network at merge ratio 0.5, alpha / rank other than 1 included."""
    ours = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    adapter = trained(ours.unet.double(), AdapterSettings(alpha=alpha, blocks=blocks))
    adapter.save_pretrained(tmp_path)
    plain = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    plain.unet.double()
    inputs = random(3, 4, 8, 8), 500, random(3, N_TOKENS, D_TEXT, seed=1)
    base = plain.unet(*inputs).sample
    plain.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(
        plain.unet(*inputs).sample, ours.unet(*inputs).sample, rtol=0, atol=0
    )
    plain.fuse_lora(lora_scale=0.5)
    with adapter.active(True, 0.5):
        half = ours.unet(*inputs).sample
    assert (half - base).norm() > 0.05 * base.norm()
    torch.testing.assert_close(plain.unet(*inputs).sample, half, rtol=0, atol=1e-11)
    plain.unload_lora_weights()


def test_a_save_that_fails_leaves_the_adapter_that_was_there(tmp_path, monkeypatch):
    unet = tiny_unet()
    adapter = trained(unet)
    adapter.save_pretrained(tmp_path)
    adapter.detach()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fails(tensors, path, metadata=None):
        if "tokens" in str(path):
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(storage, "save_file", fails)
    with pytest.raises(InputError, match="cannot be written.*No space left"):
        trained(unet, seed=5).save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# Bad input: one sentence, before anything is changed.


def breaks(folder, part: str) -> None:
    """Damage a saved adapter."""
    weights, tokens = folder / storage.WEIGHTS, folder / storage.TOKENS
    description = folder / storage.DESCRIPTION
    told = json.loads(description.read_text())
    if part == "pickle":
        weights.rename(folder / "pytorch_lora_weights.bin")
    elif part == "no description":
        description.unlink()
    elif part == "damaged":
        weights.write_bytes(weights.read_bytes()[:100])
    elif part == "rank":
        told["settings"]["rank"] = 2
    elif part == "unknown setting":
        told["settings"]["colour"] = "red"
    elif part == "bad setting":
        told["settings"]["interval"] = [0.9, 0.2]
    elif part == "tokens":
        save_file({k: v[..., :3].contiguous() for k, v in load_file(tokens).items()}, tokens)
    elif part == "no tokens":
        save_file({}, tokens)
    description.exists() and description.write_text(json.dumps(told))


@pytest.mark.parametrize(
    "part, message",
    [
        ("pickle", "pickle, which can run code.*safetensors"),
        ("no description", "holds no adapter.json"),
        ("damaged", "cannot be read.*train it again"),
        ("rank", r"another backbone.*\(4, 16\).*\(2, 16\)"),
        ("unknown setting", "cannot be read.*colour"),
        ("bad setting", "interval is .*give two fractions"),
        ("tokens", "prompt tokens of .* are not the 18 of width 16"),
        ("no tokens", "prompt tokens of .* are not the 18 of width 16"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, part, message):
    unet = tiny_unet()
    adapter = trained(unet, AdapterSettings())
    adapter.save_pretrained(tmp_path)
    adapter.detach()
    breaks(tmp_path, part)
    with pytest.raises(InputError, match=message):
        TemporalAdapter.load(tmp_path, unet)
    assert not any("lora" in name for name, _ in unet.named_modules())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"block_out_channels": (8, 24)}, r"block_out_channels \[8, 16\] where this model"),
        ({"cross_attention_dim": 20}, "cross_attention_dim 16 where this model has 20"),
        ({"in_channels": 9}, "in_channels 4 where this model has 9"),
        ({"layers_per_block": 2}, "missing where this model has"),
    ],
)
def test_an_adapter_of_another_backbone_is_refused(tmp_path, changes, message):
    trained(tiny_unet()).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"another backbone.*{message}"):
        TemporalAdapter.load(tmp_path, tiny_unet(**changes))


def test_places_that_hold_no_adapter_are_refused(tmp_path, monkeypatch):
    unet, pickle = tiny_unet(), tmp_path / "lora.pt"
    pickle.write_bytes(b"")
    with pytest.raises(InputError, match="lora.pt' is a pickle"):
        TemporalAdapter.load(pickle, unet)
    with pytest.raises(InputError, match="is no adapter, it holds no pytorch_lora_weights"):
        (tmp_path / "empty").mkdir()
        TemporalAdapter.load(tmp_path / "empty", unet)
    with pytest.raises(InputError, match="no adapter folder"):
        TemporalAdapter.load(tmp_path / "nowhere", unet)
    monkeypatch.setattr(storage, "miniature_path", lambda part: str(tmp_path / part))
    with pytest.raises(InputError, match="miniature's adapter is missing"):
        TemporalAdapter.load("miniature", unet)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"rank": 0}, "rank 0"),
        ({"alpha": 0}, "alpha 0"),
        ({"blocks": "mid"}, "all, down_up, down"),
        ({"n_shared": -1}, "0 or more tokens"),
        ({"pooling": "max"}, "pairs, released"),
        ({"interval": (0.5, 1.5)}, "two fractions"),
        ({"token_interval": (0.5,)}, "two fractions"),
        ({"scale": float("nan")}, "finite number"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        AdapterSettings(**wrong)


def test_what_cannot_be_attached():
    unet = tiny_unet()
    with pytest.raises(InputError, match="give d_vision"):
        TemporalAdapter.attach(unet, AdapterSettings())
    trained(unet)
    with pytest.raises(InputError, match="has a LoRA already"):
        TemporalAdapter.attach(unet, BARE)
    plain = UNet2DConditionModel(
        block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=D_TEXT,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    with pytest.raises(InputError, match="no attention in its blocks 'down'"):
        TemporalAdapter.attach(plain, replace(BARE, blocks="down"))


# Sizes.


@pytest.fixture(scope="module")
def sd15() -> nn.Module:
    """Stable Diffusion 1.5's UNet, without memory for its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=768, sample_size=64)


@pytest.mark.parametrize("blocks, n", [("all", 797_184), ("down_up", 719_360), ("down", 287_744)])
def test_parameters_on_stable_diffusion(sd15, blocks, n):
    adapter = TemporalAdapter.attach(sd15, replace(BARE, blocks=blocks))
    assert adapter.n_parameters == n
    adapter.detach()
