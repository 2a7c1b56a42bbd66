"""Run one cell of a batch. It runs in a Dask worker, and knows neither the grid nor other cells."""

from __future__ import annotations

import os
import platform
import signal
import time
import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from uuid import uuid4

from jupyter_client import AsyncKernelManager

from vala_research.evaluation.provenance import jsonable
from vala_research.experiments.batches.cells import DONE, FAILED, RECORD, RUN
from vala_research.experiments.batches.inspection import OUTPUT, parameters_of
from vala_research.files import write_json


class FileKernelManager(AsyncKernelManager):
    """Talks to its kernel by files where it can: no ports, for which two kernels might race."""

    def __init__(self, **options: Any):
        if os.name != "nt":
            name = f"vala-kernel-{uuid4().hex[:12]}"  # a short path: sockets hold 107 characters
            options = {"transport": "ipc", "ip": str(Path(gettempdir()) / name)} | options
        super().__init__(**options)


def dask_setup(worker: Any) -> None:
    """Let a worker ignore Ctrl-C, which its driver obeys; Dask calls this when a worker starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_cell(notebook: str, parameters: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Execute a notebook in the folder of its cell; return the record that is written there.

    Every error of the notebook is part of the record: one bad cell does not stop the others. The
    output folder is kept between tries, so that an experiment resumes.
    """
    folder, start = Path(place), time.time()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)  # of an earlier try
    error = _executed(Path(notebook), dict(parameters), folder)
    return record(notebook, parameters, folder, error, time.time() - start)


def record(
    notebook: str, parameters: Mapping[str, Any], folder: Path, error: str, seconds: float
) -> dict[str, Any]:
    """Write and return a cell's record; error: one line, or empty if the cell is done."""
    content = {
        "status": FAILED if error else DONE,
        "notebook": Path(notebook).stem,
        "parameters": jsonable(dict(parameters)),
        "error": error,
        "seconds": round(seconds, 1),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": platform.node(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, content)
    return content


def _executed(notebook: Path, parameters: dict[str, Any], folder: Path) -> str:
    """Execute by papermill; return the error of the notebook as one line, or an empty text."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    if OUTPUT in parameters_of(notebook):
        parameters[OUTPUT] = str(folder / OUTPUT)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                str(notebook), str(folder / RUN), parameters, cwd=str(notebook.parent),
                progress_bar=False, kernel_name="python3", kernel_manager_class=FileKernelManager,
            )  # fmt: skip
    except PapermillExecutionError as error:
        return " ".join(f"{error.ename}: {error.evalue}".split())
    except Exception as error:  # such as a kernel that died, for lack of memory
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""
