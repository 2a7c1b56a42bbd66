"""Attention policies: which frames and anchors each frame of a clip attends to.

A policy receives the keys and values `f n d` of one layer and one guidance branch. It returns a
lookup: slice of frames -> keys and values `r m d` that these frames attend to. r is the number of
frames in the slice, or 1 when all of them share the keys (then nothing is copied). Heavy work is
done once per layer, before the lookup. Add a policy with `POLICIES[name] = policy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.methods.anchors import Anchors, AnchorSettings, covering_frames
from vala_research.methods.compression import compression_weights, counts_of

# -> keys, values, and perhaps what is added to the logits of these keys
Lookup = Callable[[slice], tuple[Tensor, ...]]
Policy = Callable[[Tensor, Tensor, str], Lookup]  # (keys, values, layer name) -> lookup

# A clip of more frames is edited in stretches. Its anchors are then pooled over CONTEXT frames,
# which are chosen from at most MOST_CANDIDATES evenly spread ones.
FRAMES_AT_ONCE, CONTEXT, MOST_CANDIDATES = 128, 32, 512


def own(keys: Float[Tensor, "f n d"], values: Float[Tensor, "f n d"], layer: str) -> Lookup:
    """Each frame attends to itself: the image model, frame by frame."""
    return lambda frames: (keys[frames], values[frames])


def first(keys: Float[Tensor, "f n d"], values: Float[Tensor, "f n d"], layer: str) -> Lookup:
    """Every frame attends to the first one (Khachatryan et al. 2023, Text2Video-Zero, Eq. (9))."""
    return lambda frames: (keys[:1], values[:1])


def sparse_causal(
    keys: Float[Tensor, "f n d"], values: Float[Tensor, "f n d"], layer: str
) -> Lookup:
    """Each frame attends to the first and the previous (Wu et al. 2023, Tune-A-Video, 4.1).

    The first frame sees itself twice, which equals once.
    """

    def gather(x: Tensor, frames: slice) -> Tensor:
        previous = torch.arange(len(x), device=x.device)[frames].sub(1).clamp_min(0)
        return torch.cat([x[:1].expand(len(previous), -1, -1), x[previous]], dim=1)

    return lambda frames: (gather(keys, frames), gather(values, frames))


def extended(keys: Float[Tensor, "f n d"], values: Float[Tensor, "f n d"], layer: str) -> Lookup:
    """Every frame attends to all frames (Wang et al. 2023, vid2vid-zero, dense attention)."""
    k, v = rearrange(keys, "f n d -> 1 (f n) d"), rearrange(values, "f n d -> 1 (f n) d")
    return lambda frames: (k, v)


@dataclass(frozen=True)
class AnchorAttention:
    """The policy `anchors` of one clip: own frame and anchors (Wu et al. 2025, VALA).

    anchors: found on latents of `grid` = height x width sites. Keys and values are compressed
    alike, once a layer: K pseudo-frames that all frames share, or K tokens. A single frame has
    nothing to share.
    places: where the frames of `context` are among the frames that are called. None: the frames
    are those of the clip. counts_frames: the logits of an anchor at a site get the logarithm of the
    frames that it stands for there, so that it weighs as much as these frames would.
    """

    anchors: Anchors
    grid: tuple[int, int]
    places: tuple[int, ...] | None = None
    counts_frames: bool = False
    _weights: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def context(self) -> tuple[int, ...] | None:
        """The frames over which the anchors of a long clip are pooled. None: over all frames."""
        n_frames = len(self.anchors.responsibilities)
        if n_frames <= FRAMES_AT_ONCE:
            return None
        step = math.ceil(n_frames / MOST_CANDIDATES)
        candidates = self.anchors.of_frames(slice(None, None, step))
        return tuple(step * frame for frame in covering_frames(candidates, CONTEXT))

    def among(self, places: tuple[int, ...]) -> AnchorAttention:
        """The same policy for some frames of the clip, among which `context` has these places."""
        return replace(self, anchors=self._pooled, places=places)

    @cached_property
    def _pooled(self) -> Anchors:
        """The anchors in the frames over which they are pooled."""
        return self.anchors if self.context is None else self.anchors.of_frames(list(self.context))

    def __call__(
        self, keys: Float[Tensor, "f n d"], values: Float[Tensor, "f n d"], layer: str
    ) -> Lookup:
        n_frames, n = keys.shape[:2]
        if self.places is None and n_frames != len(self.anchors.responsibilities):
            raise InputError(
                f"The anchors are those of {len(self.anchors.responsibilities)} frames and the "
                f"clip has {n_frames}: find them on this clip."
            )
        if n_frames == 1:
            return own(keys, values, layer)
        if n not in self._weights:
            self._weights[n] = compression_weights(self._pooled, self.grid, n)
        weights = self._weights[n].to(keys)
        places = self.context if self.places is None else self.places
        pooled = (keys, values) if places is None else (keys[list(places)], values[list(places)])
        sums = "kfn,fnd->knd" if self.anchors.granularity == "site" else "kfn,fnd->kd"
        lookup = own_and(keys, values, *(torch.einsum(sums, weights, x) for x in pooled))
        if not self.counts_frames:
            return lookup
        counts = counts_of(self.anchors, self.grid, n).to(keys)
        bias = torch.cat([counts.new_zeros(n), counts.flatten().log()])
        return lambda frames: (*lookup(frames), bias)


@dataclass(frozen=True)
class KeyframeAttention:
    """Policy: own frame and some key frames of the clip, unchanged (as Fairy, Wu et al. 2023)."""

    keyframes: tuple[int, ...]

    def __call__(
        self, keys: Float[Tensor, "f n d"], values: Float[Tensor, "f n d"], layer: str
    ) -> Lookup:
        chosen = list(self.keyframes)
        if not chosen or min(chosen) < 0 or max(chosen) >= len(keys):
            raise InputError(f"Key frames {chosen} of a clip of {len(keys)} frames: choose others.")
        return own_and(keys, values, keys[chosen], values[chosen])


def own_and(
    keys: Float[Tensor, "f n d"],
    values: Float[Tensor, "f n d"],
    more_keys: Float[Tensor, "... d"],
    more_values: Float[Tensor, "... d"],
) -> Lookup:
    """Each frame's own tokens, then those that all frames share; copied a chunk at a time."""
    more_keys, more_values = more_keys.flatten(0, -2), more_values.flatten(0, -2)

    def lookup(frames: slice) -> tuple[Tensor, Tensor]:
        k, v = keys[frames], values[frames]
        return (
            torch.cat([k, more_keys.expand(len(k), -1, -1)], dim=1),
            torch.cat([v, more_values.expand(len(v), -1, -1)], dim=1),
        )

    return lookup


POLICIES: dict[str, Policy] = {
    "own": own, "first": first, "sparse_causal": sparse_causal, "extended": extended,
}  # fmt: skip


ANCHORS = AnchorSettings(n_anchors=2)  # "anchors": 1.3 times the cost of editing frame by frame


@dataclass(frozen=True)
class Keyframes:
    """How to find a policy: own frame, and n key frames that `method` chooses on the clip.

    method: as in `select_keyframes`.
    """

    method: str
    n: int
