"""Read shape, colours and pattern back from pixels: the sprite world's exact classifier.

1. The background is the colour whose tones explain most pixels.
2. The object is the colour that explains most of the rest.
3. The shape: the object's outline, normalised for place and area, is compared with every shape at
   every angle.
4. The pattern is read from the layout of the background's second tone.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from vala_research import InputError
from vala_research.sprites.palette import COLOURS, PERIOD, SHAPES, tones
from vala_research.sprites.shapes import shape_distance

TOLERANCE = 0.16  # RGB distance at which a pixel half belongs to a colour
MIN_AREA = 0.012  # of the frame: a smaller object is no object
N_ANGLES, TEMPLATE = 36, 32


@torch.no_grad()
def read_attributes(frames: Float[Tensor, "f 3 h w"]) -> list[dict[str, str | None]]:
    """Read each frame: one dict with the keys shape, colour, background and pattern.

    Without an object, shape and colour are None. Raises InputError for frames that are not RGB.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        raise InputError(f"Frames have shape {tuple(frames.shape)}: give f 3 h w in [0, 1].")
    return [_read(frame.float().clamp(0, 1).cpu()) for frame in frames]


def _belongs(distance: Tensor) -> Tensor:
    return (-math.log(2) * (distance / TOLERANCE) ** 2).exp()


def _background(pixels: Float[Tensor, "n 3"]) -> tuple[str, Tensor, Tensor]:
    """Background colour, how well it explains each pixel, and each pixel's place between tones.

    The place is 0 at the primary tone and 1 at the second.
    """
    pairs = torch.stack([tones(c) for c in COLOURS])  # colour 2 3
    along = pairs[:, 1] - pairs[:, 0]
    place = ((pixels - pairs[:, :1]) * along[:, None]).sum(-1) / along.square().sum(-1)[:, None]
    place = place.clamp(0, 1)
    distance = (pairs[:, :1] + place[..., None] * along[:, None] - pixels).norm(dim=-1)
    # Either tone must be met, not only a mixture, and the primary tone covers at least half.
    near = _belongs((pixels - pairs[:, :1]).norm(dim=-1)).mean(-1)
    score = _belongs(distance).mean(-1) + 0.5 * near
    best = score.argmax().item()
    return list(COLOURS)[best], _belongs(distance[best]), place[best]


def _read(frame: Float[Tensor, "3 h w"]) -> dict[str, str | None]:
    # The colour that explains most of the pixels that the background does not.
    _, h, w = frame.shape
    pixels = frame.reshape(3, -1).T
    background, explained, place = _background(pixels)
    palette = torch.tensor([COLOURS[c] for c in COLOURS])
    gap = torch.cdist(pixels, palette)
    claims = (_belongs(gap) * (explained < 0.3)[:, None]).mean(0)
    claims[list(COLOURS).index(background)] = 0
    colour_index = claims.argmax().item()

    # A pixel of the object lies nearer to its colour than to the background's tones.
    near = tones(background)
    segment = near[0] + place[:, None] * (near[1] - near[0])
    to_ground = (pixels - segment).norm(dim=-1)
    rivals = gap[:, claims > MIN_AREA / 3].amin(-1) if (claims > MIN_AREA / 3).any() else to_ground
    other = rivals < to_ground
    mine = (other & (gap[:, colour_index] <= rivals)).reshape(h, w)
    mask = _largest_part(mine)

    shape = colour = None
    if mask.float().mean() >= MIN_AREA and claims[colour_index] > MIN_AREA / 3:
        shape, colour = _shape(mask.float()), list(COLOURS)[colour_index]
    ground = (~_grow(other.reshape(h, w))).float()
    return {"shape": shape, "colour": colour, "background": background,
            "pattern": _pattern(place.reshape(h, w), ground)}  # fmt: skip


def _grow(mask: Tensor) -> Tensor:
    return F.max_pool2d(mask[None].float(), 3, 1, 1)[0] > 0


def _largest_part(mask: Tensor) -> Tensor:
    from skimage.measure import label

    parts = torch.from_numpy(label(mask.numpy(), connectivity=1).astype("int64"))
    sizes = parts.flatten().bincount()
    if len(sizes) < 2:
        return torch.zeros_like(mask)
    return parts == 1 + sizes[1:].argmax()


@cache
def _templates() -> Float[Tensor, "s a n"]:
    """Profiles of every shape at every angle."""
    angles = [2 * math.pi * i / N_ANGLES for i in range(N_ANGLES)]
    drawn = [torch.stack([_profile(_draw(s, angle)) for angle in angles]) for s in SHAPES]
    return torch.stack(drawn)


def _draw(shape: str, angle: float, size: int = 64, radius: float = 16) -> Tensor:
    axis = (torch.arange(size) + 0.5 - size / 2) / radius
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    c, s = math.cos(angle), math.sin(angle)
    return (0.5 - shape_distance(shape, c * x + s * y, c * y - s * x) * radius).clamp(0, 1)


def _normalised(mask: Float[Tensor, "h w"]) -> Float[Tensor, "t t"]:
    """The mask through a window at its centre, 2.4 times as wide as its area's square root."""
    h, w = mask.shape
    area = mask.sum().clamp_min(1)
    rows, columns = torch.arange(h) + 0.5, torch.arange(w) + 0.5
    cy, cx = (mask.sum(1) * rows).sum() / area, (mask.sum(0) * columns).sum() / area
    half = 1.2 * area.sqrt()
    axis = torch.linspace(-1, 1, TEMPLATE) * half
    y, x = torch.meshgrid(axis + cy, axis + cx, indexing="ij")
    grid = torch.stack([2 * x / w - 1, 2 * y / h - 1], -1)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]


def _profile(mask: Float[Tensor, "h w"]) -> Float[Tensor, " n"]:
    """The normalised mask, blurred by a pixel, less its mean, as a unit vector."""
    soft = torch.from_numpy(gaussian_filter(_normalised(mask).numpy(), 1.0)).flatten()
    return F.normalize(soft - soft.mean(), dim=0)


def _shape(mask: Float[Tensor, "h w"]) -> str:
    """The shape whose template correlates best with the mask, over all angles.

    Soft masks are correlated instead of sharp ones overlapped, so that a network's triangle with a
    blunt corner is nearer to a triangle than to a heart.
    """
    return SHAPES[(_templates() @ _profile(mask)).amax(1).argmax().item()]


def _pattern(place: Float[Tensor, "h w"], ground: Float[Tensor, "h w"]) -> str:
    """The pattern whose Fourier peaks hold the variance of `place` over the ground's pixels."""
    n = ground.sum().clamp_min(1)
    mean = (place * ground).sum() / n
    centred = (place - mean) * ground
    if centred.square().sum() / n < 0.035:  # a plain ground varies by noise only
        return "plain"
    h, w = place.shape
    y = (torch.arange(h) + 0.5) / h / PERIOD * 2 * math.pi
    x = (torch.arange(w) + 0.5) / w / PERIOD * 2 * math.pi
    wave_y, wave_x = torch.polar(torch.ones(h), y), torch.polar(torch.ones(w), x)

    def power(ky: int, kx: int) -> float:
        return (centred * (wave_y**ky)[:, None] * wave_x**kx).sum().abs().square().item()

    # Stripes repeat along y only; dots along both axes; a checkerboard on the diagonals.
    along_y, along_x = power(1, 0), power(0, 1)
    peaks = {
        "striped": along_y - along_x,
        "dotted": 2 * min(along_y, along_x),
        "checked": power(1, 1) + power(1, -1),
    }
    return max(peaks, key=peaks.get)
