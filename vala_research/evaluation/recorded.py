"""Numbers that a notebook records, so that a batch of its runs becomes one table.

They travel in the executed notebook itself, as an output of a type of their own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vala_research.evaluation.provenance import jsonable

MIME = "application/vnd.vala-research.metrics+json"


def record_metrics(metrics: Mapping[str, Any]) -> None:
    """Record numbers or texts by name in the notebook that runs; elsewhere nothing happens."""
    ipython = sys.modules.get("IPython")  # where it is not imported, no notebook runs
    if ipython is None or ipython.get_ipython() is None or not metrics:
        return
    content = jsonable(dict(metrics))
    said = {MIME: content, "text/plain": f"recorded {len(content)} numbers"}
    ipython.display.display(said, raw=True)


def recorded_in(notebook: Path) -> dict[str, Any]:
    """Return what an executed notebook recorded; the last value of a name counts."""
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return {}
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    recorded = [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]
    return {name: value for part in recorded for name, value in part.items()}
