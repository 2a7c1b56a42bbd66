"""Fusions of one clip by hand: a grid of edits, and a panel that shows them (notebook 27)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vala_research import miniature_path
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.cases import ClipCase, edit_cases
from vala_research.evaluation.clip_scores import ClipScorer
from vala_research.evaluation.figures import Picture
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import (
    CLIP,
    MOTION_MODULES,
    STABLE_DIFFUSION,
    Preset,
    save_rows,
)
from vala_research.experiments.fldm.fusion_panel import explore_fusion
from vala_research.experiments.fldm.grid import FusionGrid, Point, fusion_grid, sheet
from vala_research.files import check_output
from vala_research.methods.fusion import KINDS
from vala_research.sprites.edits import EDITS
from vala_research.sprites.scene import WORLD

FULL = {
    "schedules": KINDS, "ratios": (0, 0.25, 0.5, 0.75, 1), "taus": (0, 0.25, 0.5, 0.75),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings(Preset):
    """Parameters of notebook 27."""

    PRESETS = {
        "smoke": {"n_frames": 3, "steps": 4},
        "sprites": FULL | {"n_frames": 8, "steps": 15},
        "paper": FULL | {
            "model": STABLE_DIFFUSION, "motion": MOTION_MODULES, "clip_model": CLIP,
            "n_frames": 16, "size": 512, "steps": 50, "guidance": 7.5,
        },
    }  # fmt: skip

    CHOICES = {"kind": EDITS, "schedules": KINDS}

    grid: str = ""  # a grid made before; "": make one
    clip: str = ""  # a clip from disk; "": a sprite clip of the test split
    source_prompt: str = ""  # of the clip from disk
    prompt: str = ""  # of its edit
    model: str = "miniature"  # or a folder or a hub id
    motion: str = "miniature"  # motion modules: or a folder or a hub id
    clip_model: str = miniature_path("clip")  # CLIPModel that scores: a folder or a hub id
    kind: str = "colour"  # of the sprite clip's edit
    index: int = 0  # which sprite clip
    schedules: Sequence[str] = ("constant", "decay_image")  # kinds
    ratios: Sequence[float] = (0, 1)  # shares of the video model
    taus: Sequence[float] = (0, 0.5)  # shares of the steps
    n_frames: int = 4
    size: int = 64  # side of the square frames, in pixels
    steps: int = 6  # diffusion steps each way
    guidance: float = 2.0  # 7.5 is usual for Stable Diffusion


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Make the grid in `output`, unless settings.grid is one, and redraw every point of the panel.

    A grid of another clip of the same settings stays beside it, for the panel's menu of clips.

    Rows, one per point: schedule, a, tau, edit (its place in the grid), what was measured of the
    edit, redraw (processor seconds until it is shown) and is_shown (without an error).
    """
    if not settings.grid:
        path = check_output(Path(output) / grid_name(settings), makes_parents=True)
        made_grid(settings).save(path)
    grid = kept_grid(settings, output)
    drawn = redraws(explore_fusion(grid), grid)
    rows = [
        {"schedule": kind, "a": a, "tau": tau, "edit": i} | grid.rows[i] | drawn[kind, a, tau]
        for (kind, a, tau), i in grid.edit_of.items()
    ]
    return save_rows(rows, output)


def made_grid(settings: Settings) -> FusionGrid:
    """Edit the clip at every point of the grid."""
    if settings.clip:
        case = ClipCase("edit", 0, settings.clip, settings.source_prompt, settings.prompt)
    else:
        case = edit_cases(WORLD, "test", settings.index + 1, [settings.kind])[settings.index]
    return fusion_grid(
        quiet_pipeline(settings.model, settings.dtype), case, settings.schedules,
        settings.ratios, settings.taus,
        settings.n_frames, settings.size, ClipScorer.from_pretrained(settings.clip_model),
        settings.motion, num_inference_steps=settings.steps, guidance_scale=settings.guidance,
    )  # fmt: skip


def kept_grid(settings: Settings, output: str | Path) -> FusionGrid:
    """Load the grid that `run` made, or settings.grid."""
    return FusionGrid.load(settings.grid or Path(output) / grid_name(settings))


def kept_grids(settings: Settings, output: str | Path) -> dict[str, FusionGrid]:
    """The grids in `output` that have the points of this one, by the names of their clips."""
    own = {"this clip": kept_grid(settings, output)}
    points = set(own["this clip"].edit_of)
    for path in sorted(Path(output).glob("grid_*.safetensors")):
        other = FusionGrid.load(path)
        if path.name != grid_name(settings) and set(other.edit_of) == points:
            own[path.stem.removeprefix("grid_")] = other
    return own


def grid_name(settings: Settings) -> str:
    """The file of a clip's grid."""
    clip = Path(settings.clip).stem if settings.clip else f"{settings.kind}_{settings.index}"
    return f"grid_{clip}.safetensors"


def redraws(shown, grid: FusionGrid) -> dict[Point, dict]:
    """Move the panel of `explore_fusion` to every point: processor seconds, and whether it shows.

    One move redraws once per control that changes.
    """
    controls, plot = shown.controls, shown.pictures[-1]
    drawn = {}
    for point in grid.edit_of:
        start = time.process_time()
        for name, value in zip(("kind", "a", "tau"), point, strict=True):
            controls[name].value = value
        drawn[point] = {"redraw": time.process_time() - start, "is_shown": bool(plot.value)}
    return drawn


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """The edits, without the seconds of the panel."""
    return rows.drop(columns=["redraw", "is_shown"])


def figure(rows: pd.DataFrame, grid: FusionGrid) -> Picture:
    """The middle frame of every edit of one kind of schedule, "constant" where there is one."""
    kinds = list(dict.fromkeys(rows.schedule))
    return sheet(grid, "constant" if "constant" in kinds else kinds[0])


def claims(rows: pd.DataFrame) -> list[Claim]:
    """The panel shows every point, at once; a constant share of 0 or 1 is one edit at every tau."""
    seconds = rows.redraw.median()
    facts = [
        Claim.of_fact("the panel shows every point", "points", len(rows), rows.is_shown.all()),
        Claim.of_fact("the panel redraws in well under a second", "seconds", seconds, seconds < 1),
    ]
    alone = rows[(rows.schedule == "constant") & rows.a.isin([0, 1])].groupby("a").edit.nunique()
    for a, n_edits in alone.items():
        model = "video" if a else "image"
        sentence = f"a constant share of {a:g} is the {model} model, whatever tau is"
        facts.append(Claim.of_fact(sentence, "edits", int(n_edits), n_edits == 1))
    return facts
