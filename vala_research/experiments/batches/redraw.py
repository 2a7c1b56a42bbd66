"""Draw published figures again from their csv alone: no model, no notebook."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vala_research import InputError
from vala_research.evaluation.figures import drawn_again, read_rows, save_figure
from vala_research.evaluation.look import Look
from vala_research.experiments.batches.cells import CELLS
from vala_research.experiments.publishing import finish
from vala_research.files import written_together


def records(folder: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The json of every published figure below a folder, and its path."""
    for path in sorted(Path(folder).rglob("*.json")):
        if CELLS in path.relative_to(folder).parts:  # the batch keeps its own
            continue
        try:
            record = json.loads(path.read_text("utf-8"))
        except ValueError:  # somebody's own file
            continue
        if isinstance(record, dict) and {"figure", "outputs", "parameters"} <= set(record):
            yield path, record


def figure_of(path: Path, record: dict[str, Any], look: Look = Look()) -> Figure:
    """Draw the figure of a record; path: of its json, beside which its csv lies."""
    drawing = record["drawing"]
    rows = path.parent / drawing["rows"]
    if not rows.is_file():
        raise InputError(f"{path} is drawn from {rows}, which is missing: run its notebook again.")
    with look.applied():
        figure = drawn_again(drawing["function"], read_rows(rows), drawing["options"])
        finish(figure, record["parameters"].get("preset", ""), record.get("title", ""))
    look.fit(figure)
    return figure


def redraw(folder: str | Path, look: Look = Look()) -> tuple[list[Path], list[Path]]:
    """Draw every figure below a folder again, in place; return what was drawn, and what was not.

    Not drawn are pictures of frames, whose pixels no csv holds.
    Raises InputError for a folder without published figures.
    """
    drawn, left = [], []
    for path, record in records(folder):
        if "drawing" not in record:
            left.append(path.with_suffix(".png"))
            continue
        figure = figure_of(path, record, look)
        targets = [path.with_suffix(f".{suffix}") for suffix in look.formats]
        with written_together(*targets) as unfinished:
            save_figure(figure, *unfinished)
        drawn += targets
    if not drawn and not left:
        raise InputError(f"{folder} holds no published figure: give a folder of vala figures.")
    return drawn, left
