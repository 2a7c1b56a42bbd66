"""Outlines of the sprites: signed distances."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
