"""What an argument `attention` takes, and what becomes of it on one clip."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, chosen_from
from vala_research.diffusion.attention import (
    ANCHORS,
    POLICIES,
    AnchorAttention,
    KeyframeAttention,
    Keyframes,
    Lookup,
    Policy,
)
from vala_research.diffusion.cross_frame import CrossFrame
from vala_research.diffusion.grid_shuffle import GridShuffle
from vala_research.diffusion.layered_attention import LayeredAttention
from vala_research.diffusion.token_flow import TokenFlow
from vala_research.diffusion.token_merging import TokenMerging
from vala_research.diffusion.trajectory_attention import TrajectoryAttention
from vala_research.methods.anchors import Anchors, AnchorSettings, assign_anchors, select_keyframes

CROSS_FRAME: dict[str, CrossFrame] = {
    "token_flow": TokenFlow(), "token_merging": TokenMerging(), "grid_shuffle": GridShuffle(),
    "trajectories": TrajectoryAttention(), "layered": LayeredAttention(),
}  # fmt: skip
NAMES = (*POLICIES, "anchors", *CROSS_FRAME)

# What an argument `attention` takes.
Attending = str | Policy | AnchorSettings | Anchors | Keyframes | CrossFrame


def get_policy(attention: Attending) -> Policy | CrossFrame:
    """A policy by its name, or the policy itself.

    What belongs to one clip becomes a policy in `policy_of_clip`; until then, calling it fails.
    Raises InputError, which lists the valid names.
    """
    if callable(attention) or isinstance(attention, CrossFrame):
        return attention
    if isinstance(attention, str) and attention in CROSS_FRAME:
        return CROSS_FRAME[attention]
    if depends_on_clip(attention):
        return policy_of_no_clip
    chosen_from("attention", attention, NAMES)
    return POLICIES[attention]


def depends_on_clip(attention: Attending) -> bool:
    """Whether the attention is found on one clip and fits that clip alone."""
    of_clip = (
        AnchorSettings | Anchors | Keyframes | AnchorAttention | KeyframeAttention | CrossFrame
    )
    return isinstance(attention, of_clip) or attention in ("anchors", *CROSS_FRAME)


def inverting(attention: Attending) -> Attending:
    """The attention with which a clip is inverted that is edited with this one."""
    policy = get_policy(attention)
    return policy.inverting() if isinstance(policy, CrossFrame) else attention


def needs_source(attention: Attending) -> bool:
    """Whether an edit has the source as a branch at every step, injected or not."""
    policy = get_policy(attention)
    return isinstance(policy, CrossFrame) and policy.needs_source


def policy_of_clip(
    attention: Attending,
    z_0: Float[Tensor, "f c h w"],
    generator: torch.Generator | None = None,
    frames: Float[Tensor, "g 3 y x"] | None = None,
) -> Attending:
    """The policy of one clip, whose anchors or key frames are found on its clean latents z_0.

    generator: of what is drawn (random key frames). frames: of the clip, for optical flow. Names of
    other policies stay names.
    """
    editor = get_policy(attention)
    if isinstance(editor, CrossFrame):
        return editor.of_clip(z_0, frames, generator)
    features = rearrange(z_0, "f c h w -> f (h w) c")
    if isinstance(attention, Keyframes):
        n = min(attention.n, len(z_0))
        keyframes = select_keyframes(features, n, attention.method, generator)
        return KeyframeAttention(tuple(keyframes))

    if isinstance(attention, str) and attention == "anchors":
        attention = ANCHORS
    if isinstance(attention, AnchorSettings):
        attention = assign_anchors(features, attention)
    if isinstance(attention, Anchors):
        return AnchorAttention(attention, tuple(z_0.shape[2:]))
    return attention


def policy_of_no_clip(keys: Tensor, values: Tensor, layer: str) -> Lookup:
    """What stands for a clip's policy until the clip is known."""
    raise InputError(
        "The attention 'anchors' belongs to one clip: give AnchorAttention(anchors, grid), "
        "or leave it to VideoEditPipeline."
    )
