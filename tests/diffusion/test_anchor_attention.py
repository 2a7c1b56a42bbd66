"""VALA in the engine: own frame and anchors, in every class of UNet and in the pipeline."""

from dataclasses import replace

import pytest
import torch
from test_attention import KINDS, SAME, distance, inputs, model, run

from vala_research import InputError
from vala_research.diffusion.attending import get_policy
from vala_research.diffusion.attention import AnchorAttention, KeyframeAttention
from vala_research.diffusion.fixed_point import ExactSettings
from vala_research.methods.anchors import AnchorSettings, assign_anchors
from vala_research.methods.compression import compression_weights

SETTINGS = AnchorSettings(n_anchors=2, coreset=0)


def policy_of(z: torch.Tensor, granularity: str = "site") -> AnchorAttention:
    """The policy of latents f c h w."""
    settings = replace(SETTINGS, granularity=granularity)
    return AnchorAttention(assign_anchors(z.flatten(2).mT, settings), tuple(z.shape[2:]))


@pytest.mark.parametrize("granularity", ["site", "token"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_self_attention_of_every_unet_takes_anchors(kind, granularity):
    (unet, added), (z, text) = model(kind), inputs(2, 4)
    anchored = run(unet, added, z, text, policy_of(z[0], granularity))
    assert torch.isfinite(anchored).all()
    assert distance(anchored, run(unet, added, z, text, "own")) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_identical_frames_make_site_anchors_own(kind):
    """Pseudo-frames are then copies of the frame, among which the softmax splits its weight."""
    (unet, added), (z, text) = model(kind), inputs(2, 1)
    z = z.expand(-1, 4, -1, -1, -1)
    plain = run(unet, added, z, text, "own")
    assert distance(run(unet, added, z, text, policy_of(z[0])), plain) < SAME


@pytest.mark.parametrize("granularity", ["site", "token"])
def test_one_frame_is_edited_by_itself(granularity):
    (unet, added), (z, text) = model("sd"), inputs(2, 1)
    alone = run(unet, added, z, text, policy_of(z[0], granularity))
    assert distance(alone, run(unet, added, z, text, "own")) < SAME


@pytest.mark.parametrize("granularity", ["site", "token"])
def test_anchors_equal_an_explicit_mean(granularity):
    z = torch.randn(3, 4, 4, 6, dtype=torch.float64)
    policy = policy_of(z, granularity)
    keys, values = torch.randn(2, 3, 24, 8, dtype=torch.float64)
    k, v = policy(keys, values, "layer")(slice(1, 3))
    weights = compression_weights(policy.anchors, (4, 6), 24)
    for found, x in ((k, keys), (v, values)):
        assert torch.equal(found[:, :24], x[1:3])
        shared = []
        for w in weights:  # f n
            means = sum(w[f][:, None] * x[f] for f in range(3))
            shared.append(means if granularity == "site" else means.sum(0, keepdim=True))
        assert distance(found[:, 24:], torch.cat(shared).expand(2, -1, -1)) < 1e-12


def test_key_frames_are_own_and_those_frames():
    keys, values = torch.randn(2, 4, 6, 8)
    k, v = KeyframeAttention((3, 1))(keys, values, "layer")(slice(2, 3))
    assert torch.equal(k, torch.cat([keys[2], keys[3], keys[1]])[None])
    assert torch.equal(v, torch.cat([values[2], values[3], values[1]])[None])
    with pytest.raises(InputError, match=r"Key frames \[4\] of a clip of 4 frames"):
        KeyframeAttention((4,))(keys, values, "layer")


def test_chunks_and_the_order_of_frames_do_not_matter():
    (unet, added), (z, text) = model("sd"), inputs(2, 5)
    policy, order = policy_of(z[0]), torch.tensor([4, 1, 3, 0, 2])
    whole = run(unet, added, z, text, policy)
    permuted = run(unet, added, z[:, order], text, policy_of(z[0][order]))
    assert distance(permuted, whole[:, order]) < 1e-5  # the anchors' own tolerance
    keys = torch.randn(5, 64, 8, dtype=torch.float64)
    lookup = policy(keys, keys, "layer")
    parts = torch.cat([lookup(slice(0, 2))[0], lookup(slice(2, 5))[0]])
    assert torch.equal(parts, lookup(slice(0, 5))[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_keys(dtype, tolerance):
    """A mean of keys of order 1, to the rounding of the type."""
    z = torch.randn(3, 4, 4, 4)
    policy, keys = policy_of(z), torch.randn(3, 16, 8)
    exact = policy(keys, keys, "layer")(slice(0, 3))[0]
    half = policy(keys.to(dtype), keys.to(dtype), "layer")(slice(0, 3))[0]
    assert half.dtype == dtype and distance(half.float(), exact) < tolerance


def test_what_does_not_fit_is_named():
    policy = policy_of(torch.randn(3, 4, 4, 4))
    with pytest.raises(InputError, match="anchors are those of 3 frames and the clip has 2"):
        policy(torch.randn(2, 16, 8), torch.randn(2, 16, 8), "layer")
    with pytest.raises(InputError, match="layer of 7 tokens"):
        policy(torch.randn(3, 7, 8), torch.randn(3, 7, 8), "layer")
    with pytest.raises(InputError, match="belongs to one clip"):
        get_policy("anchors")(torch.randn(3, 9, 8), torch.randn(3, 9, 8), "layer")


# In the pipeline.


def test_an_edit_finds_its_anchors_or_takes_them(tiny, video):
    arguments = dict(source_prompt="a red circle", num_inference_steps=3, output_type="pt")
    call = lambda **more: tiny(video, "a blue square", **arguments, **more).frames[0]  # noqa: E731
    found = call(attention=SETTINGS)
    own = call(attention="own")
    assert distance(found, own) > 1e-6
    features = tiny.encode(video).flatten(2).mT
    given = call(attention=assign_anchors(features, SETTINGS))
    assert torch.equal(found, given)
    token = call(attention=replace(SETTINGS, granularity="token"))
    assert distance(found, token) > 1e-6
    assert torch.isfinite(call(attention="anchors", injection=0.7)).all()


def test_an_inversion_remembers_its_anchors(tiny, video):
    """Exact inversion under anchors returns to the round trip, by the anchors it was made with."""
    strict = ExactSettings(max_iterations=60)
    inverted = tiny.invert(
        video, "a red circle", 3, strict, SETTINGS, return_inversion=True
    )
    assert inverted.anchors is not None
    back = tiny.reconstruct(inverted, "a red circle", 3, "anchors")
    trip = tiny.decode(tiny.encode(video))
    assert (back - trip).square().mean() < 1e-6  # 60 dB
    other = tiny.reconstruct(inverted, "a red circle", 3, "own")
    assert (other - trip).square().mean() > 10 * (back - trip).square().mean()
    again = tiny.reconstruct(inverted.latents, "a red circle", 3, inverted.anchors)
    assert torch.equal(again, back)


def test_given_latents_are_edited_as_they_were_inverted(tiny, video):
    """The default, "anchors", leaves it to the inversion; anchors that are given are used."""
    edit = lambda latents, **more: tiny(  # noqa: E731
        None, "a blue square", "a red circle", latents=latents, num_inference_steps=3,
        output_type="pt", **more,
    ).frames[0]  # fmt: skip
    for attention in ("own", "extended", "anchors"):
        found = tiny.invert(video, "a red circle", 3, "ddim", attention, return_inversion=True)
        explicit = found.anchors if attention == "anchors" else attention
        assert torch.equal(edit(found), edit(found, attention=explicit))
    bare = tiny.invert(video, "a red circle", 3)
    assert torch.equal(edit(bare), edit(bare, attention="extended"))
    assert distance(edit(bare), edit(bare, attention=SETTINGS)) > 1e-6
    whole = tiny(video, "a blue square", "a red circle", num_inference_steps=3, output_type="pt")
    assert torch.equal(whole.frames[0], edit(found))  # of a clip, anchors are the default
