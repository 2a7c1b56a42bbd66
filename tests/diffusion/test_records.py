"""Transformers of the genuine classes under a policy, tiny and random. Costs 10 s."""

from dataclasses import replace

import pytest
import torch
from diffusers import SanaTransformer2DModel
from einops import rearrange
from tiny_models import tiny_ltx, tiny_sd3, tiny_wan

from vala_research import InputError
from vala_research.diffusion.attention import AnchorAttention, KeyframeAttention, extended
from vala_research.diffusion.attention_processor import weighted
from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.experts import Experts
from vala_research.diffusion.injection import attention_patches, injected_attention_layers
from vala_research.diffusion.records import (
    decoder_self_attentions,
    n_tokens,
    record_of,
    self_attentions,
    text_width,
)
from vala_research.diffusion.transformer_attention import rotated
from vala_research.methods.anchors import Anchors, AnchorSettings, assign_anchors

MODELS = {"wan": tiny_wan, "ltx": tiny_ltx, "sd3": tiny_sd3}
F, SIDE = 4, 8


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def latents(g: int = 1, f: int = F) -> torch.Tensor:
    return torch.randn(g, f, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def text(g: int = 1, width: int = 16) -> torch.Tensor:
    return torch.randn(g, 6, width, generator=torch.Generator().manual_seed(2))


def called(model, policy=None, g: int = 1, f: int = F, chunk: int | None = None, **injects):
    size = chunk or f
    patches = [] if policy is None else attention_patches(
        model, policy, g, size, size=(SIDE, SIDE), **injects
    )  # fmt: skip
    return Backbone(model, chunk)(latents(g, f), 500.0, text(g), patches)


def site_anchors(granularity: str = "site") -> AnchorAttention:
    features = rearrange(latents()[0], "f c h w -> f (h w) c")
    anchors = assign_anchors(features, AnchorSettings(n_anchors=2, granularity=granularity))
    return AnchorAttention(anchors, (SIDE, SIDE))


def test_the_native_attention_is_extended_bit_for_bit(model):
    """Of videos: all frames meet. Of images: each frame is alone, which is `own`."""
    native = "extended" if record_of(model).joins_frames else "own"
    assert torch.equal(called(model, native), called(model))
    assert torch.allclose(called(model, native, g=2), called(model, g=2), atol=1e-6)
    if native == "extended":
        assert not torch.allclose(called(model, "own"), called(model), atol=1e-4)


def test_chunks_change_nothing(model):
    for policy in ("own", "sparse_causal", site_anchors()):
        whole, parts = called(model, policy, g=2), called(model, policy, g=2, chunk=1)
        assert torch.allclose(whole, parts, atol=1e-6)


def test_policies_act_and_agree_on_one_frame(model):
    native = called(model)
    policies = ["own", "first", "sparse_causal", "extended", KeyframeAttention((0, 2)),
                site_anchors()]  # fmt: skip
    found = [called(model, policy) for policy in policies]
    distinct = [x for x in found if not torch.allclose(x, native, atol=1e-6)]
    assert len(distinct) == len(policies) - 1 and all(x.isfinite().all() for x in found)
    one = called(model, f=1)
    # Beside the text of an image model, a frame that is seen twice counts twice.
    alone = policies[:4] if record_of(model).joins_frames else ["own", "first", "extended"]
    for policy in alone:
        assert torch.allclose(called(model, policy, f=1), one, atol=1e-6)


def test_own_sees_no_other_frame(model):
    z, changed = latents(), latents()
    changed[:, 1:] = 0
    patches = attention_patches(model, "own", 1, F, size=(SIDE, SIDE))
    ours, other = (Backbone(model)(x, 500.0, text(), patches) for x in (z, changed))
    assert torch.allclose(ours[:, 0], other[:, 0], atol=1e-6)
    assert not torch.allclose(called(model)[:, 1], other[:, 1], atol=1e-3)


def test_anchors_of_every_frame_are_all_frames_once_more():
    """With one anchor per frame, anchors are all frames: keys are those that attention uses."""
    model = tiny_wan()
    own_frame = torch.eye(F)[:, None].expand(F, SIDE * SIDE, F)
    anchors = AnchorAttention(anchors_of(own_frame.clone()), (SIDE, SIDE))
    # An anchor stands for one frame, log 1 = 0: each frame then sees itself twice.
    frames = tuple(range(F))
    assert torch.allclose(
        called(model, anchors), called(model, KeyframeAttention(frames)), atol=1e-5
    )


def test_what_an_anchor_stands_for_is_counted():
    """Toy of shared keys with a rotation in time: the error to full attention halves."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    f, n, d = 8, 64, 32
    base = draw(1, n, d)
    q, k, v = (base + 0.5 * draw(f, n, d) for _ in range(3))
    angle = torch.arange(f)[:, None] / 10000 ** (torch.arange(6) / 6)
    turn = torch.cat([angle, torch.zeros(f, 10)], 1).repeat_interleave(2, 1)[:, None, None]
    turn = turn.expand(f, n, 1, d).reshape(1, f * n, 1, d)
    q, k = (rotated(x.view(1, -1, 1, d), turn.cos(), turn.sin()).view(f, n, d) for x in (q, k))
    full = weighted(q, *(rearrange(x, "f n d -> 1 (f n) d") for x in (k, v)))

    responsibilities = torch.ones(f, n, 1)
    policy = AnchorAttention(anchors_of(responsibilities), (8, 8))
    errors = {}
    for counts in (False, True):
        keys = replace(policy, counts_frames=counts)(k, v, "layer")
        out = torch.cat([weighted(q[i : i + 1], *keys(slice(i, i + 1))) for i in range(f)])
        errors[counts] = float((out - full).norm() / full.norm())
    alone = float((weighted(q, k, v) - full).norm() / full.norm())
    assert errors[True] < 0.6 * errors[False] < 0.6 * alone


def anchors_of(responsibilities: torch.Tensor) -> Anchors:
    f, _, k = responsibilities.shape
    return Anchors(responsibilities, torch.ones(k, 4), torch.ones(k), torch.ones(k),
                   torch.ones(f, k, 4), [])  # fmt: skip


def test_token_anchors_are_refused_where_positions_are_rotations():
    for name in ("wan", "ltx"):
        with pytest.raises(InputError, match="granularity='site'"):
            called(MODELS[name](), site_anchors("token"))
    assert called(tiny_sd3(), site_anchors("token")).isfinite().all()


def test_injection_takes_layout_or_values_of_the_source(model):
    """The last branch is the source; the first ends with its queries and keys, or its values."""
    plain = called(model, extended, g=2)
    for what in ("injects_attention", "injects_values"):
        injected = called(model, extended, g=2, **{what: True})
        assert torch.allclose(injected[1], plain[1], atol=1e-6)
        assert not torch.allclose(injected[0], plain[0], atol=1e-5)
    with pytest.raises(InputError, match="feature.*needs a UNet"):
        called(model, extended, g=2, injects_feature=True)


def test_sites_in_order_and_the_late_half():
    wan = tiny_wan(num_layers=5)
    assert self_attentions(wan) == [f"blocks.{i}.attn1" for i in range(5)]
    assert decoder_self_attentions(wan) == [f"blocks.{i}.attn1" for i in (2, 3, 4)]
    assert injected_attention_layers(wan) == frozenset(decoder_self_attentions(wan))
    dual = tiny_sd3(dual_attention_layers=(0,))
    assert self_attentions(dual) == [
        "transformer_blocks.0.attn", "transformer_blocks.0.attn2", "transformer_blocks.1.attn",
    ]  # fmt: skip
    assert called(dual, "extended").isfinite().all()
    assert torch.equal(called(dual, "own"), called(dual))
    assert (n_tokens(wan, 8, 6), text_width(wan), text_width(tiny_ltx())) == (12, 16, 16)
    with pytest.raises(InputError, match="joins 2 latent frames"):
        n_tokens(tiny_ltx(patch_size_t=2), 8, 8)


def test_stable_diffusion_3_5_norms_its_queries_and_keys():
    model = tiny_sd3(qk_norm="rms_norm")
    assert torch.equal(called(model, "own"), called(model))


def test_of_two_experts_the_noise_level_chooses():
    high, low = tiny_wan(), tiny_wan()
    low.proj_out.weight.mul_(2)
    both = Experts(high, low, boundary=0.4)
    for t, expert in ((500.0, high), (400.0, high), (399.0, low)):
        patches = attention_patches(both, "own", 1, F, size=(SIDE, SIDE))
        found = Backbone(both)(latents(), t, text(), patches)
        alone = attention_patches(expert, "own", 1, F, size=(SIDE, SIDE))
        assert torch.equal(found, Backbone(expert)(latents(), t, text(), alone))


def test_an_unknown_class_is_told_the_known_ones():
    """The linear attention of Sana is an `attn1` too, and no policy can act in it."""
    sana = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=16, sample_size=8,
    )  # fmt: skip
    for denoiser in (sana, torch.nn.Linear(2, 2)):
        with pytest.raises(InputError, match="UNet2DConditionModel.*WanTransformer3DModel"):
            Backbone(denoiser)(latents(), 1, text())


def test_one_prompt_for_all_frames():
    rows = text()[:, None].expand(-1, F, -1, -1)
    for name in ("wan", "ltx"):
        with pytest.raises(InputError, match="one prompt for all frames"):
            Backbone(MODELS[name]())(latents(), 500.0, rows)
    assert torch.allclose(Backbone(tiny_sd3())(latents(), 500.0, rows), called(tiny_sd3()))


def test_padding_of_an_ltx_prompt_is_not_seen():
    model, words = tiny_ltx(), text()
    longer = torch.cat([words, torch.zeros(1, 3, 16)], 1)
    ours, other = (Backbone(model)(latents(), 500.0, x) for x in (words, longer))
    assert torch.allclose(ours, other, atol=1e-6)
