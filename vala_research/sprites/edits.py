"""Kinds of edits, drawn for any scene, and the edit of the demo clip."""

from __future__ import annotations

import torch

from vala_research.sprites.palette import contrasts
from vala_research.sprites.scene import Motion, Scene, World

EDITS = {  # the attributes that each kind changes
    "shape": ("shape",),
    "colour": ("colour",),
    "background": ("background",),
    "pattern": ("pattern",),
    "several": ("shape", "colour", "background"),
}


def target_scene(source: Scene, kind: str, world: World, generator: torch.Generator) -> Scene:
    """Draw an edited scene; the kind is a key of EDITS.

    Each attribute of the kind gets another of the world's values. Draws that lack contrast or show
    a held-out pair are repeated.
    """
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


# The scene of assets.demo_clip(), and the values that its edit changes.
DEMO_FRAMES, DEMO_SIZE = 16, 64
DEMO_SCENE = Scene(
    shape="star", colour="yellow", background="blue", pattern="plain",
    motion=Motion(start=(0.36, 0.62), end=(0.64, 0.42), bend=0.25, angle=(-0.2, 0.2),
                  size=(0.24, 0.26)),
)  # fmt: skip
DEMO_EDIT = dict(background="green")


def demo_scenes() -> tuple[Scene, Scene]:
    """The scene that `assets.demo_clip()` shows, and the scene that its edit should show."""
    return DEMO_SCENE, DEMO_SCENE.edited(**DEMO_EDIT)
