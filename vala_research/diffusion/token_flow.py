"""TokenFlow as an editor: key frames attend to each other, all frames take what these make.

Geyer et al. 2023 (arXiv 2307.10373), section 4. The key frames go through the network beside the
clip, in the same call: every layer of the clip needs the key frames' output of that layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research import chosen_from, number_in
from vala_research.diffusion.attention_processor import FrameAttention, attend
from vala_research.diffusion.cross_frame import CrossFrame, Meeting
from vala_research.diffusion.patching import chunks
from vala_research.methods.anchors import KEYFRAME_METHODS, select_keyframes
from vala_research.methods.keyframes import served_frames
from vala_research.methods.token_flow import Shares, correspond


@dataclass(frozen=True)
class TokenFlow(CrossFrame):
    """One key frame per batch of frames.

    batch: frames per key frame. The last batch may be shorter; the released code drops it.
    keyframes: "random" draws one of each batch at every step, as the released code does; "vala" and
        the other methods of `select_keyframes` choose as many on the clip, once.
    redraws: a key frame is drawn at every step from each batch or, where a method chose key frames,
        from the frames that each of them serves best. Otherwise there are the same ones at every
        step. None: random ones are drawn at every step, and others are not.
    mixing: "batches" takes from the key frames of the own batch and of the one before, as the
        released code does; "nearest" from those before and after. None is "batches" for random key
        frames, and "nearest" for others.
    groups: of this clip, once it is known: the frames from which each key frame is drawn.
    """

    batch: int = 8
    keyframes: str = "random"
    mixing: str | None = None
    groups: tuple[tuple[int, ...], ...] = ()
    redraws: bool | None = None
    needs_source: ClassVar[bool] = True
    fits_video_models: ClassVar[bool] = False

    def __post_init__(self):
        number_in("The batch of TokenFlow", self.batch, 1, 1000, whole=True)
        chosen_from("key frames of TokenFlow", self.keyframes, KEYFRAME_METHODS)
        ways = ("batches", "nearest") if self.keyframes == "random" else ("nearest",)
        chosen_from("mixing of TokenFlow", self.mixing or ways[0], ways)

    def of_clip(
        self, z_0: Float[Tensor, "f c h w"], frames: Any, generator: torch.Generator | None
    ) -> TokenFlow:
        seeded = super().of_clip(z_0, frames, generator)
        if self.keyframes == "random" or self.groups:
            return seeded
        features = rearrange(z_0, "f c h w -> f (h w) c")
        chosen = select_keyframes(features, self.n_seen(len(z_0)) - len(z_0), self.keyframes)
        groups = served_frames(features, chosen) if self.redraws else [[frame] for frame in chosen]
        return replace(seeded, groups=tuple(map(tuple, groups)))

    def n_seen(self, n_frames: int) -> int:
        return n_frames + -(-n_frames // self.batch)

    def at(self, t: int, n_frames: int, n_sites: int) -> Pivots:
        is_drawn_once = self.redraws is False
        drawing = self.drawing(0 if is_drawn_once else t)
        groups = self.groups or [range(n_frames)[batch] for batch in chunks(n_frames, self.batch)]
        drawn = (torch.randint(len(group), (), generator=drawing) for group in groups)
        keyframes = sorted(group[int(i)] for group, i in zip(groups, drawn, strict=True))
        is_released = self.keyframes == "random" and self.mixing != "nearest"
        if is_released:
            shares = Shares.of_batches(n_frames, self.batch)
        else:
            shares = Shares.between(n_frames, keyframes)
        n = len(keyframes)
        return Pivots([*keyframes, *range(n_frames)], slice(n, None), shares=shares)


@dataclass(frozen=True)
class Pivots(Meeting):
    """The key frames, then the clip. shares: from which key frames each frame takes."""

    shares: Shares = Shares((), ())

    def processor(
        self, layer: str, n_branches: int, frames_per_chunk: int, is_injected: bool
    ) -> Propagation:
        return Propagation(n_branches, frames_per_chunk, is_injected, self.kept.start, self.shares)


@dataclass
class Propagation(FrameAttention):
    """The first n_pivots frames attend to each other; the others take their outputs.

    The last branch is the source, whose frames attend to themselves; a branch alone is both.
    """

    n_branches: int
    frames_per_chunk: int
    is_injected: bool
    n_pivots: int
    shares: Shares

    def output(self, attn: Attention, x: Float[Tensor, "g f n c"]) -> Float[Tensor, "g f n c"]:
        n, out = self.n_pivots, torch.empty_like(x)
        found = correspond(x[-1, n:], x[-1, :n], self.shares)
        for g, branch in enumerate(x):
            layout = self.layout(x, g)[:n]
            k, v = attn.to_k(layout), attn.to_v(branch[:n])
            is_source = g == len(x) - 1 > 0
            if not is_source:
                k, v = k.flatten(0, 1)[None], v.flatten(0, 1)[None]
            for frames in chunks(n, self.frames_per_chunk):
                theirs = (k[frames], v[frames]) if is_source else (k, v)
                out[g, frames] = attend(attn, attn.to_q(layout[frames]), *theirs)
            out[g, n:] = found.carried(out[g, :n])
        return out
