"""A long clip goes through the network in stretches. Cost: 3 s."""

import pytest
import torch

from vala_research.diffusion import attention
from vala_research.diffusion.attending import policy_of_clip
from vala_research.diffusion.attention import KeyframeAttention, Keyframes
from vala_research.diffusion.bilateral_inversion import BilateralInversion
from vala_research.diffusion.null_text import NullTextSettings
from vala_research.editing import stretches
from vala_research.methods.anchors import AnchorSettings

PROMPTS = dict(prompt="a red circle", source_prompt="a blue square")


@pytest.fixture
def clip() -> torch.Tensor:
    """Eleven frames that brighten and turn, f c h w."""
    generator = torch.Generator().manual_seed(1)
    ends = torch.rand(2, 3, 8, 8, generator=generator)
    share = torch.linspace(0, 1, 11)[:, None, None, None]
    return (1 - share) * ends[0] + share * ends[1]


def limit(monkeypatch, frames: int, context: int) -> None:
    """Let a clip be long from fewer frames on."""
    for module in (stretches, attention):
        monkeypatch.setattr(module, "FRAMES_AT_ONCE", frames)
        monkeypatch.setattr(module, "CONTEXT", context)


def edit(pipe, clip, **options) -> torch.Tensor:
    options = PROMPTS | dict(num_inference_steps=2, output_type="pt") | options
    return pipe(clip, **options).frames[0]


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("own", {}),
        ("own", {"injection": 1.0}),
        ("first", {"inversion": NullTextSettings(n_iterations=1)}),
        (KeyframeAttention((7, 2)), {"injection": 0.5}),
        (Keyframes("vala", 2), {}),
    ],
)
def test_stretches_do_not_change_an_edit(tiny, clip, monkeypatch, policy, options):
    """Exact, up to rounding, for policies by which a frame attends to a few known frames."""
    at_once = edit(tiny, clip, attention=policy, **options)
    limit(monkeypatch, 4, 2)
    in_stretches = edit(tiny, clip, attention=policy, **options)
    assert (in_stretches - at_once).abs().max() < 2e-5
    if policy != "own":
        assert (edit(tiny, clip, attention="own", **options) - at_once).abs().max() > 1e-4


def test_anchors_of_a_long_clip_are_pooled_over_their_context(tiny, clip, monkeypatch):
    """In stretches, and all at once by hand: both pool the same frames."""
    all_frames = edit(tiny, clip)
    limit(monkeypatch, 5, 3)
    in_stretches = edit(tiny, clip)
    monkeypatch.setattr(stretches, "context_of", lambda policy: None)
    at_once = edit(tiny, clip)
    assert (in_stretches - at_once).abs().max() < 2e-5
    assert (in_stretches - all_frames).abs().max() > 1e-5, "three frames are not eleven"


def test_the_context_covers_both_scenes_of_a_clip(tiny, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    scenes = torch.rand(2, 4, 6, 6, generator=generator)
    z = scenes[[0] * 9 + [1] * 3] + 0.01 * torch.rand(12, 4, 6, 6, generator=generator)
    limit(monkeypatch, 5, 3)
    policy = policy_of_clip(AnchorSettings(n_anchors=2), z)
    assert {frame // 9 for frame in policy.context} == {0, 1}


def test_the_network_sees_few_frames_at_once(tiny, clip, monkeypatch):
    """Each frame is new in one stretch, and no stretch is longer than the limit."""
    limit(monkeypatch, 5, 2)
    policy = policy_of_clip(Keyframes("uniform", 2), tiny.encode(clip))
    parts = list(stretches.stretches(policy, 11))
    assert all(len(part.seen) == 5 for part in parts[:-1]) and len(parts[-1].seen) <= 5
    assert [part.seen[i] for part in parts for i in part.kept] == list(range(11))
    for part in parts:
        assert [part.seen[i] for i in part.policy.keyframes] == list(policy.keyframes)


@pytest.mark.parametrize("policy", ["extended", "sparse_causal"])
def test_policies_that_need_all_frames_get_them(tiny, clip, monkeypatch, policy):
    at_once = edit(tiny, clip, attention=policy)
    limit(monkeypatch, 4, 2)
    assert torch.equal(edit(tiny, clip, attention=policy), at_once)


def test_a_filter_along_frames_sees_all_frames(tiny, clip, monkeypatch):
    inversion = BilateralInversion(place="frames")
    at_once = edit(tiny, clip, attention="own", inversion=inversion)
    limit(monkeypatch, 4, 2)
    in_stretches = edit(tiny, clip, attention="own", inversion=inversion)
    assert (in_stretches - at_once).abs().max() < 2e-5


def test_estimate_counts_the_context_of_every_stretch(tiny, clip, monkeypatch):
    limit(monkeypatch, 5, 2)
    seen = []
    hook = tiny.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    for policy in ("own", "first", "anchors", Keyframes("uniform", 2)):
        seen.clear()
        edit(tiny, clip, attention=policy)
        estimate = tiny.estimate(11, 8, 8, num_inference_steps=2, attention=policy)
        assert estimate.n_evaluations == sum(seen)
        assert max(seen) <= 5, "the branches of a long clip go one by one"
    hook.remove()
