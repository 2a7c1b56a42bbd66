"""A picture for a paper: the anchors of a clip, per frame, and what they compress to."""

from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from matplotlib import rc_context
from torch import Tensor

from vala_research import InputError
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.evaluation.sheet import Page
from vala_research.methods.anchors import Anchors
from vala_research.methods.compression import compression_weights


def shown_frames(n_frames: int, keyframes: list[int], n_columns: int) -> list[int]:
    """Choose at most n_columns frames, in order: key frames, then the frames farthest from them."""
    shown = list(keyframes[:n_columns]) or [0]
    while len(shown) < min(n_columns, n_frames):
        away = [min(abs(i - j) for j in shown) for i in range(n_frames)]
        shown.append(int(np.argmax(away)))
    return sorted(shown)


@dataclass
class _Sheet(Page):
    """Columns of cells, in whole pixels."""

    columns: int
    cell: tuple[int, int]  # w, h
    height: int
    em: int = round(8 / 72 * Picture.pixels_per_inch)  # of 8 point type

    def __post_init__(self):
        self.gap = self.em // 3
        self.is_narrow = self.cell[0] < 6 * self.em  # no room for words above a cell
        self.left = round(7.6 * self.em)
        w = self.left + self.columns * (self.cell[0] + self.gap) + 4 * self.em
        super().__init__(w, self.height, Picture.pixels_per_inch)

    def column(self, i: int) -> int:
        return self.left + i * (self.cell[0] + self.gap)

    def row(self, label: str, pictures: Float[Tensor, "i 3 h w"], y: int) -> None:
        """Place pictures of the cells' size from left to right, the label beside them."""
        self.label(label, y + self.cell[1] / 2)
        for i, picture in enumerate(pictures.permute(0, 2, 3, 1).numpy()):
            self.picture(self.column(i), y, *self.cell, picture)

    def label(self, text: str, y: float) -> None:
        self.write(self.left - 0.7 * self.em, y, text, 8, ha="right", va="center")


