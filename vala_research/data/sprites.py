"""The sprite world: captioned clips of an object moving over a background, whose edits are known.

No paper clip has a right answer; here `render(scene.edited(colour="blue"))` *is* the true edit.
Shapes are signed distance fields, so any size is anti-aliased; every frame is drawn at once.
Colours are flat RGB in [0,1]; a pattern alternates a background colour with its darker shade.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vala_research import InputError

COLOURS = {
    "red": (0.86, 0.12, 0.14),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.90, 0.15),
    "green": (0.12, 0.60, 0.20),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.50, 0.15, 0.65),
    "pink": (1.00, 0.50, 0.75),
    "brown": (0.45, 0.26, 0.10),
    "white": (0.96, 0.96, 0.96),
    "gray": (0.50, 0.50, 0.50),
    "black": (0.06, 0.06, 0.06),
}
PATTERNS = ("plain", "striped", "checked", "dotted")
PERIOD = 1 / 3  # of a pattern, in frame widths
MIN_CONTRAST = 0.45  # RGB distance that an object keeps from both tones of its background
HELD_OUT = frozenset({("star", "purple"), ("square", "yellow"), ("circle", "green"),
                      ("ring", "blue"), ("heart", "red"), ("moon", "white")})  # fmt: skip


def _regular(n: int, inner: float | None = None, radius: float = 1.0) -> list[tuple[float, float]]:
    """Vertices of a regular polygon, or of a star when `inner` is given; the first points up."""
    radii = [radius] if inner is None else [radius, inner]
    m = n * len(radii)
    return [
        (radii[i % len(radii)] * math.sin(2 * math.pi * i / m),
         -radii[i % len(radii)] * math.cos(2 * math.pi * i / m))
        for i in range(m)
    ]  # fmt: skip


_A, _B = 0.36, 1.05  # half width and length of a cross's arms
POLYGONS = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": _regular(3, radius=1.2),
    "star": _regular(5, inner=0.5, radius=1.2),
    "cross": [(-_A, -_B), (_A, -_B), (_A, -_A), (_B, -_A), (_B, _A), (_A, _A),
              (_A, _B), (-_A, _B), (-_A, _A), (-_B, _A), (-_B, -_A), (-_A, -_A)],
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")


@dataclass(frozen=True)
class World:
    """The values a random scene draws from; `size` bounds the object's radius in frame widths."""

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    backgrounds: tuple[str, ...] = tuple(COLOURS)
    patterns: tuple[str, ...] = PATTERNS
    size: tuple[float, float] = (0.19, 0.27)
    tilt: float = 0.35  # radians at most, at the first frame
    turn: float = 0.5  # radians at most, from the first frame to the last
    empty: float = 0.03  # share of scenes without an object
    held_out: frozenset[tuple[str, str]] = frozenset()  # (shape, colour) pairs never drawn


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
        """Centre (f 2), angle (f) and radius (f) at times `u` in [0,1]."""
        start, end = torch.tensor(self.start), torch.tensor(self.end)
        along = end - start
        normal = torch.stack([-along[1], along[0]])
        u_ = u[:, None]
        centre = start + u_ * along + self.bend * torch.sin(math.pi * u_) * normal
        mix = lambda pair: pair[0] + (pair[1] - pair[0]) * u  # noqa: E731
        return centre, mix(self.angle), mix(self.size)


@dataclass(frozen=True)
class Scene:
    """One shot, optionally with a smaller second object behind, optionally cut to further shots."""

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
            if value is not None and value not in known:
                names = ", ".join(known)
                raise InputError(f"Unknown sprite {key} {value!r}: choose one of {names}.")

    @property
    def attributes(self) -> dict[str, str | None]:
        """What `read_attributes` should find in every frame of this shot."""
        return {k: getattr(self, k) for k in ("shape", "colour", "background", "pattern")}

    @property
    def caption(self) -> str:
        from vala_research.data.sprite_captions import caption

        return caption(self)

    def edited(self, **changes: str | None) -> Scene:
        """The counterfactual: same motion, with `shape`, `colour`, `background`, `pattern` changed.

        Changes apply to every shot; `shape` and `colour` leave an empty shot empty.
        """
        unknown = set(changes) - set(self.attributes)
        if unknown:
            raise InputError(f"Cannot edit {sorted(unknown)}: edit {', '.join(self.attributes)}.")
        changes = {k: v for k, v in changes.items() if v is not None}
        then = tuple(scene.edited(**changes) for scene in self.then)
        if self.shape is None:
            changes = {k: v for k, v in changes.items() if k in ("background", "pattern")}
        return replace(self, then=then, **changes)


