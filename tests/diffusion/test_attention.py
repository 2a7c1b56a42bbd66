"""Attention policies against what they must equal, on three classes of UNet."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange
from tiny_models import D_TEXT, N_TOKENS, packed, tiny_motion_unet, tiny_sdxl_unet, tiny_unet

from vala_research import InputError
from vala_research.diffusion.attending import get_policy
from vala_research.diffusion.attention import POLICIES
from vala_research.diffusion.attention_processor import SelfAttention
from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.injection import (
    Injection,
    attention_patches,
    injected_attention_layers,
    injected_feature_layer,
)
from vala_research.diffusion.patching import patched

KINDS = ("sd", "sdxl", "motion")
# fp64: policies that must agree agree to round-off; the tiny UNets' outputs are of order 1.
SAME = 1e-10


def model(kind: str):
    """(unet, added conditions of one branch) in fp64; the motion modules act as the identity."""
    unet, added = tiny_unet(), None
    if kind == "sdxl":
        unet, added = tiny_sdxl_unet()
        added = {k: v.double() for k, v in added.items()}
    if kind == "motion":
        unet = tiny_motion_unet(is_identity=True)
    return unet.double(), added


def inputs(g: int, f: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents g f c h w and text g n d, fp64."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(g, f, 4, 8, 8, generator=generator, dtype=torch.float64)
    return z, torch.randn(g, N_TOKENS, D_TEXT, generator=generator, dtype=torch.float64)


def run(unet, added, z, text, policy, **kwargs):
    """The patched prediction; policy None leaves the UNet alone."""
    g, f = z.shape[:2]
    patches = [] if policy is None else attention_patches(unet, policy, g, f, **kwargs)
    return Backbone(unet)(z, 501, packed(text, added), patches)


def distance(a, b) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("kind", KINDS)
def test_own_is_the_unpatched_model(kind):
    (unet, added), (z, text) = model(kind), inputs(2, 3)
    plain = run(unet, added, z, text, None)
    assert distance(run(unet, added, z, text, "own"), plain) < SAME
    for policy in ("first", "sparse_causal", "extended"):  # and the others are not
        assert distance(run(unet, added, z, text, policy), plain) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_identical_frames_make_every_policy_own(kind, policy):
    (unet, added), (z, text) = model(kind), inputs(2, 1)
    z = z.expand(-1, 4, -1, -1, -1)
    # Attending to copies of oneself is attending to oneself: softmax weights split among them.
    plain = run(unet, added, z, text, None)
    assert distance(run(unet, added, z, text, policy), plain) < SAME


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_one_frame_makes_every_policy_own(kind, policy):
    (unet, added), (z, text) = model(kind), inputs(2, 1)
    assert distance(run(unet, added, z, text, policy), run(unet, added, z, text, None)) < SAME


@pytest.mark.parametrize("kind", KINDS)
def test_extended_is_permutation_equivariant(kind):
    (unet, added), (z, text) = model(kind), inputs(1, 4)
    order = torch.tensor([2, 0, 3, 1])
    permuted = run(unet, added, z[:, order], text, "extended")
    assert distance(permuted, run(unet, added, z, text, "extended")[:, order]) < SAME
    causal = run(unet, added, z[:, order], text, "sparse_causal")
    assert distance(causal, run(unet, added, z, text, "sparse_causal")[:, order]) > 1e-4


@pytest.mark.parametrize("policy", POLICIES)
def test_branches_never_mix(policy):
    (unet, added), (z, text) = model("sd"), inputs(2, 3)
    both = run(unet, added, z, text, policy)
    alone = [run(unet, added, z[g : g + 1], text[g : g + 1], policy) for g in range(2)]
    assert distance(both, torch.cat(alone)) < SAME


REFERENCES = {
    "own": lambda i, f: [i],
    "first": lambda i, f: [0],
    "sparse_causal": lambda i, f: [0, max(i - 1, 0)],
    "extended": lambda i, f: list(range(f)),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [2, 5])
def test_policy_equals_explicit_softmax(policy, size):
    torch.manual_seed(0)
    attn = Attention(12, heads=3, dim_head=4).double().requires_grad_(False)
    x = torch.randn(2, 5, 6, 12, dtype=torch.float64)  # g f n c
    q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
    slow = torch.empty_like(x)
    for g in range(2):
        for i in range(5):
            refs = REFERENCES[policy](i, 5)
            keys, values = (torch.cat([y[g, j] for j in refs]) for y in (k, v))
            heads = []
            for h in range(3):
                s = slice(4 * h, 4 * h + 4)
                scores = (q[g, i][:, s] @ keys[:, s].T / 4**0.5).softmax(-1)
                heads.append(scores @ values[:, s])
            slow[g, i] = attn.to_out[0](torch.cat(heads, dim=1))
    processor = SelfAttention(get_policy(policy), "layer", 2, size)
    fast = processor(attn, rearrange(x, "g f n c -> (g f) n c"))
    assert distance(rearrange(fast, "(g f) n c -> g f n c", g=2), slow) < 1e-12


def test_shared_keys_are_not_copied():
    keys = values = torch.randn(5, 6, 4)
    k, _ = POLICIES["extended"](keys, values, "layer")(slice(1, 3))
    assert k.shape == (1, 30, 4) and k.data_ptr() == keys.data_ptr()
    k, _ = POLICIES["first"](keys, values, "layer")(slice(1, 3))
    assert k.shape == (1, 6, 4) and k.data_ptr() == keys.data_ptr()


def test_a_policy_of_ones_own_needs_no_registry():
    def last(keys, values, layer):
        return lambda frames: (keys[-1:], values[-1:])

    (unet, added), (z, text) = model("sd"), inputs(1, 3)
    flipped = run(unet, added, z.flip(1), text, "first").flip(1)
    assert distance(run(unet, added, z, text, last), flipped) < SAME


def test_unknown_policy_lists_the_valid_ones():
    with pytest.raises(InputError, match="'dense'.*own, first, sparse_causal, extended"):
        get_policy("dense")


# Injection.


def test_injection_sites_of_stable_diffusion_and_smaller_decoders():
    sd = tiny_unet(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
    )
    layers = injected_attention_layers(sd)
    assert len(layers) == 8  # decoder layers 4 to 11 of Tumanyan et al.
    assert not any(name.startswith("up_blocks.1.attentions.0.") for name in layers)
    assert injected_feature_layer(sd) == "up_blocks.1.resnets.1.conv2"
    assert injected_feature_layer(tiny_unet()) == "up_blocks.0.resnets.1.conv2"
    for unet in (sd, tiny_unet(), tiny_motion_unet()):
        with patched(unet, *attention_patches(unet, "own", 2, 1, True, True)) as count:
            assert count > len(injected_attention_layers(unet))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_injection_leaves_the_source_alone_and_reaches_the_rest(kind, policy):
    (unet, added), (z, text) = model(kind), inputs(3, 3)
    plain = run(unet, added, z, text, policy)
    for switches in ({"injects_attention": True}, {"injects_feature": True}):
        injected = run(unet, added, z, text, policy, **switches)
        assert distance(injected[-1], plain[-1]) < SAME
        assert distance(injected[:-1], plain[:-1]) > 1e-5


def test_injecting_a_source_equal_to_the_edit_changes_nothing():
    (unet, added), (z, text) = model("sd"), inputs(1, 3)
    z, text = z.expand(3, -1, -1, -1, -1), text.expand(3, -1, -1)
    switches = {"injects_attention": True, "injects_feature": True}
    injected = run(unet, added, z, text, "extended", **switches)
    assert distance(injected, run(unet, added, z, text, "extended")) < SAME


def test_injected_attention_takes_layout_from_the_source_and_values_from_the_edit():
    torch.manual_seed(0)
    attn = Attention(12, heads=3, dim_head=4).double().requires_grad_(False)
    x = torch.randn(2, 6, 12, dtype=torch.float64)  # (g f) n c with one frame
    out = SelfAttention(get_policy("own"), "layer", 2, 1, is_injected=True)(attn, x)
    heads = (
        rearrange(y, "b n (h d) -> b h n d", h=3)
        for y in (attn.to_q(x), attn.to_k(x), attn.to_v(x))
    )
    q, k, v = heads
    scores = (q[1] @ k[1].transpose(-1, -2) / 2).softmax(-1)
    slow = attn.to_out[0](rearrange(scores @ v[0], "h n d -> n (h d)"))
    assert distance(out[0], slow) < 1e-12


def test_injection_fractions():
    assert Injection.of(0.5).n_steps(10) == (5, 5, 0, 0)
    assert Injection().n_steps(50) == (25, 40, 0, 0)
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="injection.*from 0 to 1"):
            Injection.of(bad)
