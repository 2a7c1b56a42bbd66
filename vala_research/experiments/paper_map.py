"""Which notebook makes which figure, table or question of the four papers, and what has been run.

`python -m vala_research.experiments.pages` writes the map into notebooks/README.md. What was run is
read from the notebooks and from notebooks/results/runs.json, so the map cannot claim more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vala_research.evaluation.provenance import notebook_sources
from vala_research.experiments.batches.inspection import notebook_folder
from vala_research.experiments.kept_runs import kept_runs

GE, THEORY, FLDM, VALA = "GE-Adapter", "GE-Adapter theory", "FLDM", "VALA"
FLOW = "FlowEdit, FlowAlign"


@dataclass(frozen=True)
class Item:
    """A figure, a table or a question of a paper; notebooks: numbers; or why there is none."""

    paper: str
    name: str
    shows: str
    notebooks: tuple[str, ...] = ()
    reason: str = ""


ITEMS = (
    Item(VALA, "axis 1", "editing quality against the field's attention policies", ("12",)),
    Item(VALA, "axis 2", "efficiency: FLOPs, memory and time against full attention", ("13",)),
    Item(VALA, "axis 3", "inversion fidelity under anchors", ("11",)),
    Item(VALA, "anchors", "what anchors and key frames a clip gets", ("10",)),
    Item(VALA, "key frames", "key frames in another editor", ("14",)),
    Item(FLDM, "main claim", "fused edits against each model alone", ("20",)),
    Item(FLDM, "open: ratio", "the share a from 0 to 1", ("21",)),
    Item(FLDM, "open: schedule", "schedules of the share, by kind of edit", ("22",)),
    Item(FLDM, "open: latent spaces", "whether the models share one, and normalising", ("23",)),
    Item(FLDM, "open: length", "long clips in windows", ("24",)),
    Item(FLDM, "open: sources", "more than two models", ("25",)),
    Item(FLDM, "open: cost", "FLOPs and memory of fusing", ("26",)),
    Item(FLDM, "open: by hand", "schedule, share and tau in a panel", ("27",)),
    Item(GE, "Fig. 1", "frames with and without the adapter on four editors", ("36",)),
    Item(GE, "Figs 2, 3", "diagrams of the method", reason="diagrams, not results"),
    Item(GE, "Fig. 4", "where the blocks sit in the UNet", reason="a diagram, not a result"),
    Item(GE, "Fig. 5", "steps and window of the bilateral inversion", ("30",)),
    Item(GE, "Fig. 6", "user study", ("39",)),
    Item(GE, "Fig. 7", "results by window of the filter", ("30",)),
    Item(GE, "Fig. 8", "attention maps with and without the adapter", ("34",)),
    Item(GE, "Fig. 9", "quality across editors", ("36",)),
    Item(GE, "Fig. 10", "attention maps over timesteps", ("34",)),
    Item(GE, "Fig. 11", "ranges of training and activation", ("33",)),
    Item(GE, "Fig. 12", "token strategies, pictures", ("32",)),
    Item(GE, "Fig. 13", "number of shared tokens", ("32",)),
    Item(GE, "Fig. 14", "two ranges, pictures", ("33",)),
    Item(GE, "Fig. 15", "token strategies, metrics", ("32",)),
    Item(GE, "Table 1", "four editors with and without the adapter", ("36", "35")),
    Item(GE, "Table 2", "four editors with and without the bilateral inversion", ("37",)),
    Item(GE, "Table 3", "ControlNet conditions with and without the adapter", ("38",)),
    Item(THEORY, "Figs 1, 2", "diagrams of the method", reason="diagrams, not results"),
    Item(THEORY, "Fig. 3", "cross-attention features before and after fine-tuning", ("34",)),
    Item(THEORY, "Fig. 4", "similarity over timesteps and epochs", ("31",)),
    Item(THEORY, "C.1 to C.3", "smoothness of the temporal loss", ("40",)),
    Item(THEORY, "C.4, C.5", "gradient descent on the loss", ("41",)),
    Item(THEORY, "C.6 to C.9", "bilateral filter and DDIM error", ("42", "43")),
    Item(THEORY, "C.10 to C.15", "attention alignment", ("44",)),
    Item(THEORY, "all theorems", "verdicts and corrections", ("45",)),
    Item(FLOW, "edits", "edits without an inversion beside inversion", ("50",)),
    Item(VALA, "transformers", "anchors in a video transformer, and what they save", ("51",)),
    Item(FLDM, "other paths", "an image model of noise and a video model of flow", ("52",)),
    Item(THEORY, "flows", "the bounds on paths, for rectified flows", ("53",)),
)


def written_map(folder: Path | None = None) -> str:
    """The map as a table in Markdown; folder: of the notebooks."""
    folder = Path(folder or notebook_folder())
    lines = ["| paper | item | shows | notebook | `sprites` | `paper` |", "|---" * 6 + "|"]
    for item in ITEMS:
        if not item.notebooks:
            lines.append(f"| {item.paper} | {item.name} | {item.shows} | none: {item.reason} | | |")
        for number in item.notebooks:
            path, ran = status(folder, number)
            lines.append(
                f"| {item.paper} | {item.name} | {item.shows} | [`{path.stem}`]({path.name}) | "
                f"{ran['sprites']} | {ran['paper']} |"
            )
    return "\n".join(lines)


def status(folder: Path, number: str) -> tuple[Path, dict[str, str]]:
    """A notebook's path, and by preset whether it was run: by its own header, and its rows."""
    (path,) = folder.glob(f"{number}_*.ipynb")
    text = "\n".join(notebook_sources(path.read_text("utf-8")))
    told = dict(re.findall(r"^\| `(\w+)` \|(.*)$", text, re.M))
    kept = {
        run.preset
        for name, run in kept_runs(folder / "results").items()
        if run.notebook == path.stem and (folder / "results" / f"{name}.csv").is_file()
    }
    ran = {}
    for preset in ("sprites", "paper"):
        if preset not in told:
            ran[preset] = "no such preset"
        elif "not run" in told[preset]:
            ran[preset] = "not run"
        else:
            ran[preset] = "measured, rows kept" if preset in kept else "measured"
    if "sprites" not in told and "smoke" in kept:
        ran["sprites"] += "; rows of `smoke` kept"
    return path, ran
