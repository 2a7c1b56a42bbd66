"""Notebook 50: edits without an inversion, by differences of clean estimates, beside inversion.

FlowEdit (Kulikov et al. 2025, arXiv 2412.08629) and FlowAlign (Kim et al. 2026, arXiv 2505.23145)
were published for rectified flow. Here they edit with models that predict noise, through the change
of variables of `methods.flow_edit`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from vala_research.diffusion.difference import DifferenceEdit
from vala_research.editing.extras import own_parts
from vala_research.evaluation.cases import Material
from vala_research.evaluation.comparison_figures import gains_figure
from vala_research.evaluation.comparison_tables import comparison_table, in_units
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import Picture, drawn
from vala_research.evaluation.verdicts import (
    CONFIRMED,
    Claim,
    Hypothesis,
    completeness,
    tested,
)
from vala_research.experiments.contract import CLIP, POINT, PUBLISHED, WAN, LaterClipsPreset

INVERSION, FLOW_EDIT, FLOW_ALIGN = "inversion", "FlowEdit", "FlowAlign"
# Parts of each base beside its network; "wan" is a video transformer of its own.
BASES = {"image": ("controlnet",), "motion": ("controlnet", "motion", "adapter"), "wan": ()}
POLICIES = ("own", "anchors")  # of the image model; frames of the others meet in the network
ON_SPRITES = {k: v for k, v in POINT.items() if k != "parts"} | dict(
    n_clips=8, first_clip=112, kinds=("several", "shape")
)
SHOWN = ("psnr", "success", "path_error", "jitter", "warp_error", "background")


@dataclass(frozen=True, kw_only=True)
class Settings(LaterClipsPreset):
    """Parameters of notebook 50."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(bases=("image",), policies=("own",), n_clips=1, n_frames=2, steps=3),
        "sprites": ON_SPRITES | {"bases": ("image", "motion")},
        "sprites_wan": ON_SPRITES | {"bases": ("wan",)},
        "paper": PUBLISHED | dict(clip_model=CLIP, bases=("image", "wan"), n_processes=0,
                                  wan=WAN),
    }
    CHOICES: ClassVar[dict[str, Collection]] = LaterClipsPreset.CHOICES | {
        "bases": BASES, "policies": POLICIES,
    }  # fmt: skip

    bases: Sequence[str] = tuple(BASES)  # image model, its own default edit, video transformer
    wan: str = "miniature_flow"  # the video transformer: a folder or a hub id
    policies: Sequence[str] = POLICIES  # attention of the image model
    n_max: float = 1.0  # last share of the steps in which FlowEdit edits
    source_guidance: float = 1.0  # FlowEdit's guidance of the source prompt; 1: none
    zeta: float = 0.01  # FlowAlign's pull to the clip


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """Return "base, way" for each base; of the image model and of the video transformer also
    "base, anchors, way".
    """
    ways = {
        INVERSION: "ddim",
        FLOW_EDIT: DifferenceEdit(settings.n_max, source_guidance=settings.source_guidance),
        FLOW_ALIGN: DifferenceEdit(1.0, zeta=settings.zeta),
    }
    named = {}
    for base in settings.bases:
        parts = own_parts(settings.model, BASES[base]) if settings.model == "miniature" else {}
        native = "extended" if base == "wan" else "own"
        others = [p for p in settings.policies if p != "own"] if base != "motion" else []
        for policy in (native, *others):
            for way, inversion in ways.items():
                if policy != native and way == FLOW_ALIGN:
                    continue
                name = f"{base}, {way}" if policy == native else f"{base}, {policy}, {way}"
                named[name] = EditSetting(
                    policy, inversion, guidance_scale=settings.guidance,
                    num_inference_steps=settings.steps, **parts,
                )  # fmt: skip
    return named


def kept_background(frames: Float[Tensor, "f c y x"], material: Material) -> dict[str, float]:
    """PSNR to the clip where the true edit leaves it; none where it changes nearly everything."""
    if material.truth is None:
        return {}
    kept = (material.truth - material.frames).abs().amax(1, keepdim=True) < 1 / 255
    if kept.float().mean() < 0.2:
        return {"background": float("nan")}
    error = ((frames.cpu() - material.frames).square() * kept).sum((1, 2, 3))
    mse = error / (3 * kept.sum((1, 2, 3))).clamp_min(1)
    return {"background": float((-10 * mse.clamp_min(1e-12).log10()).mean())}


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """One row per clip, kind of edit and setting; rows of `comparison.compare`, with background."""
    edits, found = edit_settings(settings), []
    of_wan = {name: edit for name, edit in edits.items() if name.startswith("wan, ")}
    for run_by, chosen in ((settings, edits.keys() - of_wan), (on_wan(settings), of_wan)):
        if chosen:
            named = {name: edits[name] for name in edits if name in chosen}
            found.append(run_by.compare(named, output, measure=kept_background))
    return pd.concat(found, ignore_index=True)


def on_wan(settings: Settings) -> Settings:
    """The same settings with the video transformer as the model."""
    return replace(settings, model=settings.wan)


def baselines(rows: pd.DataFrame) -> dict[str, str]:
    """By setting: the inversion under the same base and policy."""
    names = list(dict.fromkeys(rows.setting))
    return {n: f"{n.rpartition(', ')[0]}, {INVERSION}" for n in names if not n.endswith(INVERSION)}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means, and gains on the first setting, paired by clip; evaluations per frame."""
    metrics = [m for m in SHOWN if m in rows]
    evaluations = rows.groupby("setting").evaluations.mean()
    compared = comparison_table(rows, rows.setting.iloc[0], metrics)
    return compared.assign(evaluations=compared.setting.map(evaluations))


@drawn(claim="FlowEdit beats inversion, PSNR")
def figure(rows: pd.DataFrame) -> Figure:
    """Gains of every setting on the first one; beside its name its evaluations over the first's."""
    compared = table(rows)
    relative = compared.set_index("setting").evaluations / compared.evaluations.iloc[0]
    shown = ("psnr", "success", "jitter", "background")
    return gains_figure(compared, relative.to_dict(), shown)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Without inversion against with it, per base: reported. Asserted: all edits, equal cost."""
    stated = [completeness(rows)]
    if stated[0].verdict != CONFIRMED:
        return stated
    for better, than in baselines(rows).items():
        sentence = f"{better} beats {than.rpartition(', ')[2]}"
        stated += tested(rows, [Hypothesis(sentence, better, than, SHOWN)])
    asked = rows.groupby("setting").evaluations.mean()
    spread = float(asked.max() / asked.min())
    sentence = "all settings ask the network equally often"
    stated.append(Claim.of_fact(sentence, "most over fewest", spread, spread < 1.01))
    return stated


def page(rows: pd.DataFrame) -> pd.DataFrame:
    """Means per setting, in the units of the metrics' names."""
    shown = [m for m in SHOWN if m in rows]
    return in_units(rows.groupby("setting", sort=False)[shown].mean())


def all_strips(settings: Settings) -> list[Picture]:
    """The first edit by every setting, beside source and true edit if known; a strip per model."""
    edits, pictures = edit_settings(settings), []
    of_wan = {name: edit for name, edit in edits.items() if name.startswith("wan, ")}
    others = {name: edit for name, edit in edits.items() if name not in of_wan}
    for run_by, chosen in ((settings, others), (on_wan(settings), of_wan)):
        if chosen:
            title = "{source_prompt}  ->  {prompt}"
            pictures.append(run_by.strip_of(chosen, title=title, line=",\n"))
    return pictures