def anchor_map(
    clip_frames: Float[Tensor, "f 3 y x"],
    anchors: Anchors,
    grid: tuple[int, int],
    n_columns: int = 8,
    title: str | None = None,
    cell: int = 192,
) -> Picture:
    """Draw frames, responsibilities, entropy, and what the anchors compress to.

    grid: (h, w) of the sites. n_columns: frames shown at most; key frames are among them. The last
    row: site anchors as pictures, or token anchors as the mean colour and the share of each.
    Raises InputError when the anchors are not of these frames and this grid, or not finite.
    """
    check_anchors(clip_frames, anchors, grid)
    times = shown_frames(len(clip_frames), anchors.keyframes, n_columns)
    frames = resized(clip_frames.detach()[times], cell)
    size = frames.shape[-2:]
    uncertain, top_nats = entropy_map(anchors, grid)
    maps = {"frames": frames, "anchors": responsibility_map(anchors, grid)[times],
            "entropy": uncertain[times]}  # fmt: skip

    # The height adds up the head, three rows of cells and the last row.
    em = _Sheet.em
    y = round((3.4 if title else 1.8) * em)
    last = size[0] if anchors.granularity == "site" else size[0] // 2
    h = y + 3 * (size[0] + em // 3) + last + round(2.2 * em)
    with rc_context(STYLE):
        sheet = _Sheet(len(times), (size[1], size[0]), h)
        if title:
            sheet.write(sheet.left, 0.4 * em, title, 8, va="top", weight="bold")
        _head(sheet, times, anchors.keyframes, y)
        for label, pictures in maps.items():
            sheet.row(label, F.interpolate(pictures, size, mode="nearest-exact"), y)
            y += size[0] + sheet.gap

        # The colour bar of the entropy stands at the end of its row.
        x, top = sheet.column(len(times)) + sheet.gap, y - size[0] - sheet.gap
        ticks = {0: "0", top_nats / 2: "nats", top_nats: f"{top_nats:.1f}"}
        sheet.scale(x, top, 0.6 * em, size[0], ENTROPY_COLOURS, ticks)
        paint = _sites if anchors.granularity == "site" else _tokens
        paint(sheet, clip_frames, anchors, grid, y + round(1.7 * em))
    return sheet.figure


def _head(sheet: _Sheet, times: list[int], keyframes: list[int], y: int) -> None:
    """Write the numbers of the frames; draw a black border around each key frame."""
    (w, h), edge = sheet.cell, sheet.gap // 2
    for i, time in enumerate(times):
        x, is_key = sheet.column(i), time in keyframes
        style = {"weight": "bold"} if is_key else {"color": "#555555"}
        words = "" if sheet.is_narrow else "key frame " if is_key else "frame "
        sheet.write(x + w / 2, y - 0.6 * sheet.em, f"{words}{time}", ha="center", **style)
        if is_key:
            sheet.box(x - edge, y - edge, w + 2 * edge, h + 2 * edge, "black")


def _sites(sheet: _Sheet, frames: Tensor, anchors: Anchors, grid, y: int) -> None:
    """Draw the heaviest anchors as pictures, each under a bar of its colour and its share."""
    k = min(sheet.columns, anchors.n_effective)
    pictures = resized(pseudo_frames(frames.detach(), anchors, grid)[:k], max(sheet.cell))
    sheet.row("what frames\nattend to", pictures, y)
    parts = zip(anchor_colours(k).tolist(), shares(anchors)[:k], strict=True)
    for i, (colour, share) in enumerate(parts):
        x = sheet.column(i)
        words = "" if sheet.is_narrow else f"anchor {i + 1}: "
        middle = x + sheet.cell[0] / 2
        sheet.write(middle, y - 0.8 * sheet.em, f"{words}{share:.0%}", ha="center")
        sheet.box(x, y - 0.5 * sheet.em, sheet.cell[0], sheet.em // 3, colour)


def _tokens(sheet: _Sheet, frames: Tensor, anchors: Anchors, grid, y: int) -> None:
    """Draw a band of mean colours, one per anchor, each as wide as the share of its anchor."""
    h, x = sheet.cell[1] // 2, float(sheet.left)
    width = sheet.columns * (sheet.cell[0] + sheet.gap) - sheet.gap
    means = token_swatches(frames.detach(), anchors, grid).tolist()
    sheet.label("what frames\nattend to", y + h / 2)
    colours = anchor_colours(len(means)).tolist()
    for colour, mean, share in zip(colours, means, shares(anchors), strict=True):
        if share * width > 2.2 * sheet.em:  # room for its number
            sheet.write(x + share * width / 2, y - 0.8 * sheet.em, f"{share:.0%}", ha="center")
        part = max(1.0, share * width - sheet.gap / 2)
        sheet.box(x, y - 0.5 * sheet.em, part, sheet.em // 3, colour)
        sheet.box(x, y, part, h, mean)
        x += share * width


def map_table(anchors: Anchors) -> list[dict]:
    """Tabulate the map: one row per frame and anchor. entropy: mean over sites, in nats."""
    n, entropy = anchors.responsibilities.shape[1], anchors.entropy.mean(-1).tolist()
    return [
        {"frame": frame, "is_key": frame in anchors.keyframes, "entropy": entropy[frame],
         "anchor": k + 1, "share": mass / n}
        for frame, masses in enumerate(anchors.mass.tolist())
        for k, mass in enumerate(masses)
    ]  # fmt: skip


ENTROPY_COLOURS = "viridis"
TORN = float(np.log(2))  # nats of a site torn between two anchors: the scale's least upper end


def anchor_colours(k: int) -> Float[Tensor, "k 3"]:
    """List k colours: eight that all readers can tell apart, then their tints and shades."""
    *others, black = COLOURS
    base = torch.tensor([mpl.colors.to_rgb(c) for c in (*others, "#F0E442", black)])
    tinted = torch.cat([base, 0.5 + 0.5 * base, 0.55 * base])
    return tinted.repeat(-(-k // len(tinted)), 1)[:k]


def responsibility_map(anchors: Anchors, grid: tuple[int, int]) -> Float[Tensor, "f 3 h w"]:
    """Colour each site by its anchors, mixed by responsibility."""
    r = anchors.responsibilities.detach().float().cpu()
    colours = anchor_colours(r.shape[-1])
    return rearrange(r @ colours, "f (h w) c -> f c h w", h=grid[0]).clamp(0, 1)


def entropy_map(anchors: Anchors, grid: tuple[int, int]) -> tuple[Float[Tensor, "f 3 h w"], float]:
    """Colour each site by its posterior entropy; return the top of the scale, in nats, as well."""
    entropy = rearrange(anchors.entropy.detach().float().cpu(), "f (h w) -> f h w", h=grid[0])
    top = max(TORN, float(entropy.max()))
    picture = torch.from_numpy(mpl.colormaps[ENTROPY_COLOURS]((entropy / top).numpy()))
    return rearrange(picture[..., :3].float(), "f h w c -> f c h w"), top


def pseudo_frames(
    frames: Float[Tensor, "f 3 y x"], anchors: Anchors, grid: tuple[int, int]
) -> Float[Tensor, "k 3 y x"]:
    """Show site anchors in pixels: at each site the weighted mean over frames that attention sees.

    The weights are the editor's own, of latents; applied to pixels they only illustrate.
    """
    weights = compression_weights(replace(anchors, granularity="site"), grid, grid[0] * grid[1])
    weights = rearrange(weights.detach().float().cpu(), "k f (h w) -> k f h w", h=grid[0])
    weights = F.interpolate(weights, frames.shape[-2:], mode="nearest-exact")
    return einsum(weights, frames.float().cpu(), "k f y x, f c y x -> k c y x").clamp(0, 1)


def token_swatches(
    frames: Float[Tensor, "f 3 y x"], anchors: Anchors, grid: tuple[int, int]
) -> Float[Tensor, "k 3"]:
    """Show token anchors in pixels: the mean colour of the tokens that each anchor explains."""
    weights = compression_weights(replace(anchors, granularity="token"), grid, grid[0] * grid[1])
    pixels = F.interpolate(frames.float().cpu(), grid, mode="area").flatten(2)
    return einsum(weights.detach().float().cpu(), pixels, "k f n, f c n -> k c").clamp(0, 1)


def resized(pictures: Float[Tensor, "f c h w"], longer: int) -> Float[Tensor, "f c y x"]:
    """Resize to a longer side of about `longer` pixels: a whole factor upwards, means downwards."""
    side = max(pictures.shape[-2:])
    factor = max(1, round(longer / side)) if side <= longer else longer / side
    size = [max(1, round(s * factor)) for s in pictures.shape[-2:]]
    mode = "nearest-exact" if side <= longer else "area"
    return F.interpolate(pictures.float().cpu(), size, mode=mode).clamp(0, 1)


def check_anchors(frames: Tensor, anchors: Anchors, grid: tuple[int, int]) -> None:
    """Raise InputError when anchors are not of these frames and this grid, or not finite."""
    f, n, _ = anchors.responsibilities.shape
    if len(frames) != f or grid[0] * grid[1] != n:
        raise InputError(
            f"The anchors are of {f} frames with {n} sites, the clip has {len(frames)} frames and "
            f"the grid {grid[0]} x {grid[1]}: give the frames and the grid of their assignment."
        )
    if not torch.isfinite(anchors.responsibilities).all():
        raise InputError(
            "The responsibilities of the anchors hold NaN: change the settings of the assignment."
        )


def shares(anchors: Anchors) -> list[float]:
    """Share of the clip's tokens that each anchor explains."""
    mass = anchors.mass.sum(0)
    return (mass / mass.sum()).tolist()
