"""Which run made each file of rows in notebooks/results/: runs.json, and the table that shows it.

`pages` writes the table into notebooks/results/README.md. A parameter that is not named has the
value of the preset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from vala_research import InputError
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.batches.inspection import (
    experiment_of,
    find_notebook,
    notebook_folder,
)
from vala_research.experiments.page_cells import as_markdown, rows_of


@dataclass(frozen=True, kw_only=True)
class KeptRun:
    """The run behind a file: of a notebook, or of another command."""

    notebook: str = ""  # its name, such as "20_fldm_fusion"
    preset: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)  # beside the preset
    command: str = ""  # in place of a notebook
    commit: str = ""  # of the library; "": not recorded
    holds: str = ""  # what the rows are, where the notebook does not say it

    def __post_init__(self):
        if bool(self.notebook) == bool(self.command) or bool(self.notebook) != bool(self.preset):
            raise InputError(f"{self} is no run: give a notebook and its preset, or a command.")

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of the notebook, with the preset."""
        return {"preset": self.preset, **self.parameters}


def kept_runs(folder: Path | None = None) -> dict[str, KeptRun]:
    """The run behind each file, by the file's name without its ending; folder: of runs.json."""
    path = Path(folder or notebook_folder() / "results") / "runs.json"
    runs = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return {name: KeptRun(**run) for name, run in runs.items()}


def kept_claims(name: str) -> list[Claim]:
    """What a file's rows say of the claims of its notebook; some need the settings of the run."""
    run = kept_runs()[name]
    experiment = experiment_of(find_notebook(run.notebook))
    if "settings" not in signature(experiment.claims).parameters:
        return experiment.claims(rows_of(name))
    settings = experiment.Settings.preset(run.preset, **run.parameters)
    return experiment.claims(rows_of(name), settings)


def written_runs(runs: Mapping[str, KeptRun] | None = None) -> str:
    """The runs as a table in Markdown."""
    titles = ["file", "notebook", "preset", "other parameters", "commit", "holds"]
    lines = []
    for name, run in (kept_runs() if runs is None else runs).items():
        maker = run.notebook[:2] or f"`{run.command}`"
        given = " ".join(f"`-p {key} {_written(value)}`" for key, value in run.parameters.items())
        lines.append([f"`{name}.csv`", maker, run.preset, given, run.commit[:10], run.holds])
    return as_markdown(titles, lines)


def _written(value: Any) -> str:
    """A value as it follows -p: names that hold commas are parted by semicolons."""
    if not isinstance(value, list):
        return str(value)
    texts = [str(v) for v in value]
    text = (";" if any("," in t for t in texts) else ",").join(texts)
    return f'"{text}"' if not text or " " in text or ";" in text else text
