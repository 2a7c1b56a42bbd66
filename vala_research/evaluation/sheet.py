"""Pages of pictures: rows of frames with names, at exact pixels."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.patches import Rectangle
from torch import Tensor

from vala_research import InputError
from vala_research.evaluation.figures import STYLE, Picture

# An engine that does nothing; None would become the style's own once a pdf has been saved.
AS_PLACED = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)


class Page:
    """A Picture on which all is placed by its distance from the top left, in one unit.

    w, h: of the page. per_inch: units per inch; `Picture.pixels_per_inch` is whole pixels.
    """

    def __init__(self, w: float, h: float, per_inch: float = 1):
        self.w, self.h = w, h
        dpi = Picture.pixels_per_inch
        self.figure = Picture(figsize=(w / per_inch, h / per_inch), dpi=dpi, layout=AS_PLACED)

    def axes(self, x: float, y: float, w: float, h: float) -> Axes:
        """Axes without ticks, grid and frame."""
        # A hair inside whole pixels: rounding must not reach over an edge, or images are resampled.
        hair = 1e-7
        box = (x / self.w, 1 - (y + h) / self.h, w / self.w, h / self.h)
        box = (*(a + hair for a in box[:2]), *(a - 2 * hair for a in box[2:]))
        axes = self.figure.add_axes(box)
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        return axes

    def picture(self, x: float, y: float, w: float, h: float, image, **style) -> Axes:
        """An image, not resampled; its edges are 0 and 1, so maps of any grid share an outline."""
        axes = self.axes(x, y, w, h)
        axes.imshow(image, extent=(0, 1, 1, 0), interpolation="none", aspect="auto", **style)
        return axes

    def box(self, x: float, y: float, w: float, h: float, colour) -> None:
        corner = (x / self.w, 1 - (y + h) / self.h)
        self.figure.add_artist(Rectangle(corner, w / self.w, h / self.h, fc=colour, lw=0, zorder=0))

    def write(self, x: float, y: float, text: str, size: float = 7, **style) -> None:
        self.figure.text(x / self.w, 1 - y / self.h, text, fontsize=size, **style)

    def scale(
        self, x: float, y: float, w: float, h: float, colours: str, ticks: Mapping[float, str]
    ) -> Axes:
        """A colour bar between the first and the last tick, which are named at its right."""
        axes, values = self.axes(x, y, w, h), list(ticks)
        axes.imshow(np.linspace(1, 0, 128)[:, None], cmap=colours, aspect="auto",
                    extent=(0, 1, values[0], values[-1]))  # fmt: skip
        axes.yaxis.tick_right()
        axes.tick_params(length=2, pad=1.5, labelsize=7)
        axes.set_yticks(values, list(ticks.values()))
        return axes


def strip(
    rows: Mapping[str, Tensor], n_columns: int = 8, title: str | None = None, cell: int = 192
) -> Picture:
    """Draw rows of frames, one column per time: source, edit, true edit, |difference|.

    rows: label -> frames f c h w in [0, 1] of one length (labels may break lines with \\n).
    n_columns: at most so many frames, evenly spaced, the first and the last among them.
    cell: pixels of a frame's longer side; small frames grow by a whole factor, each pixel a square.

    Save it with `emit`, or `strip(...).savefig("strip.png", dpi=Picture.pixels_per_inch)`.
    Raises InputError for no rows, rows of different lengths or shapes other than f c h w.
    """
    _check_rows(rows, n_columns)
    n_frames = len(next(iter(rows.values())))
    times = np.linspace(0, n_frames - 1, min(n_columns, n_frames)).round().astype(int)
    images = {label: _enlarged(frames[times], cell) for label, frames in rows.items()}
    column = max(image.shape[2] for image in images.values())
    gap, dpi = cell // 32, Picture.pixels_per_inch
    em = round(8 / 72 * dpi)  # of 8 point type, in pixels
    left = round(0.6 * em * max(len(line) for label in rows for line in label.split("\n"))) + em
    w = left + len(times) * (column + gap) + gap
    lines = _wrapped(title, (w - gap) / (0.66 * em))
    top = round((1.8 + 1.35 * len(lines)) * em)
    h = top + sum(image.shape[1] + gap for image in images.values()) + gap
    with rc_context(STYLE):
        page = Page(w, h, dpi)
        page.write(gap, 0.4 * em, "\n".join(lines), 8, va="top", weight="bold")
        for k, time in enumerate(times):
            x = left + k * (column + gap) + column / 2
            page.write(x, top - 0.5 * em, f"frame {time}", ha="center", color="#555555")
        y = top
        for label, image in images.items():
            middle = y + image.shape[1] / 2
            page.write(left - 0.6 * em, middle, label, 8, ha="right", va="center")
            for k, picture in enumerate(image):
                size = picture.shape[1], picture.shape[0]
                page.picture(left + k * (column + gap), y, *size, picture)
            y += image.shape[1] + gap
    return page.figure


def _wrapped(title: str | None, n_letters: float) -> list[str]:
    lines = (title or "").split("\n")
    return [part for line in lines for part in textwrap.wrap(line, max(12, int(n_letters)))]


def _enlarged(frames: Tensor, cell: int) -> np.ndarray:
    """f h w 3 whose longer side is about `cell`: repeated pixels upwards, antialiased downwards."""
    frames = frames.detach().float().cpu().clamp(0, 1).expand(-1, 3, -1, -1)
    longer = max(frames.shape[-2:])
    if longer > cell:
        size = [max(1, round(side * cell / longer)) for side in frames.shape[-2:]]
        frames = F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(0, 1)
    else:
        factor = max(1, round(cell / longer))
        frames = frames.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    return frames.permute(0, 2, 3, 1).numpy()


def _check_rows(rows: Mapping[str, Tensor], n_columns: int) -> None:
    if not rows or n_columns < 1:
        raise InputError("A strip needs at least one row and one column of frames.")
    shapes = {label: tuple(frames.shape) for label, frames in rows.items()}
    if any(len(s) != 4 or s[1] not in (1, 3) or 0 in s for s in shapes.values()):
        raise InputError(f"The strip's rows have shapes {shapes}: give f c h w with c = 1 or 3.")
    if len({s[0] for s in shapes.values()}) > 1:
        raise InputError(f"The strip's rows have shapes {shapes}: give rows of one length.")


@dataclass
class Sheet(Page):
    """Square cells in rows; columns come in pairs of adjacent frames, pairs in groups. Inches."""

    groups: int
    pairs: int  # per group
    rows: int
    head: float = 0.6
    cell: float = 0.72
    below: float = 0.18  # room for a line under each row
    left: float = 0.62
    between: float = 0.16  # groups

    def __post_init__(self):
        h = self.head + self.rows * (self.cell + self.below) + 0.04
        super().__init__(self.end(self.groups - 1) + 0.48, h)

    def x(self, group: int, pair: int, frame: int) -> float:
        pair_w = 2 * self.cell + 0.12
        of_group = self.left + group * (self.pairs * pair_w - 0.12 + self.between)
        return of_group + pair * pair_w + frame * (self.cell + 0.03)

    def end(self, group: int) -> float:
        return self.x(group, self.pairs - 1, 1) + self.cell

    def y(self, row: int) -> float:
        return self.head + row * (self.cell + self.below)

    def show(self, row: int, group: int, pair: int, frame: int, image, **style) -> Axes:
        place = self.x(group, pair, frame), self.y(row)
        return self.picture(*place, self.cell, self.cell, image, **style)

    def middle(self, group: int, pair: int) -> float:
        return self.x(group, pair, 1) - 0.015

    def note(self, row: int, group: int, pair: int, text: str) -> None:
        y = self.y(row) + self.cell + 0.11
        self.write(self.middle(group, pair), y, text, 6, ha="center", color="#333333")

    def label(self, row: int, text: str) -> None:
        self.write(self.left - 0.1, self.y(row) + self.cell / 2, text, 8, ha="right", va="center")

    def bar(self, group: int, rows: range, norm: Normalize, colours: str, words: str) -> None:
        """A colour bar at the right of a group's rows."""
        y, end = self.y(rows[0]), self.y(rows[-1]) + self.cell
        ticks = {v: f"{v:.2g}" for v in (norm.vmin, norm.vmax)}
        axes = self.scale(self.end(group) + 0.08, y, 0.08, end - y, colours, ticks)
        axes.set_title(words, fontsize=7, weight="normal", pad=3)
