"""Harder motions for any scene: a fast object, or a hard cut. What the scene shows stays."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from vala_research import chosen_from
from vala_research.sprites.palette import PERIOD
from vala_research.sprites.scene import Motion, Scene, World, random_scene

MOTIONS = ("usual", "fast", "cut")
BORDER = 0.02  # frame widths from the border to a fast object's radius, beyond which only tips lie
JUMP = 0.2  # frame widths by which an object jumps at a cut, at least


def in_motion(scene: Scene, name: str, world: World, generator: torch.Generator) -> Scene:
    """Give a scene of one shot another motion, and keep its attributes.

    name: "usual" changes nothing. "fast": the object crosses the frame and comes back. The border
    cuts off no more than tips of it. "cut": in the middle a second shot begins. There the same
    object stands at least `JUMP` away and moves otherwise, and the background's pattern is shifted.
    """
    chosen_from("motion", name, MOTIONS)
    if name == "fast":
        return replace(scene, motion=_fast(scene.motion, generator))
    if name == "cut":
        return replace(scene, then=(replace(scene, motion=_other(scene.motion, world, generator)),))
    return scene


def _fast(motion: Motion, generator: torch.Generator) -> Motion:
    """Replace the path; the turn, the growth and the background's pan stay."""
    first, second, way, drift, axis = torch.rand(5, generator=generator).tolist()
    margin = max(motion.size) + BORDER
    near, far = (margin, 1 - margin) if way < 0.5 else (1 - margin, margin)

    # The path drifts along one axis, from below the middle to above it or back.
    ends = margin + first * (0.45 - margin), 1 - margin - second * (0.45 - margin)
    low, high = ends if drift < 0.5 else ends[::-1]

    # Along the other axis its bend takes it from border to border and back.
    start, end, bend = (near, low), (near, high), (near - far) / (high - low)
    if axis < 0.5:
        start, end, bend = start[::-1], end[::-1], -bend
    return replace(motion, start=start, end=end, bend=bend)


def _other(motion: Motion, world: World, generator: torch.Generator) -> Motion:
    """Draw the motion after a cut; the object's size goes back to what it was at first."""
    shift = [phase + pan for phase, pan in zip(motion.phase, motion.pan, strict=True)]
    while True:
        other = random_scene(generator, world=world).motion
        steps = [(a - b) / PERIOD % 1 for a, b in zip(other.phase, shift, strict=True)]
        is_elsewhere = math.dist(other.start, motion.end) >= JUMP
        if is_elsewhere and all(0.25 <= step <= 0.75 for step in steps):
            return replace(other, size=motion.size[::-1])
