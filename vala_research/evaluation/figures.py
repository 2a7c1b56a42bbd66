"""Style of all figures; `emit` writes a figure with its numbers and its origin, or nothing.

Style: Rougier, Droettboom and Bourne 2014. Colours that all readers can tell apart: Okabe and Ito
2008.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from vala_research import InputError
from vala_research.evaluation.provenance import file_hash, jsonable, record
from vala_research.files import check_output, write_json, write_rows, written_together

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
PAPER = {"color": "#777777", "linestyle": "--", "linewidth": 1.0}  # a value from a paper
BLUE, RED, GREEN = COLOURS[:3]


def emit(
    name: str, fig: Figure, table, params: Mapping, folder: str | os.PathLike = "figures", *,
    paper: str | None = None, figure: str | None = None, notebook: str | None = None,
    model: str | os.PathLike | None = None, device: str | None = None,
    inputs: Iterable[str | os.PathLike] = (),
) -> dict[str, Path]:  # fmt: skip
    """Write name.pdf (vector, embedded fonts), .png, .csv and .json; return their paths by suffix.

    All four are written whole or not at all.

    table: every plotted number in full precision, so that the figure can be redrawn from the csv. A
        DataFrame, or one dict per row.
    params: parameters of the run. Its "seed", "model" and "device" are recorded separately too,
        unless they are given as arguments.
    paper, figure, notebook: what the figure reproduces, and where it is made.
    inputs: files whose hashes are recorded.
    Raises InputError for a name with a path in it, an empty table, an unwritable folder.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"The figure's name is {name!r}: give a plain file name without suffix.")
    columns, rows = _rows(table)
    origin = record(
        params, paper=paper, figure=figure or name, notebook=notebook, model=model,
        device=device, inputs=inputs,
    )  # fmt: skip
    kinds = ("pdf", "png", "csv", "json")
    paths = {k: check_output(Path(folder, f"{name}.{k}"), makes_parents=True) for k in kinds}
    with written_together(*paths.values()) as (pdf, png, numbers, how):
        with rc_context({"pdf.fonttype": 42}):
            # Without dates the same figure is the same bytes, and its hash says so.
            fig.savefig(pdf, metadata={"CreationDate": None})
            fig.savefig(png, dpi=getattr(fig, "pixels_per_inch", STYLE["savefig.dpi"]))
        write_rows(numbers, rows, columns)
        hashes = {"pdf": file_hash(pdf), "png": file_hash(png), "csv": file_hash(numbers)}
        write_json(how, origin | {"outputs": hashes})
    return paths


def _rows(table) -> tuple[list[str], list[dict]]:
    """Columns in order of appearance, and rows of plain numbers and strings."""
    if hasattr(table, "to_dict"):  # a DataFrame; an index with a name is a column
        table = table.reset_index() if table.index.names != [None] else table
        table = table.to_dict("records")
    rows = [{str(k): jsonable(v, finite=False) for k, v in row.items()} for row in table]
    columns = list(dict.fromkeys(k for row in rows for k in row))
    if not columns:
        raise InputError("The table is empty: give every plotted number, one dict per row.")
    return columns, rows


class Picture(Figure):
    """A Figure with exact pixels, which notebooks show without pyplot."""

    pixels_per_inch = 240

    def _repr_png_(self) -> bytes:
        from io import BytesIO

        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=self.pixels_per_inch)
        return buffer.getvalue()
