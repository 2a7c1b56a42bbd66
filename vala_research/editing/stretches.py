"""Stretches: a long clip goes through the network part by part, so that memory does not grow.

A stretch is some frames of the clip together with the context, which all frames attend to. A frame
of the context attends to the context too, so it is the same in every stretch. The guidance branches
of a long clip go one by one, unless the source is injected. The policies `own`, `first` and
`KeyframeAttention` give the same result as all frames at once. `AnchorAttention` pools its anchors
over the context alone once a clip is longer than FRAMES_AT_ONCE. Other policies need all frames at
once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.attending import Attending, get_policy
from vala_research.diffusion.attention import (
    CONTEXT,
    FRAMES_AT_ONCE,
    AnchorAttention,
    KeyframeAttention,
    Keyframes,
    Policy,
    first,
    own,
)
from vala_research.diffusion.cross_frame import CrossFrame, Meeting
from vala_research.diffusion.injection import attention_patches
from vala_research.diffusion.patching import Patch
from vala_research.diffusion.records import is_video_model
from vala_research.diffusion.word_maps import SharedWords
from vala_research.editing.source import SourceBackbone
from vala_research.methods.anchors import Anchors, AnchorSettings


def predicted(
    backbone: SourceBackbone,
    attention: Attending,
    x: Float[Tensor, "g f c h w"],
    t: float,
    text: Float[Tensor, "g n d"],
    more: tuple[Patch, ...] = (),
    shown: Sequence[int] = (),
    **injects: bool | SharedWords | None,
) -> Float[Tensor, "g f c h w"]:
    """The prediction of a network for a clip, stretch by stretch where the clip is long.

    more: patches beside those of the attention. shown: as in `SourceBackbone`. injects: as in
    `attention_patches`.
    """
    n_frames, n_sites = x.shape[1], x[0, 0, 0].numel()
    editor = get_policy(attention)
    if isinstance(editor, CrossFrame):
        meeting = editor.at(t, n_frames, n_sites)
        return met(backbone, meeting, x, t, text, more, shown, **injects)

    # Windows are short anyway. A video model or a filter along frames looks at neighbours.
    looks_along_frames = more or backbone.windows or is_video_model(backbone.unet)
    parts = list((whole if looks_along_frames else stretches)(attention, n_frames))

    # Guidance branches of a long clip go one by one, unless one gives to the others.
    alone = len(parts) > 1 and not any(injects.values())
    groups = [slice(g, g + 1) for g in range(len(x))] if alone else [slice(None)]
    out = torch.empty_like(x)
    for part, group in product(parts, groups):
        seen = x[group, part.seen]
        patches = attention_patches(
            backbone.unet, part.policy, len(seen), backbone.frames_seen(seen),
            size=tuple(x.shape[-2:]), **injects,
        )
        answer = backbone(
            seen, t, text[group], [*patches, *more], shown=shown[group], frames=part.seen
        )
        out[group, part.own] = answer[:, part.kept]
    return out


def met(
    backbone: SourceBackbone, meeting: Meeting, x: Float[Tensor, "g f c h w"], t: float,
    text: Float[Tensor, "g n d"], more: Sequence[Patch], shown: Sequence[int], **injects: Any,
) -> Float[Tensor, "g f c h w"]:  # fmt: skip
    """The prediction for a clip whose frames meet as an editor says, all of them in one call."""
    seen = meeting.arranged(x[:, meeting.seen])
    if meeting.is_arranged:
        backbone = arranged(backbone, meeting)
    elif meeting.norms_frames:
        backbone = replace(backbone, frames_per_chunk=seen.shape[1])
    patches = attention_patches(
        backbone.unet, meeting, len(seen), backbone.frames_seen(seen),
        size=tuple(x.shape[-2:]), **injects,
    )
    frames = slice(None) if meeting.is_arranged else meeting.seen
    answer = backbone(seen, t, text, [*patches, *more], shown=shown, frames=frames)
    return meeting.restored(answer[:, meeting.kept])


def arranged(backbone: SourceBackbone, meeting: Meeting) -> SourceBackbone:
    """The network with its control pictures in the layout of a meeting.

    Raises InputError for what belongs to single frames and has no place in a grid.
    """
    a = backbone.activation
    if backbone.pictures is not None or (a is not None and a.vision is not None):
        raise InputError(
            "Grids of frames have one prompt, and this edit shows the network a picture of each "
            "frame: leave out the IP-Adapter, or the adapter with image tokens, or the grids."
        )
    controls = [
        replace(control, pictures=meeting.arranged(control.pictures))
        for control in backbone.controls
    ]
    return replace(backbone, controls=controls)


@dataclass(frozen=True)
class Stretch:
    """Some frames of a clip with the context that they attend to.

    seen: the frames of the clip that the network sees, in order. own: those that are the stretch's
    own. kept: their places among the seen ones. policy: the attention among the seen frames.
    """

    seen: slice | list[int]
    own: slice
    kept: slice | list[int]
    policy: Policy


def whole(attention: Attending, n_frames: int) -> list[Stretch]:
    """One stretch: the clip."""
    return [Stretch(slice(None), slice(None), slice(None), get_policy(attention))]


def stretches(attention: Attending, n_frames: int) -> Iterator[Stretch]:
    """The stretches of a clip; one where the clip is short or the policy needs all frames."""
    policy = get_policy(attention)
    context = context_of(policy)
    if context is None or n_frames <= FRAMES_AT_ONCE:
        yield from whole(attention, n_frames)
        return

    # Every stretch sees equally many frames, but for a shorter last one: memory that one stretch
    # frees then fits the next. So its border depends on how much of the context is its own.
    others = [frame for frame in range(n_frames) if frame not in context]
    size = n_fresh(len(context))
    for start, stop in pairwise([0, *others[size::size], n_frames]):
        seen = sorted({*context, *range(start, stop)})
        place = {frame: i for i, frame in enumerate(seen)}
        chosen = tuple(place[frame] for frame in context)
        kept = [place[frame] for frame in range(start, stop)]
        yield Stretch(seen, slice(start, stop), kept, among(policy, chosen))


def n_fresh(n_context: int) -> int:
    """Frames per stretch beside the context: FRAMES_AT_ONCE in all, at least half of these."""
    return max(1, FRAMES_AT_ONCE // 2, FRAMES_AT_ONCE - n_context)


def count_frames(attention: Attending, n_frames: int) -> tuple[int, int]:
    """Count the frames that the network sees: in all stretches of a clip, and at once.

    attention: a policy, or what becomes one once the clip is known.
    """
    of_anchors = AnchorSettings | Anchors | AnchorAttention
    editor = get_policy(attention)
    if isinstance(editor, CrossFrame):
        return (editor.n_seen(n_frames),) * 2
    n_context = {"own": 0, "first": 1}.get(attention) if isinstance(attention, str) else None
    if attention == "anchors" or isinstance(attention, of_anchors):
        n_context = CONTEXT
    elif isinstance(attention, Keyframes):
        n_context = min(attention.n, n_frames)
    elif isinstance(attention, KeyframeAttention):
        n_context = len(attention.keyframes)
    if n_context is None or n_frames <= FRAMES_AT_ONCE:
        return n_frames, n_frames

    # Each frame of the context is new in one stretch and repeated in all others.
    size = n_fresh(n_context)
    n_stretches = max(1, ceil((n_frames - n_context) / size))
    return n_frames + n_context * (n_stretches - 1), size + n_context


def context_of(policy: Policy) -> tuple[int, ...] | None:
    """The frames to which every frame attends besides itself; None where they are not so few."""
    if policy is own:
        return ()
    if policy is first:
        return (0,)
    if isinstance(policy, KeyframeAttention):
        return tuple(dict.fromkeys(policy.keyframes))
    return policy.context if isinstance(policy, AnchorAttention) else None


def among(policy: Policy, places: tuple[int, ...]) -> Policy:
    """The policy for frames among which the context is at these places."""
    if isinstance(policy, KeyframeAttention):
        return KeyframeAttention(places)
    return policy.among(places) if isinstance(policy, AnchorAttention) else policy
