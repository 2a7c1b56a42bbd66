"""One table of a batch: parameters, outcome and recorded numbers of every cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from vala_research import InputError
from vala_research.evaluation.recorded import recorded_in
from vala_research.experiments.batches.cells import CELLS, OPEN, PLAN, RECORD, RUN
from vala_research.files import written_together

TABLES = ("results.csv", "results.parquet")


def results(folder: str | Path) -> pd.DataFrame:
    """Read a batch's cells: columns cell, notebook, status, parameters, numbers, seconds, error.

    Numbers are those that `record_metrics` recorded. A parameter that is a list stands as JSON.
    Raises InputError for a folder that holds no batch.
    """
    folder = Path(folder)
    try:
        plan = json.loads((folder / PLAN).read_text("utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{folder} holds no sweep: give a folder that vala sweep wrote.") from None
    return pd.DataFrame([_row(folder, cell) for cell in plan])


def _row(folder: Path, cell: dict[str, Any]) -> dict[str, Any]:
    """One cell as a row."""
    place = folder / CELLS / cell["id"]
    try:
        record = json.loads((place / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        record = {"status": OPEN}
    lists = {k: json.dumps(v) for k, v in cell["parameters"].items() if isinstance(v, (list, dict))}
    numbers = recorded_in(place / RUN) if record["status"] != OPEN else {}
    row = {"cell": cell["id"], "notebook": cell["notebook"], "status": record["status"]}
    ends = {"seconds": record.get("seconds"), "error": record.get("error")}
    return row | cell["parameters"] | lists | numbers | ends


def collect(folder: str | Path) -> pd.DataFrame:
    """Write results.csv and results.parquet of a batch, both or none; return the table."""
    table = results(folder)
    paths = [Path(folder) / name for name in TABLES]
    with written_together(*paths) as (csv, parquet):
        table.to_csv(csv, index=False)
        mixed = [name for name in table if table[name].dtype == object]  # parquet: one type each
        table.astype(dict.fromkeys(mixed, "string")).to_parquet(parquet, index=False)
    return table
