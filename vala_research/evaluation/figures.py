"""A figure is its picture, its numbers and its origin: `emit` writes all three, or nothing.

Rougier, Droettboom, Bourne 2014 for the style; Okabe and Ito 2008 for colours all readers can tell.
"""

import csv
import json
import os
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch.nn.functional as F
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from torch import Tensor

from vala_research import InputError
from vala_research.evaluation.provenance import file_hash, jsonable, record

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler('color', {COLOURS})",
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "figure.figsize": (3.4, 2.3),  # one column of a two-column page, inches
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # whole TrueType fonts: searchable, accepted by publishers
    "svg.fonttype": "none",
}


def set_style() -> None:
    """The house style for every figure made from here on, matplotlib's and seaborn's."""
    rcParams.update(STYLE)


def emit(
    name: str,
    fig: Figure,
    table,
    params: Mapping,
    folder: str | os.PathLike = "figures",
    *,
    paper: str | None = None,
    figure: str | None = None,
    notebook: str | None = None,
    model: str | os.PathLike | None = None,
    device: str | None = None,
    inputs: Iterable[str | os.PathLike] = (),
) -> dict[str, Path]:
    """Write name.pdf (vector, embedded fonts), .png, .csv and .json; return their paths by suffix.

    table: every plotted number, a DataFrame or a list of dicts (one row each); full precision,
        so that the figure can be redrawn from the csv.
    params: what the run was given; its "seed", "model" and "device" are recorded as such too,
        unless named as arguments.
    paper, figure, notebook: what the figure reproduces and where it is made.
    inputs: files whose hashes are recorded.

    The four are finished in a hidden folder, then renamed: each name always holds a whole file.
    Raises InputError for a name with a path in it, an empty table, an unwritable folder.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"The figure's name is {name!r}: give a plain file name without suffix.")
    columns, rows = _rows(table)
    origin = record(
        params, paper=paper, figure=figure or name, notebook=notebook, model=model,
        device=device, inputs=inputs,
    )  # fmt: skip
    folder = Path(folder)
    unfinished = folder / f".{name}.{uuid4().hex[:8]}"
    paths = {kind: folder / f"{name}.{kind}" for kind in ("pdf", "png", "csv", "json")}
    try:
        unfinished.mkdir(parents=True)
        parts = {kind: unfinished / path.name for kind, path in paths.items()}
        _save(fig, columns, rows, parts)
        origin["outputs"] = {kind: file_hash(parts[kind]) for kind in ("pdf", "png", "csv")}
        parts["json"].write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
        for kind, path in paths.items():
            os.replace(parts[kind], path)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): choose another."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return paths


def _save(fig: Figure, columns: list[str], rows: list[dict], parts: dict[str, Path]) -> None:
    with rc_context({"pdf.fonttype": 42}):
        # Without dates the same figure is the same bytes, and its hash says so.
        fig.savefig(parts["pdf"], metadata={"CreationDate": None})
        fig.savefig(parts["png"], dpi=getattr(fig, "pixels_per_inch", STYLE["savefig.dpi"]))
    with parts["csv"].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _rows(table) -> tuple[list[str], list[dict]]:
    """Columns in order of appearance, and rows of plain numbers and strings."""
    if hasattr(table, "to_dict"):  # a DataFrame; an index with a name is a column
        table = table.reset_index() if table.index.names != [None] else table
        table = table.to_dict("records")
    rows = [{str(k): jsonable(v, finite=False) for k, v in row.items()} for row in table]
    columns = list(dict.fromkeys(k for row in rows for k in row))
    if not columns:
        raise InputError("The table is empty: give every plotted number, one dict a row.")
    return columns, rows


# An engine that does nothing; None would become the style's own once a pdf has been saved.
AS_PLACED = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)


class Picture(Figure):
    """A Figure of exact pixels that notebooks show without pyplot."""

    pixels_per_inch = 240

    def _repr_png_(self) -> bytes:
        from io import BytesIO

        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=self.pixels_per_inch)
        return buffer.getvalue()


def strip(
    rows: Mapping[str, Tensor], n_columns: int = 8, title: str | None = None, cell: int = 192
) -> Picture:
    """Rows of frames under one another, one column a time: source, edit, true edit, |difference|.

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
        fig = Picture(figsize=(w / dpi, h / dpi), dpi=dpi, layout=AS_PLACED)
        fig.text(gap / w, 1 - 0.4 * em / h, "\n".join(lines), va="top", weight="bold", fontsize=8)
        for k, time in enumerate(times):
            x, y = left + k * (column + gap) + column / 2, top - 0.5 * em
            style = {"ha": "center", "fontsize": 7, "color": "#555555"}
            fig.text(x / w, 1 - y / h, f"frame {time}", **style)
        y = top
        for label, image in images.items():
            middle = 1 - (y + image.shape[1] / 2) / h
            fig.text((left - 0.6 * em) / w, middle, label, ha="right", va="center", fontsize=8)
            for k, picture in enumerate(image):
                _place(fig, picture, left + k * (column + gap), y, w, h)
            y += image.shape[1] + gap
    return fig


def _place(fig: Figure, picture: np.ndarray, x: int, y: int, w: int, h: int) -> None:
    """At (x, y) from the top left in whole pixels: the picture is neither resampled nor blurred."""
    rows, columns = picture.shape[:2]
    axes = fig.add_axes((x / w, 1 - (y + rows) / h, columns / w, rows / h))
    axes.imshow(picture, interpolation="none", aspect="auto")
    axes.set_axis_off()


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
