"""Run the cells of a batch on Dask, with a live bar; finished cells are never run again.

`sweep` runs a grid of one notebook. Every outcome is on disk before the driver hears of it, so that
a driver or a worker may be killed at any time: the same call goes on from there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from vala_research import InputError
from vala_research.experiments.batches.cells import (
    DONE,
    FAILED,
    OPEN,
    PLAN,
    Cell,
    cells_of,
    with_status,
)
from vala_research.experiments.batches.clusters import Cluster, connected, extra
from vala_research.experiments.batches.execution import record, run_cell
from vala_research.experiments.batches.grid import read_grid
from vala_research.experiments.batches.inspection import find_notebook
from vala_research.experiments.batches.results import collect
from vala_research.files import check_output, write_json

POLL = 0.5  # seconds between looks at what runs
BAR = "{percentage:3.0f}%|{bar:20}| {n_fmt} of {total_fmt} cells [{elapsed}{postfix}]"


def sweep(
    notebook: str | Path,
    grid: Mapping[str, Any] | str | Path,
    folder: str | Path,
    cluster: Cluster = Cluster(),
    retry: bool = False,
) -> pd.DataFrame:
    """Run a notebook at every point of a grid; return one row per cell.

    notebook: a path, or a name or number of `notebooks/`. grid: see `batches.grid`, or a YAML file.
    folder: gets cells/, results.csv and results.parquet, and is what a later call resumes from.
    retry: run failed cells again too.
    Raises InputError, before anything runs, for what the grid or the notebook does not take.
    """
    path = find_notebook(notebook)
    points = grid if isinstance(grid, Mapping) else read_grid(grid)
    return run_cells(cells_of(path, points, folder), folder, cluster, retry)


def run_cells(
    cells: Sequence[Cell], folder: str | Path, cluster: Cluster = Cluster(), retry: bool = False
) -> pd.DataFrame:
    """Run the cells that are not done, and return the results of all; see `sweep`."""
    from filelock import FileLock, Timeout

    folder = Path(folder).resolve()
    check_output(folder / PLAN, makes_parents=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            plan = [{"id": cell.id, "notebook": cell.notebook.stem,
                     "parameters": dict(cell.parameters)} for cell in cells]  # fmt: skip
            write_json(folder / PLAN, plan)
            waiting = with_status(cells, OPEN, *((FAILED,) if retry else ()))
            try:
                if waiting:
                    _run(waiting, cells, cluster)
            finally:
                results = collect(folder)
            return results
    except Timeout:
        raise InputError(f"Another run writes into {folder}: wait, or choose another.") from None


def _run(waiting: Sequence[Cell], cells: Sequence[Cell], where: Cluster) -> None:
    """Hand the waiting cells to the workers, and show how far they are."""
    from tqdm.auto import tqdm

    distributed = extra("distributed", "batch")
    failed = len(with_status(cells, FAILED)) - len(with_status(waiting, FAILED))
    done = len(cells) - len(waiting) - failed
    with connected(where, len(waiting)) as client:
        tqdm.write(f"Dask dashboard: {client.dashboard_link}")
        tasks = {
            client.submit(
                run_cell, str(cell.notebook), dict(cell.parameters), str(cell.place),
                key=f"cell-{cell.id}", pure=False,
            ): cell for cell in waiting
        }  # fmt: skip
        start, left, said = time.time(), set(tasks), ""
        with tqdm(total=len(cells), initial=done + failed, bar_format=BAR) as bar:
            while left:
                ended = {task for task in left if task.done()}
                for task in ended:
                    failed += _outcome(task, tasks[task], distributed) != DONE
                left -= ended
                if ended or sys.stderr.isatty():  # only a terminal shows the clock run
                    bar.update(len(ended))
                running = min(sum(client.nthreads().values()), len(left))
                state = f"{bar.n - failed} done, {failed} failed, {running} running"
                state += _expected_end(start, len(waiting) - len(left), len(left))
                if state != said:
                    bar.set_postfix_str(said := state)
                if left:
                    time.sleep(POLL)


def _outcome(task: Any, cell: Cell, distributed: Any) -> str:
    """The status of a cell that ended; that of one whose workers died is written here."""
    try:
        return task.result()["status"]
    except (distributed.KilledWorker, distributed.client.FutureCancelledError) as error:
        reason = f"its worker died, again and again ({type(error).__name__}): is memory short?"
    except Exception as error:  # of Dask, or of a disk that is full; cells have none themselves
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    return record(str(cell.notebook), cell.parameters, cell.place, reason, 0.0)["status"]


def _expected_end(start: float, n_ended: int, n_left: int) -> str:
    """When the last cell ends if all take as long; empty until one has ended."""
    if not n_ended or not n_left:
        return ""
    seconds = (time.time() - start) / n_ended * n_left
    return f", ends about {datetime.now() + timedelta(seconds=seconds):%d %b %H:%M}"
