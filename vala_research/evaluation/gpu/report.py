"""Run the parts one after another within a budget of time, and write what is known after each."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vala_research.evaluation.gpu.correctness import correctness
from vala_research.evaluation.gpu.filter import filter_speed
from vala_research.evaluation.gpu.fit import fit
from vala_research.evaluation.gpu.machine import Machine
from vala_research.evaluation.gpu.policies import policy_speed
from vala_research.evaluation.gpu.speed import edit_speed, layouts
from vala_research.evaluation.gpu.training import training_step
from vala_research.evaluation.provenance import jsonable, record
from vala_research.files import write_json, write_text

Part = Callable[[Machine], Iterator[dict]]
# The parts in their order, and the share of the budget by whose end each must be done. Compiling
# takes longest and comes last.
PARTS: dict[str, tuple[Part, float]] = {
    "filter": (filter_speed, 0.05),
    "speed": (edit_speed, 0.2),
    "training": (training_step, 0.25),
    "policies": (policy_speed, 0.4),
    "fit": (fit, 0.5),
    "correctness": (correctness, 0.8),
    "layouts": (layouts, 1.0),
}


class OutOfTime(BaseException):
    """A part's time is over. No library's `except Exception` may swallow it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block when the time is over, where the system can."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_part(part: Part, machine: Machine, seconds: float) -> dict[str, Any]:
    """The rows of a part, its seconds, and its status: "done", "out of time", or the error."""
    rows: list[dict] = []
    start, status = time.perf_counter(), "done"
    try:
        with limited(seconds):
            for row in part(machine):
                rows.append(row)
                if time.perf_counter() - start > seconds:
                    raise OutOfTime
    except OutOfTime:
        status = "out of time"
    except Exception as error:  # noqa: BLE001 - the other parts go on
        status = f"failed: {type(error).__name__}: {str(error)[:300]}"
    machine.clear()
    return {"status": status, "seconds": time.perf_counter() - start, "rows": rows}


def run_report(
    machine: Machine, folder: Path, budget: float, parts: Mapping[str, tuple[Part, float]] = PARTS,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Run the parts; write `report.md` and `report.json` into the folder after each of them.

    budget: seconds for all of them. Returns what is in the JSON.
    """
    start = time.perf_counter()
    scale = {k: str(v) for k, v in vars(machine.scale).items()}
    origin = record({"budget": budget, "scale": scale}, device=machine.name, model="miniature")
    report: dict[str, Any] = {"device": machine.name, "origin": origin, "parts": {}}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (part, share) in parts.items():
        left = share * budget - (time.perf_counter() - start)
        say(f"{name}: at most {max(left, 0):.0f} s")
        unbegun = {"status": "out of time", "seconds": 0.0, "rows": []}
        report["parts"][name] = run_part(part, machine, left) if left > 0 else unbegun
        report["seconds"] = time.perf_counter() - start
        write_json(folder / "report.json", jsonable(report))
        write_text(folder / "report.md", page(report))
    return report


def is_right(report: Mapping[str, Any]) -> bool:
    """Whether every part was done, without an error and without a wrong result."""
    parts = report["parts"].values()
    rows = [row for part in parts for row in part["rows"]]
    return all(p["status"] == "done" for p in parts) and all(
        "error" not in row and row.get("right", True) for row in rows
    )


def page(report: Mapping[str, Any]) -> str:
    """The report as Markdown: one table per part."""
    origin = report["origin"]
    versions = ", ".join(f"{k} {v}" for k, v in origin["versions"].items())
    lines = [
        f"# vala_research on {report['device']}", "",
        f"Commit {origin['commit']}{' with changes' if origin['dirty'] else ''}; {versions}. "
        f"{report['seconds']:.0f} seconds. Speeds are those of random weights; 50 + 50 steps are "
        "extrapolated from a few.",
    ]  # fmt: skip
    for name, part in report["parts"].items():
        lines += ["", f"## {name}", "", f"{part['status']}, {part['seconds']:.1f} seconds.", ""]
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
        if columns:
            lines += [line(columns), line(["---"] * len(columns))]
            lines += [line([row.get(c, "") for c in columns]) for row in part["rows"]]
    return "\n".join(lines) + "\n"


def line(cells: list) -> str:
    """One line of a Markdown table; numbers with four digits."""
    texts = [f"{c:.4g}" if isinstance(c, float) else str(c).replace("|", "/") for c in cells]
    return f"| {' | '.join(texts)} |"
