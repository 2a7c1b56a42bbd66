"""How good an assignment is, where the right answer is known or can be enumerated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research.data.sprites import SpriteClip, World, random_scene, render, split_generator
from vala_research.methods import keyframes as frames_by
from vala_research.methods.anchors import (
    KEYFRAME_METHODS,
    AnchorSettings,
    assign_anchors,
    select_keyframes,
    unit_tokens,
)
from vala_research.methods.descriptors import frame_descriptors


def sprite_clips(
    n_clips: int, world: World, split: str = "test", n_frames: int = 16, size: int = 64
) -> Iterator[SpriteClip]:
    """Clips of a split; clip i has i mod 5 hard cuts."""
    for i in range(n_clips):
        scene = random_scene(split_generator(split, i), n_cuts=i % 5, world=world)
        yield render(scene, n_frames, size)


def latent_tokens(pipe, frames: Float[Tensor, "f c h w"]) -> Float[Tensor, "f n d"]:
    """The clean latents of a clip, a token a site."""
    return rearrange(pipe.encode(frames), "f c h w -> f (h w) c")


def keyframe_excess(
    clips: Iterable[Float[Tensor, "f n d"]],
    n_keyframes: int = 4,
    methods: Iterable[str] = KEYFRAME_METHODS,
    generator: torch.Generator | None = None,
) -> list[dict]:
    """What each method's key frames lose beyond the best set: excess = D(S) / D(optimal) - 1.

    Rows of clip, method, distortion (D in [0, 4]) and excess; smaller is better, 0 is optimal.
    """
    rows = []
    for clip, features in enumerate(clips):
        cost = frames_by.token_costs(unit_tokens(features)).flatten(0, 1)
        weight = torch.ones_like(cost[:, 0])
        best = frames_by.optimal_set(cost, weight, n_keyframes)
        least = frames_by.set_cost(cost, weight, best)
        for method in methods:
            found = best
            if method != "optimal":
                found = select_keyframes(features, n_keyframes, method, generator)
            loss = frames_by.set_cost(cost, weight, found)
            excess = loss / least - 1 if least > 0 else math.inf if loss > 0 else 0.0
            rows.append({"clip": clip, "method": method, "distortion": loss, "excess": excess})
    return rows


def scene_counts(
    n_clips: int,
    pipe,
    world: World = World(),  # noqa: B008 - frozen
    split: str = "test",
    n_frames: int = 16,
    size: int = 64,
    settings: AnchorSettings = AnchorSettings(),  # noqa: B008 - frozen
) -> list[dict]:
    """Does the number of anchors of whole frames equal the number of shots?

    Rows of clip, scenes (the truth: 1 to 5 in turn) and found (`n_effective` of the frames'
    descriptors of clean latents).
    """
    rows = []
    for i, clip in enumerate(sprite_clips(n_clips, world, split, n_frames, size)):
        found = assign_anchors(frame_descriptors(pipe.encode(clip.frames)), settings).n_effective
        rows.append({"clip": i, "scenes": int(clip.scene_index.max()) + 1, "found": found})
    return rows
