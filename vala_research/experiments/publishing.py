"""Publish what an experiment found: figure, numbers, LaTeX table, claims and origin."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from vala_research import chosen_from
from vala_research.evaluation.figures import STYLE, drawn_again, emit, is_laid_out
from vala_research.evaluation.panel import papermill_line
from vala_research.evaluation.recorded import record_metrics
from vala_research.evaluation.verdicts import Claim, claims_table, stated
from vala_research.experiments.contract import Preset
from vala_research.files import written_whole

# One spelling per paper, by the word in the notebooks' names.
PAPERS = {
    "vala": "VALA, arXiv 2510.22970", "fldm": "FLDM, arXiv 2310.16400",
    "ge": "GE-Adapter, arXiv 2501.04606",
    "theory": "GE-Adapter theory, arXiv 2504.16016", "flow": "FlowEdit, arXiv 2412.08629",
}  # fmt: skip
WATERMARK = "smoke preset: the procedure, no evidence"


def publish(
    notebook: str, settings: Preset, figure: Figure, plotted: Any, claims: Iterable[Claim],
    output: str | Path, /, name: str = "", paper: str = "", **origin: Any,
) -> dict[str, Path]:  # fmt: skip
    """Write figure, numbers and origin by `emit`, and the claims beside them as csv; record both.

    notebook: such as "20_fldm_fusion"; the files are called `name`, or else "fldm_fusion". paper:
    of `PAPERS`, by default the one in the notebook's name. The title of a figure that is drawn
    from rows states its claim and the verdict. A figure of the smoke preset carries a watermark.
    origin: further arguments of `emit`.
    """
    if paper:
        chosen_from("paper", paper, PAPERS)
    paper = paper or notebook.split("_")[1]

    name, claims, title = name or notebook.partition("_")[2], list(claims), ""
    if drawing := getattr(figure, "drawing", None):  # a new one, whose layout no display has moved
        figure = drawn_again(drawing.function, drawing.rows, drawing.options)
        title = stated(claims, drawing.claim)
    finish(figure, settings.preset_name, title)
    origin = {"device": "cuda" if torch.cuda.is_available() else "cpu"} | origin
    parameters = asdict(settings)
    parameters = {"preset": parameters.pop("preset_name"), **parameters}
    about = {
        "title": title,
        "seconds": round(time.time() - settings.started, 1) if settings.started else None,
        "command": command(notebook, settings),
        "output": str(Path(output).resolve()),
    }
    paths = emit(
        name, figure, plotted, parameters, output, notebook=notebook, paper=PAPERS.get(paper),
        about=about, **origin,
    )  # fmt: skip
    if claims:
        paths["claims"] = Path(output) / f"{name}_claims.csv"
        with written_whole(paths["claims"]) as unfinished:
            claims_table(claims).to_csv(unfinished, index=False)
    record_metrics(metrics_of(plotted, claims))
    return paths


def finish(figure: Figure, preset: str, title: str = "") -> None:
    """Give a figure its title, and stamp one of the smoke preset, which is no evidence.

    The figure grows by the height of the title. A figure whose parts have fixed places gets none.
    """
    if title and is_laid_out(figure):
        width, height = figure.get_size_inches()
        lines = textwrap.wrap(title, int(13 * width))  # letters of 8 points per inch
        figure.set_size_inches(width, height + 0.15 * len(lines))
        with rc_context(STYLE):
            size = STYLE["axes.titlesize"]
            figure.suptitle("\n".join(lines), fontsize=size, fontweight="bold")
    if preset == "smoke":
        size = min(14, 2.4 * min(figure.get_size_inches()[0], 2 * figure.get_size_inches()[1]))
        figure.text(0.5, 0.5, WATERMARK, rotation=20, ha="center", va="center", fontsize=size,
                    color="#00000033", zorder=10)  # fmt: skip


def command(notebook: str, settings: Preset) -> str:
    """The command that runs a notebook with these settings, from the repository's root."""
    usual = settings.preset(settings.preset_name)
    given = {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if getattr(settings, field.name) != getattr(usual, field.name)
    }
    return papermill_line(notebook, {"preset": settings.preset_name} | given)


def metrics_of(plotted: Any, claims: Iterable[Claim]) -> dict[str, float | str]:
    """What a batch tabulates of a run: means per setting and metric, and the claims' values."""
    metrics = {f"{c.sentence} ({c.measured})": c.value for c in claims}
    if isinstance(plotted, pd.DataFrame) and {"setting", "metric", "mean"} <= set(plotted):
        for row in plotted.to_dict("records"):
            where = ", ".join(str(row[k]) for k in ("motion", "setting") if row.get(k))
            metrics[f"{row['metric']}, {where}"] = row["mean"]
    return metrics