@dataclass(frozen=True)
class SpriteClip:
    """A rendered scene; flow is forward, in pixels, dx first, valid where its target is visible."""

    frames: Float[Tensor, "f 3 h w"]
    mask: Float[Tensor, "f 1 h w"]  # coverage of the (first) object
    depth: Float[Tensor, "f 1 h w"]  # layer order: 0 background, 1 second object, 2 object
    flow: Float[Tensor, "f-1 2 h w"]
    flow_valid: Float[Tensor, "f-1 1 h w"]
    scene_index: Int[Tensor, " f"]
    caption: str


def tones(colour: str) -> Float[Tensor, "2 3"]:
    """A colour and the shade that patterns alternate it with (darker; lighter for black)."""
    primary = torch.tensor(COLOURS[colour])
    return torch.stack([primary, primary + 0.3 if colour == "black" else 0.62 * primary])


@cache
def contrasts(colour: str, background: str) -> bool:
    """Whether an object of this colour stands out from both tones of the background."""
    gap = torch.tensor(COLOURS[colour]) - tones(background)
    return bool(gap.norm(dim=-1).min() >= MIN_CONTRAST)


def split_generator(split: str, index: int) -> torch.Generator:
    """Random source of scene `index` of a split; no two splits share a seed."""
    splits = ("train", "validation", "test")
    if split not in splits:
        raise InputError(f"Unknown split {split!r}: choose one of {', '.join(splits)}.")
    return torch.Generator().manual_seed(3 * index + splits.index(split))


