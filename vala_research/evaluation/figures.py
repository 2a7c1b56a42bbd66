"""Style of all figures; `emit` writes a figure with its numbers and its origin, or nothing.

A figure made by a function under `@drawn` can be made again from its rows alone.

Style: Rougier, Droettboom and Bourne 2014. Colours that all readers can tell apart: Okabe and Ito
2008.
"""

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from vala_research import InputError
from vala_research.evaluation.latex import latex_table
from vala_research.evaluation.provenance import file_hash, jsonable, record
from vala_research.files import check_output, write_json, write_rows, written_together

COLUMN, PAGE = 3.3, 7.0  # widths of a figure: one column of a two-column page, or both; inches
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
    "figure.figsize": (COLUMN, 2.3),
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # whole TrueType fonts: searchable, accepted by publishers
    "svg.fonttype": "none",
}
PAPER = {"color": "#777777", "linestyle": "--", "linewidth": 1.0}  # a value from a paper
BLUE, RED, GREEN = COLOURS[:3]
_addresses: set[str] = set()  # of the functions under `drawn`


@dataclass(frozen=True)
class Drawing:
    """How a figure was drawn: the function's address, "module:name", its rows and its options.

    claim: what its title states, see `verdicts.stated`.
    """

    function: str
    rows: Any
    options: Mapping[str, Any]
    claim: str = ""


def drawn(function: Callable[..., Figure] | None = None, *, claim: str = "") -> Callable:
    """Decorate a function (rows, options ...) -> Figure, so that `emit` says how to draw it again.

    rows: a DataFrame. Options are plain values that JSON can hold. What is drawn at random is the
    same every time. claim: a part of the claim that the published figure's title states; by
    default it states the first one.
    """
    if function is None:
        return partial(drawn, claim=claim)
    signature, address = inspect.signature(function), f"{function.__module__}:{function.__name__}"
    _addresses.add(address)

    @wraps(function)
    def draw(*arguments: Any, **options: Any) -> Figure:
        state = np.random.get_state()
        np.random.seed(0)  # seaborn's jitter
        try:
            figure = function(*arguments, **options)
        finally:
            np.random.set_state(state)
        (_, rows), *rest = signature.bind(*arguments, **options).arguments.items()
        figure.drawing = Drawing(address, rows, dict(rest), claim)
        return figure

    return draw


def drawn_again(function: str, rows: Any, options: Mapping[str, Any]) -> Figure:
    """Draw a figure by the address of its function, which must be one of this library's.

    Raises InputError for any other address: a file that says what to run is not trusted.
    """
    module, _, name = function.partition(":")
    if not module.startswith("vala_research."):
        raise InputError(f"The figure's function {function!r} is not of this library.")
    draw = getattr(import_module(module), name, None)
    if function not in _addresses:
        raise InputError(f"{function!r} draws no figure: run the notebook again.")
    return draw(rows, **options)


def emit(
    name: str, fig: Figure, table, params: Mapping, folder: str | os.PathLike = "figures", *,
    paper: str | None = None, figure: str | None = None, notebook: str | None = None,
    model: str | os.PathLike | None = None, device: str | None = None,
    inputs: Iterable[str | os.PathLike] = (), about: Mapping[str, Any] | None = None,
) -> dict[str, Path]:  # fmt: skip
    """Write name.pdf (vector, embedded fonts), .png, .csv, .tex and .json; return paths by suffix.

    All are written whole or not at all.

    table: the numbers beside the figure in full precision: a DataFrame, or one dict per row. For
        a figure that is not `drawn`, every plotted number. The .tex holds them for a paper.
    fig: where it is `drawn`, its rows are written too, as name_rows.csv (unless they are the
        table), and the json says how to draw it again.
    params: parameters of the run. Its "seed", "model" and "device" are recorded separately too,
        unless they are given as arguments.
    paper, figure, notebook: what the figure reproduces, and where it is made.
    inputs: files whose hashes are recorded.
    about: further facts for the json.
    Raises InputError for a name with a path in it, an empty table, an unwritable folder.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise InputError(f"The figure's name is {name!r}: give a plain file name without suffix.")
    columns, rows = _rows(table)
    origin = record(
        params, paper=paper, figure=figure or name, notebook=notebook, model=model,
        device=device, inputs=inputs,
    ) | dict(about or {})  # fmt: skip
    files = {kind: f"{name}.{kind}" for kind in ("pdf", "png", "csv", "tex")}
    drawing = getattr(fig, "drawing", None)
    has_own_rows = drawing is not None and drawing.rows is not table
    if has_own_rows:
        files["rows"] = f"{name}_rows.csv"
    if drawing is not None:
        origin["drawing"] = {"function": drawing.function, "options": jsonable(drawing.options),
                             "rows": files["rows" if has_own_rows else "csv"]}  # fmt: skip
    files["json"] = f"{name}.json"
    paths = {k: check_output(Path(folder, f), makes_parents=True) for k, f in files.items()}
    with written_together(*paths.values()) as unfinished:
        new = dict(zip(paths, unfinished, strict=True))
        save_figure(fig, new["png"], new["pdf"])
        write_rows(new["csv"], rows, columns)
        new["tex"].write_text(latex_table(columns, rows), "utf-8")
        if has_own_rows:
            drawing.rows.to_csv(new["rows"], index=False)
        hashes = {kind: file_hash(path) for kind, path in new.items() if kind != "json"}
        write_json(new["json"], origin | {"outputs": hashes})
    return paths


def save_figure(fig: Figure, *paths: Path) -> None:
    """Save a figure as png, pdf or svg, by suffix, without dates: the same figure, the same bytes.

    The png goes first, and the others have its layout, for each drawing would move it by a
    fraction of a pixel. Pdf has TrueType fonts. Pixels: those of the figure, or else 300 per inch.
    """
    pixels = getattr(fig, "pixels_per_inch", STYLE["savefig.dpi"])
    with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "figure"}):
        for path in sorted(paths, key=lambda path: path.suffix != ".png"):
            dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
            fig.savefig(path, dpi=pixels, metadata=dates.get(path.suffix[1:]))
            if is_laid_out(fig):
                fig.set_layout_engine("none")


def is_laid_out(fig: Figure) -> bool:
    """Say whether drawing places the parts of a figure; those of a `Page` have fixed places."""
    return isinstance(fig.get_layout_engine(), ConstrainedLayoutEngine)


def read_rows(path: Path) -> Any:
    """Read the rows of a figure as they were: every float to its last bit."""
    import pandas as pd

    with warnings.catch_warnings():  # from pandas 3.1 on, every float is read so
        warnings.simplefilter("ignore")
        return pd.read_csv(
            path, float_precision="round_trip", keep_default_na=False, na_values=["", "nan"],
            low_memory=False,
        )  # fmt: skip


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
