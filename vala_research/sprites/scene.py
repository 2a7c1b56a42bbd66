"""The sprite world: scenes of an object that moves over a background, whose true edits are known.

The clips of papers have no right answer. Here `render(scene.edited(colour="blue"))` is the true
edit. Colours are flat RGB in [0, 1]. A pattern alternates a background colour with its second tone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, chosen_from
from vala_research.sprites.captions import caption
from vala_research.sprites.palette import COLOURS, HELD_OUT, PATTERNS, PERIOD, SHAPES, contrasts


@dataclass(frozen=True)
class World:
    """The values that a random scene is drawn from."""

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    backgrounds: tuple[str, ...] = tuple(COLOURS)
    patterns: tuple[str, ...] = PATTERNS
    size: tuple[float, float] = (0.19, 0.27)  # least and largest radius, in frame widths
    tilt: float = 0.35  # radians at most, at the first frame
    turn: float = 0.5  # radians at most, from the first frame to the last
    empty: float = 0.03  # share of scenes without an object
    held_out: frozenset[tuple[str, str]] = frozenset()  # (shape, colour) pairs never drawn


SIZE = 64  # pixels, of the miniature's frames
WORLD = World(  # what the miniature has seen
    shapes=("circle", "square", "triangle", "star", "ring"),
    colours=("red", "yellow", "green", "cyan", "blue", "purple", "white", "black"),
    backgrounds=("red", "yellow", "green", "cyan", "blue", "purple", "white", "black"),
    size=(0.21, 0.28),
    tilt=0.1,  # nearly upright: what a circle is turned to, a star should be, too
    turn=0.15,
    held_out=HELD_OUT,
)


@dataclass(frozen=True)
class Motion:
    """A smooth path in frame widths: a line bent by `bend`, a turn, a growth, a slow pan."""

    start: tuple[float, float] = (0.35, 0.4)
    end: tuple[float, float] = (0.65, 0.6)
    bend: float = 0.0
    angle: tuple[float, float] = (0.0, 0.0)  # radians, first and last
    size: tuple[float, float] = (0.22, 0.22)  # radius, first and last
    phase: tuple[float, float] = (0.0, 0.0)  # of the background pattern
    pan: tuple[float, float] = (0.0, 0.0)  # of the background over the clip

    def at(self, u: Float[Tensor, " f"]) -> tuple[Tensor, Tensor, Tensor]:
        """Centre (f 2), angle (f) and radius (f) at times `u` in [0, 1]."""
        start, end = torch.tensor(self.start), torch.tensor(self.end)
        along = end - start
        normal = torch.stack([-along[1], along[0]])
        u_ = u[:, None]
        centre = start + u_ * along + self.bend * torch.sin(math.pi * u_) * normal
        mix = lambda pair: pair[0] + (pair[1] - pair[0]) * u  # noqa: E731
        return centre, mix(self.angle), mix(self.size)


@dataclass(frozen=True)
class Scene:
    """One shot. It may have a smaller second object behind, and hard cuts to further shots."""

    shape: str | None = "circle"
    colour: str | None = "red"
    background: str = "blue"
    pattern: str = "plain"
    motion: Motion = Motion()
    second: tuple[str, str, Motion] | None = None  # shape, colour, motion
    then: tuple[Scene, ...] = ()  # the shots after hard cuts, of equal length
    wording: int = 0  # which paraphrase the caption uses

    def __post_init__(self):
        if (self.shape is None) != (self.colour is None):
            raise InputError("A scene has both a shape and a colour, or neither: give both.")
        for key, value in self.attributes.items():
            known = {"shape": SHAPES, "pattern": PATTERNS}.get(key, tuple(COLOURS))
            if value is not None:
                chosen_from(f"sprite {key}", value, known)

    @property
    def attributes(self) -> dict[str, str | None]:
        """The attributes that `read_attributes` should find in every frame of this shot."""
        return {k: getattr(self, k) for k in ("shape", "colour", "background", "pattern")}

    @property
    def caption(self) -> str:
        return caption(self)

    def edited(self, **changes: str | None) -> Scene:
        """Change `shape`, `colour`, `background` or `pattern`, and keep the motion.

        Changes apply to every shot. An empty shot stays empty. Raises InputError for other keys.
        """
        unknown = set(changes) - set(self.attributes)
        if unknown:
            raise InputError(f"Cannot edit {sorted(unknown)}: edit {', '.join(self.attributes)}.")
        changes = {k: v for k, v in changes.items() if v is not None}
        then = tuple(scene.edited(**changes) for scene in self.then)
        if self.shape is None:
            changes = {k: v for k, v in changes.items() if k in ("background", "pattern")}
        return replace(self, then=then, **changes)


def split_generator(split: str, index: int) -> torch.Generator:
    """Random generator of scene `index` of a split; no two splits share a seed."""
    splits = ("train", "validation", "test")
    chosen_from("split", split, splits)
    return torch.Generator().manual_seed(3 * index + splits.index(split))


def random_scene(
    generator: torch.Generator,
    n_cuts: int = 0,
    *,
    world: World = World(),
    second_object: bool = False,
    pair: tuple[str, str] | None = None,
) -> Scene:
    """Draw a scene from `world`.

    n_cuts: number of further shots. pair: fixes the shape and colour of the object.
    """
    background = _choice(world.backgrounds, generator)
    while pair and not contrasts(pair[1], background):
        background = _choice(world.backgrounds, generator)
    empty = not pair and _uniform(0, 1, generator) < world.empty
    shape, colour = (None, None) if empty else pair or _pair(world, background, generator)
    path, second = _motion(world, generator), None
    if second_object and shape is not None:
        other = _motion(world, generator)
        small = replace(other, size=(0.6 * path.size[0], 0.6 * path.size[1]))
        second = (*_pair(world, background, generator, (shape, colour)), small)
    return Scene(
        shape, colour, background, _choice(world.patterns, generator), path, second,
        tuple(random_scene(generator, world=world) for _ in range(n_cuts)),
        wording=torch.randint(1 << 16, (), generator=generator).item(),
    )  # fmt: skip


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _choice(values: tuple, generator: torch.Generator):
    return values[torch.randint(len(values), (), generator=generator).item()]


def _motion(world: World, generator: torch.Generator) -> Motion:
    def uniform(low: float, high: float) -> float:
        return _uniform(low, high, generator)

    size, angle = uniform(*world.size), uniform(-world.tilt, world.tilt)
    return Motion(
        start=(uniform(0.32, 0.68), uniform(0.32, 0.68)),
        end=(uniform(0.32, 0.68), uniform(0.32, 0.68)),
        bend=uniform(-0.4, 0.4),
        angle=(angle, angle + uniform(-world.turn, world.turn)),
        size=(size, min(max(size * uniform(0.85, 1.15), world.size[0]), world.size[1])),
        phase=(uniform(0, PERIOD), uniform(0, PERIOD)),
        pan=(uniform(-0.12, 0.12), uniform(-0.12, 0.12)),
    )


def _pair(
    world: World, background: str, generator: torch.Generator, taken: tuple = (None, None)
) -> tuple[str, str]:
    """Draw a shape and a colour: not held out, unlike `taken`, in contrast to the background."""
    while True:
        shape, colour = _choice(world.shapes, generator), _choice(world.colours, generator)
        new = (shape, colour) not in world.held_out and shape != taken[0] and colour != taken[1]
        if new and contrasts(colour, background):
            return shape, colour