def random_scene(
    generator: torch.Generator,
    n_cuts: int = 0,
    *,
    world: World = World(),
    second_object: bool = False,
    pair: tuple[str, str] | None = None,
) -> Scene:
    """A scene drawn from `world`; `pair` fixes the (shape, colour), `n_cuts` adds shots."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def choice(values):
        return values[torch.randint(len(values), (), generator=generator).item()]

    def motion() -> Motion:
        point = lambda: (uniform(0.32, 0.68), uniform(0.32, 0.68))  # noqa: E731
        size = uniform(*world.size)
        angle = uniform(-world.tilt, world.tilt)
        return Motion(
            start=point(), end=point(), bend=uniform(-0.4, 0.4),
            angle=(angle, angle + uniform(-world.turn, world.turn)),
            size=(size, min(max(size * uniform(0.85, 1.15), world.size[0]), world.size[1])),
            phase=(uniform(0, PERIOD), uniform(0, PERIOD)),
            pan=(uniform(-0.12, 0.12), uniform(-0.12, 0.12)),
        )  # fmt: skip

    def draw_pair(background: str, taken: tuple = (None, None)) -> tuple[str, str]:
        while True:
            shape, colour = choice(world.shapes), choice(world.colours)
            new = (shape, colour) not in world.held_out and shape != taken[0] and colour != taken[1]
            if new and contrasts(colour, background):
                return shape, colour

    background = choice(world.backgrounds)
    while pair and not contrasts(pair[1], background):
        background = choice(world.backgrounds)
    empty = not pair and uniform(0, 1) < world.empty
    shape, colour = (None, None) if empty else pair or draw_pair(background)
    path, second = motion(), None
    if second_object and shape is not None:
        other = motion()
        small = replace(other, size=(0.6 * path.size[0], 0.6 * path.size[1]))
        second = (*draw_pair(background, (shape, colour)), small)
    return Scene(
        shape, colour, background, choice(world.patterns), path, second,
        tuple(random_scene(generator, world=world) for _ in range(n_cuts)),
        wording=torch.randint(1 << 16, (), generator=generator).item(),
    )  # fmt: skip


def polygon_distance(x: Tensor, y: Tensor, vertices: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a polygon (negative inside) at points in units of the radius."""
    nearest = torch.full(x.shape, torch.inf, dtype=x.dtype)
    outside = torch.ones(x.shape, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(vertices, [*vertices[1:], vertices[0]], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        along = (wx * (ex / (ex * ex + ey * ey))).add_(wy * (ey / (ex * ex + ey * ey))).clamp_(0, 1)
        # The even-odd rule: each edge that a ray to the right crosses flips the side.
        if ey:
            outside ^= ((wy >= 0) != (wy >= ey)) & ((ex * wy > ey * wx) == (ey > 0))
        wx.sub_(along * ex).square_().add_(wy.sub_(along.mul_(ey)).square_())
        nearest = torch.minimum(nearest, wx, out=nearest)
    return nearest.sqrt_().mul_(torch.where(outside, 1.0, -1.0))


def shape_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to a unit shape, negative inside, at points in units of the radius."""
    if shape in POLYGONS:
        return polygon_distance(x, y, POLYGONS[shape])
    radius = torch.hypot(x, y)
    if shape == "circle":
        return radius - 1
    if shape == "ring":
        return (radius - 0.78).abs() - 0.27
    if shape == "moon":  # a disc less a disc to its right
        return torch.maximum(radius - 1.1, 0.85 - torch.hypot(x - 0.62, y))
    return _heart_distance(x.abs(), 0.15 - y)


def _heart_distance(x: Tensor, y: Tensor) -> Tensor:
    """Half a heart, y upwards: a disc and the wedge between its tangent from the tip and x = 0."""
    cx, cy, radius, tip = 0.5, 0.35, 0.58, -1.15
    reach = math.hypot(cx, cy - tip)
    tilt = math.atan2(cx, cy - tip) + math.asin(radius / reach)
    across, along = math.cos(tilt), math.sin(tilt)
    right_of_tangent = x * across - (y - tip) * along
    past_touch = x * along + (y - tip) * across - math.sqrt(reach**2 - radius**2)
    above = 0.9 * (y - cy) + 0.4 * (x - cx)
    wedge = torch.maximum(torch.maximum(right_of_tangent, past_touch), above)
    return torch.minimum(torch.hypot(x - cx, y - cy) - radius, wedge)


def _pattern_weight(pattern: str, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """Share of the second tone at background points (frame widths), anti-aliased; f h w."""
    if pattern == "plain":
        return torch.zeros(1, 1, 1)
    # 0 at a cell's middle, 0.5 at its border
    wave_x, wave_y = ((p / PERIOD % 1 - 0.5).abs() for p in (x, y))
    if pattern == "dotted":
        return (0.5 - (torch.hypot(wave_x, wave_y) - 0.3) * PERIOD / pixel).clamp(0, 1)
    bands_x, bands_y = (
        (0.5 + (wave - 0.25) * PERIOD / pixel).clamp(0, 1) for wave in (wave_x, wave_y)
    )
    if pattern == "striped":
        return bands_y.expand(-1, -1, x.shape[-1])
    return bands_x + bands_y - 2 * bands_x * bands_y  # exclusive or


def render(scene: Scene, n_frames: int = 16, size: int = 64) -> SpriteClip:
    """Draw `scene` on `size` x `size` pixels; shots divide the frames as evenly as possible."""
    shots = (scene, *scene.then)
    if n_frames < len(shots) or size < 1:
        raise InputError(
            f"Cannot render {n_frames} frames of {size} px: ask for at least "
            f"{len(shots)} frame(s) (one a shot) and a positive size."
        )
    index = torch.arange(n_frames) * len(shots) // n_frames
    parts = [_render_shot(s, int((index == i).sum()), size) for i, s in enumerate(shots)]
    cut = torch.zeros(1, 3, size, size)  # no flow crosses a cut
    flows = [x for part in parts for x in (part[3], cut)][:-1]
    frames, mask, depth = (torch.cat([part[i] for part in parts]) for i in range(3))
    flow = torch.cat(flows)
    return SpriteClip(frames, mask, depth, flow[:, :2], flow[:, 2:], index, scene.caption)


def _render_shot(scene: Scene, n_frames: int, size: int):
    """Frames, mask, depth and (dx, dy, valid) of one shot, drawn back to front."""
    u = torch.linspace(0, 1, n_frames) if n_frames > 1 else torch.zeros(1)
    axis = (torch.arange(size) + 0.5) / size
    x, y = axis[None, None, :], axis[None, :, None]
    pan = u[:, None] * torch.tensor(scene.motion.pan) + torch.tensor(scene.motion.phase)
    pan_x, pan_y = pan.T[:, :, None, None]
    weight = _pattern_weight(scene.pattern, x - pan_x, y - pan_y, 1 / size)[:, None]
    light, dark = tones(scene.background)[:, None, :, None, None]
    frames = (light + (dark - light) * weight).expand(n_frames, 3, size, size)
    depth = torch.zeros(n_frames, 1, size, size)
    poses = {0: (pan, torch.zeros(n_frames), torch.ones(n_frames))}
    objects = [scene.second, (scene.shape, scene.colour, scene.motion) if scene.shape else None]
    mask = torch.zeros_like(depth)
    for order, (shape, colour, motion) in [(i + 1, o) for i, o in enumerate(objects) if o]:
        poses[order] = pose = motion.at(u)
        cover = _cover(shape, pose, x, y, size)[:, None]
        frames = torch.lerp(frames, torch.tensor(COLOURS[colour])[:, None, None], cover)
        depth = torch.where(cover > 0.5, float(order), depth)
        if order == 2:
            mask = cover
    return frames, mask, depth, _flow(x, y, depth, poses, size)


def _cover(shape: str, pose, x: Tensor, y: Tensor, size: int) -> Float[Tensor, "f h w"]:
    """Share of each pixel that the shape covers: its signed distance in pixels, clamped."""
    (cx, cy), (angle, radius) = pose[0].T[:, :, None, None], (p[:, None, None] for p in pose[1:])
    c, s = angle.cos() / radius, angle.sin() / radius
    px, py = x - cx, y - cy
    distance = shape_distance(shape, c * px + s * py, c * py - s * px)
    return (0.5 - distance * (radius * size)).clamp_(0, 1)


def _flow(x: Tensor, y: Tensor, depth: Tensor, poses: dict, size: int) -> Float[Tensor, "p 3 h w"]:
    """Forward flow (dx, dy, valid) of the layer that is visible at each pixel.

    A layer moves by q = c' + (r'/r) R(angle' - angle) (p - c); the target is valid where it lies
    in the frame and shows the same layer.
    """
    n = len(depth) - 1
    code = depth[:-1, 0]
    dx = dy = torch.zeros(n, size, size)
    for order, (centre, angle, radius) in poses.items():
        (cx, cy), (tx, ty) = centre[:-1].T[:, :, None, None], centre[1:].T[:, :, None, None]
        turn = (angle[1:] - angle[:-1])[:, None, None]
        scale = (radius[1:] / radius[:-1])[:, None, None]
        c, s = scale * turn.cos(), scale * turn.sin()
        px, py = x - cx, y - cy
        here = code == order
        dx = torch.where(here, (c - 1) * px - s * py + (tx - cx), dx)
        dy = torch.where(here, s * px + (c - 1) * py + (ty - cy), dy)
    qx, qy = x + dx, y + dy
    column, row = ((q * size).long().clamp_(0, size - 1) for q in (qx, qy))
    target = depth[1:, 0].flatten(1).gather(1, (row * size + column).flatten(1)).view_as(code)
    inside = (qx > 0) & (qx < 1) & (qy > 0) & (qy < 1)
    return torch.stack([dx * size, dy * size, (inside & (target == code)).float()], 1)


def read_attributes(frames: Float[Tensor, "f 3 h w"]) -> list[dict[str, str | None]]:
    """Shape, colour, background colour and pattern of every frame, read from its pixels."""
    from vala_research.data.sprite_reader import read_attributes as read

    return read(frames)
