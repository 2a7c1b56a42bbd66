"""Draw scenes, with their masks, depth and optical flow.

Shapes are signed distance fields, so any size is anti-aliased. All frames are drawn at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vala_research import InputError
from vala_research.sprites.palette import COLOURS, PERIOD, tones
from vala_research.sprites.scene import Scene
from vala_research.sprites.shapes import shape_distance


@dataclass(frozen=True)
class SpriteClip:
    """A rendered scene. Flow is forward, in pixels, dx first; valid where the target is visible."""

    frames: Float[Tensor, "f 3 h w"]
    mask: Float[Tensor, "f 1 h w"]  # coverage of the (first) object
    depth: Float[Tensor, "f 1 h w"]  # layer order: 0 background, 1 second object, 2 object
    flow: Float[Tensor, "f-1 2 h w"]
    flow_valid: Float[Tensor, "f-1 1 h w"]
    scene_index: Int[Tensor, " f"]
    caption: str

    @property
    def depth_pictures(self) -> Float[Tensor, "f 3 h w"]:
        """The depth as ControlNets see it."""
        return depth_pictures(self.depth)


def depth_pictures(depth: Float[Tensor, "f 1 h w"]) -> Float[Tensor, "f 3 h w"]:
    """Depths of `SpriteClip` as ControlNets see them: near is white, the background is black."""
    return (depth / 2).expand(-1, 3, -1, -1)


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
            f"{len(shots)} frame(s), one per shot, and a positive size."
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
    # The background, panned.
    u = torch.linspace(0, 1, n_frames) if n_frames > 1 else torch.zeros(1)
    axis = (torch.arange(size) + 0.5) / size
    x, y = axis[None, None, :], axis[None, :, None]
    pan = u[:, None] * torch.tensor(scene.motion.pan) + torch.tensor(scene.motion.phase)
    pan_x, pan_y = pan.T[:, :, None, None]
    weight = _pattern_weight(scene.pattern, x - pan_x, y - pan_y, 1 / size)[:, None]
    light, dark = tones(scene.background)[:, None, :, None, None]
    frames = (light + (dark - light) * weight).expand(n_frames, 3, size, size)

    # The objects over it, the second one first.
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

    A layer moves by q = c' + (r'/r) R(angle' - angle) (p - c). The target is valid where it lies in
    the frame and shows the same layer.
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
