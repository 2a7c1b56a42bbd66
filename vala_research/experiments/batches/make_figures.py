"""Make every figure and table: the notebooks as one batch, their files, and a gallery of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from vala_research import InputError, chosen_from
from vala_research.evaluation.look import Look
from vala_research.experiments.batches.batch import run_cells
from vala_research.experiments.batches.cells import DONE, RUN, Cell, cells_of
from vala_research.experiments.batches.clusters import Cluster
from vala_research.experiments.batches.gallery import write_gallery
from vala_research.experiments.batches.inspection import OUTPUT, find_notebook, notebook_folder
from vala_research.experiments.batches.redraw import records, redraw
from vala_research.files import check_output, written_whole

PRESETS = ("smoke", "sprites", "paper")
KINDS = (".pdf", ".png", ".svg", ".csv", ".tex", ".json", ".mp4", ".ipynb")  # that are copied


def figures(
    folder: str | Path,
    preset: str = "smoke",
    only: Sequence[str] = (),
    cluster: Cluster = Cluster(),
    look: Look = Look(),
    notebooks: str | Path | None = None,
    retry: bool = False,
) -> pd.DataFrame:
    """Run notebooks at a preset and collect what they publish; return one row per notebook.

    folder: gets one folder per notebook, index.html, and the batch itself in cells/. A file of
    somebody else in the folder of a notebook is never deleted: that notebook is refused.
    only: numbers or names of notebooks; all by default. look: other than usual, every figure is
    drawn again in it.
    """
    chosen_from("preset", preset, PRESETS)
    folder = Path(folder).resolve()
    chosen = [find_notebook(name, notebooks) for name in only] or every_notebook(notebooks)
    check_output(folder / "index.html", makes_parents=True)
    for notebook in chosen:
        check_output(folder / notebook.stem, is_folder=True)
    cells = [cell for path in chosen for cell in cells_of(path, {"preset": preset}, folder)]
    table = run_cells(cells, folder, cluster, retry)
    for cell in cells:
        if cell.record()["status"] == DONE:
            collect(cell, folder)
    if look != Look():
        for notebook in chosen:
            if any(records(folder / notebook.stem)):
                redraw(folder / notebook.stem, look)
    write_gallery(folder)
    return table


def every_notebook(notebooks: str | Path | None = None) -> list[Path]:
    """All numbered notebooks, in order."""
    found = sorted(Path(notebooks or notebook_folder()).resolve().glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise InputError(f"No notebook is in {notebooks}: give the folder of the notebooks.")
    return found


def collect(cell: Cell, folder: Path) -> None:
    """Copy what a notebook published, and the executed notebook, to the folder of its name."""
    output = cell.place / OUTPUT
    names = published(output)
    with written_whole(folder / cell.notebook.stem, is_folder=True) as unfinished:
        unfinished.mkdir()
        for name in names:
            shutil.copyfile(output / name, unfinished / name)
        shutil.copyfile(cell.place / RUN, unfinished / RUN)


def published(output: Path) -> Iterable[str]:
    """Names of the files directly in a notebook's output that a reader wants."""
    files = output.iterdir() if output.is_dir() else ()
    return sorted(p.name for p in files if p.is_file() and p.suffix in KINDS)


