"""Measures of an assignment, where the right answer is known or can be enumerated."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research.methods import keyframes as frames_by
from vala_research.methods.anchors import (
    KEYFRAME_METHODS,
    AnchorSettings,
    assign_anchors,
    select_keyframes,
    unit_tokens,
)
from vala_research.sprites.render import SpriteClip, render
from vala_research.sprites.scene import WORLD, World, random_scene, split_generator


def sprite_clip(
    i: int, split: str = "test", n_frames: int = 16, size: int = 64, world: World = WORLD
) -> SpriteClip:
    """Clip i of a split, with i mod 5 hard cuts."""
    scene = random_scene(split_generator(split, i), n_cuts=i % 5, world=world)
    return render(scene, n_frames, size)


def n_scenes(clip: SpriteClip) -> int:
    """Number of shots of a sprite clip."""
    return int(clip.scene_index.max()) + 1


def frame_descriptors(latents: Float[Tensor, "f c h w"]) -> Float[Tensor, "f 1 d"]:
    """Describe each frame by means and centred second moments of its latent channels.

    d = c + c (c + 1) / 2. Neither changes as the object moves; shots differ in both.
    """
    x = latents.flatten(2)
    mean = x.mean(-1, keepdim=True)
    moments = (x - mean) @ (x - mean).transpose(1, 2) / x.shape[-1]
    i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    return torch.cat([mean[..., 0], moments[:, i, j]], -1)[:, None]


def keyframe_excess(
    clips: Iterable[Float[Tensor, "f n d"]],
    n_keyframes: int = 4,
    methods: Iterable[str] = KEYFRAME_METHODS,
    generator: torch.Generator | None = None,
) -> list[dict]:
    """Measure the loss of each method's key frames beyond the best set.

        excess = D(S) / D(optimal) - 1

    The best set is found by trying all. Rows of clip, method, distortion (D in [0, 4]) and excess;
    smaller is better, 0 is optimal.
    """
    rows = []
    for clip, features in enumerate(clips):
        cost = frames_by.token_costs(unit_tokens(features)).flatten(0, 1)
        weight = torch.ones_like(cost[:, 0])
        best = frames_by.optimal_set(cost, weight, n_keyframes)
        least = frames_by.set_cost(cost, weight, best)
        for method in methods:
            frames = best
            if method != "optimal":
                frames = select_keyframes(features, n_keyframes, method, generator)
            loss = frames_by.set_cost(cost, weight, frames)
            excess = loss / least - 1 if least > 0 else math.inf if loss > 0 else 0.0
            rows.append({"clip": clip, "method": method, "distortion": loss, "excess": excess})
    return rows


def scene_counts(
    latents: Iterable[Float[Tensor, "f c h w"]],
    scenes: Iterable[int],
    settings: AnchorSettings = AnchorSettings(),
) -> list[dict]:
    """Compare the number of anchors of whole frames with the number of shots.

    scenes: the true number per clip. Rows of clip, scenes, and found: `n_effective` of the frames'
    descriptors.
    """
    rows = []
    for i, (z, n) in enumerate(zip(latents, scenes, strict=True)):
        anchors = assign_anchors(frame_descriptors(z), settings)
        rows.append({"clip": i, "scenes": n, "found": anchors.n_effective})
    return rows


def effective_anchors(
    clips: Iterable[Float[Tensor, "f n d"]],
    priors: Iterable[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    n_anchors: Iterable[int] = (4, 8, 16),
    settings: AnchorSettings = AnchorSettings(),
) -> list[dict]:
    """Count effective anchors under each upper bound and prior.

    Rows of clip, n_anchors (the upper bound), dirichlet (the prior a0) and n_effective.
    """
    rows = []
    for clip, features in enumerate(clips):
        for k, a0 in product(n_anchors, priors):
            bounded = replace(settings, n_anchors=k, dirichlet=a0)
            n = assign_anchors(features, bounded).n_effective
            rows.append({"clip": clip, "n_anchors": k, "dirichlet": a0, "n_effective": n})
    return rows
