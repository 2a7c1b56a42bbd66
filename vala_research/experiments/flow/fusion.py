"""Notebook 52: an image model of noise and a video model of flow denoise one clip together.

FLDM (arXiv 2310.16400) fuses an image model and a video model of one prediction type. Here the
video model is a rectified flow in the same latent space, so each source is asked on its own path,
by the change of variables of `diffusion.level`. The question stays FLDM's: is the fusion better
than either model alone?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure

from vala_research.editing.plan import Plan
from vala_research.evaluation.comparison_figures import gains_figure
from vala_research.evaluation.comparison_tables import comparison_table, in_units
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import Picture, drawn
from vala_research.evaluation.verdicts import CONFIRMED, Claim, Hypothesis, completeness, tested
from vala_research.experiments.contract import CLIP, POINT, PUBLISHED, LaterClipsPreset
from vala_research.experiments.flow.editing import kept_background
from vala_research.methods.fusion import FusionSchedule

IMAGE, MOTION, FLOW = "image", "motion", "flow"  # each model alone
WITH_MOTION = "image + motion"
ON_DIFFUSION, ON_FLOW = "image + flow, path of diffusion", "flow + image, path of flow"
SHOWN = ("psnr", "success", "path_error", "jitter", "warp_error", "background")


@dataclass(frozen=True, kw_only=True)
class Settings(LaterClipsPreset):
    """Parameters of notebook 52."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(shown=(IMAGE, FLOW, ON_DIFFUSION, ON_FLOW), n_clips=1, n_frames=2, steps=3),
        "sprites": dict(POINT, n_clips=8, first_clip=112, kinds=("several", "shape")),
        "paper": PUBLISHED | dict(clip_model=CLIP),  # and a flow of your own
    }

    flow: str = "miniature_flow"  # the video transformer: a folder or a hub id
    share: float = 0.5  # of source 0 in a fusion
    inversion: str = "exact"  # plain inversions of the two paths err differently
    shown: Sequence[str] = ()  # names of `edit_settings`; (): all


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """Each model alone, FLDM's fusion with the motion modules, and both fusions across paths."""
    weights = (settings.share, 1 - settings.share)
    both = FusionSchedule("constant", weights, 0.0)
    alone = FusionSchedule("constant", (1.0, 0.0), 1.0)
    plans = {
        MOTION: Plan(("video", "image"), ("own", "own"), alone),
        FLOW: Plan(("flow", "image"), (None, "own"), alone),
        WITH_MOTION: Plan(("video", "image"), ("own", "own"), both),
        ON_DIFFUSION: Plan(("image", "flow"), ("own", None), both),
        ON_FLOW: Plan(("flow", "image"), (None, "own"), both),
    }
    given = settings.sampling | {"inversion": settings.inversion}
    known = {IMAGE: EditSetting("own", **given)}
    for name, plan in plans.items():
        plan = Plan(**vars(plan) | {"flow": settings.flow})
        known[name] = EditSetting(fusion=plan, **given)
    return {name: known[name] for name in settings.shown or known}


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """One row per clip, kind of edit and setting; rows of `comparison.compare`, with background."""
    return settings.compare(edit_settings(settings), output, measure=kept_background)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means, and gains on the image model, paired by clip."""
    return comparison_table(rows, rows.setting.iloc[0], [m for m in SHOWN if m in rows])


@drawn(claim="beats")
def figure(rows: pd.DataFrame) -> Figure:
    """Gains of every setting on the image model alone."""
    return gains_figure(table(rows), None, ("psnr", "success", "jitter", "warp_error"))


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Asserted: all edits. Reported: each fusion against each of its models, FLDM's among them."""
    stated = [completeness(rows)]
    if stated[0].verdict != CONFIRMED:
        return stated
    names = set(rows.setting)
    parts = {WITH_MOTION: (IMAGE, MOTION), ON_DIFFUSION: (IMAGE, FLOW), ON_FLOW: (IMAGE, FLOW)}
    pairs = [(fused, one) for fused, ones in parts.items() for one in ones]
    pairs += [(ON_DIFFUSION, WITH_MOTION), (ON_FLOW, WITH_MOTION), (ON_FLOW, ON_DIFFUSION)]
    return stated + tested(rows, [
        Hypothesis(f"{better} beats {than}", better, than, SHOWN)
        for better, than in pairs if {better, than} <= names
    ])  # fmt: skip


def page(rows: pd.DataFrame) -> pd.DataFrame:
    """Means per setting, in the units of the metrics' names."""
    return in_units(rows.groupby("setting", sort=False)[[m for m in SHOWN if m in rows]].mean())


def strips(settings: Settings, n_columns: int = 6) -> Picture:
    """The first edit by every setting, beside source and true edit if known."""
    title = "{source_prompt}  ->  {prompt}"
    return settings.strip_of(edit_settings(settings), n_columns=n_columns, title=title, line=",\n")
