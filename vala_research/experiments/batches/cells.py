"""A cell of a batch: one notebook with its parameters, its folder, and what became of it.

A cell's folder is named by the hash of notebook, parameters and library version. In it:

    run.ipynb   the executed notebook
    output/     what the notebook wrote
    cell.json   parameters and outcome; written last, so that its presence says that the cell ended
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vala_research import InputError
from vala_research.evaluation.provenance import code_version, jsonable, notebook_sources
from vala_research.experiments.batches.grid import expand
from vala_research.experiments.batches.inspection import check_parameters

DONE, FAILED, OPEN = "done", "failed", "not run"
CELLS, RECORD, RUN = "cells", "cell.json", "run.ipynb"
PLAN = "sweep.json"  # the cells of the last call


@dataclass(frozen=True)
class Cell:
    """One run of a notebook; folder: of the whole batch."""

    notebook: Path
    parameters: Mapping[str, Any]
    folder: Path

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits: hash of the notebook's sources, parameters, library version."""
        what = [self.notebook.stem, sources_of(self.notebook), jsonable(dict(self.parameters)),
                code_version()]  # fmt: skip
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def place(self) -> Path:
        """The folder of this cell."""
        return self.folder / CELLS / self.id

    def record(self) -> dict[str, Any]:
        """What became of the cell: its cell.json, or else that it was not run."""
        try:
            return json.loads((self.place / RECORD).read_text("utf-8"))
        except FileNotFoundError:
            return {"status": OPEN}
        except json.JSONDecodeError:
            raise InputError(f"{self.place / RECORD} is broken: delete {self.place}.") from None


def sources_of(notebook: Path) -> list[str]:
    """The sources of the code cells. Outputs and text do not make another cell of a batch."""
    return notebook_sources(notebook.read_text("utf-8"), "code")


def cells_of(notebook: Path, grid: Mapping[str, Any], folder: str | Path) -> list[Cell]:
    """Return the cells of a grid, checked; a cell that the grid names twice comes once.

    Raises InputError for parameters that the notebook does not take.
    """
    every = expand(grid)
    check_parameters(notebook, every)
    cells = [Cell(notebook, parameters, Path(folder).resolve()) for parameters in every]
    return list({cell.id: cell for cell in cells}.values())


def with_status(cells: Iterable[Cell], *statuses: str) -> list[Cell]:
    """The cells that are so on disk."""
    return [cell for cell in cells if cell.record()["status"] in statuses]
