"""Edits of scenes, and the demo clip's."""

from __future__ import annotations

import torch

from vala_research.sprites.palette import contrasts
from vala_research.sprites.scene import Scene, World

# What assets.demo_clip() shows, and what its edit changes: so the true edit can be drawn.
DEMO_FRAMES, DEMO_SIZE = 16, 64
DEMO_SCENE = dict(shape="star", colour="yellow", background="blue", pattern="plain")
DEMO_MOTION = dict(
    start=(0.36, 0.62), end=(0.64, 0.42), bend=0.25, angle=(-0.2, 0.2), size=(0.24, 0.26)
)
DEMO_EDIT = dict(background="green")


def demo_scenes() -> tuple:
    """The scene that `assets.demo_clip()` shows, and the scene that its edit should show."""
    from vala_research.sprites.scene import Motion, Scene

    scene = Scene(**DEMO_SCENE, motion=Motion(**DEMO_MOTION))
    return scene, scene.edited(**DEMO_EDIT)


EDITS = {
    "shape": ("shape",),
    "colour": ("colour",),
    "background": ("background",),
    "pattern": ("pattern",),
    "several": ("shape", "colour", "background"),
}


def target_scene(source: Scene, kind: str, world: World, generator: torch.Generator) -> Scene:
    """The first draw that changes each attribute and keeps contrast and the held-out pairs."""
    values = {"shape": world.shapes, "colour": world.colours,
              "background": world.backgrounds, "pattern": world.patterns}  # fmt: skip
    while True:
        changes = {}
        for key in EDITS[kind]:
            others = [v for v in values[key] if v != getattr(source, key)]
            changes[key] = others[torch.randint(len(others), (), generator=generator).item()]
        target = source.edited(**changes)
        pair = (target.shape, target.colour)
        if pair not in world.held_out and contrasts(target.colour, target.background):
            return target
