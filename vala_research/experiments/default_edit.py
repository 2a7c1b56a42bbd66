"""What the miniature's default edit reaches on new clips, kind by kind (notebook 01)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vala_research.diffusion.options import LoadOptions
from vala_research.editing.extras import find_checkpoint, own_parts
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.benchmark import edited_frames
from vala_research.evaluation.comparison_tables import METRICS, PLACEMENT, gain_of, in_units
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.sheet import strip
from vala_research.evaluation.statistics import UNKNOWN, summarise
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import CLIP, PUBLISHED, LaterClipsPreset
from vala_research.sprites.edits import EDITS

DEFAULT, BARE = "default", "image model alone"
# The default before the miniature had motion modules, a ControlNet and an adapter.
FORMER = EditSetting("anchors", num_inference_steps=50, guidance_scale=2.0)
SHOWN = (*PLACEMENT, "success", "psnr", "warp_error_truth")
REDRAWN = ("shape", "several")  # kinds that draw a new object in the place of the old one


@dataclass(frozen=True, kw_only=True)
class Settings(LaterClipsPreset):
    """Parameters of notebook 01."""

    PRESETS = {
        "smoke": {"n_clips": 1, "kinds": ("several",), "n_frames": 2},
        "sprites": {"n_clips": 20, "first_clip": 200, "kinds": tuple(EDITS), "n_frames": 8,
                    "n_processes": 0},
        "paper": PUBLISHED | {"steps": 0, "guidance": 0.0, "clip_model": CLIP},
    }  # fmt: skip

    parts: Sequence[str] = ()  # of what the model brings; (): all
    steps: int = 0  # diffusion steps each way; 0: the model's own
    guidance: float = 0.0  # 0: the model's own
    n_shown: int = 5  # clips on the contact sheet; the kinds take turns


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """The model's own edit, and `FORMER`: the edit by its image model alone."""
    _, own, _ = find_checkpoint(settings.model, LoadOptions())
    steps = settings.steps or own.num_inference_steps
    default = EditSetting(
        own.attention, own.inversion, own.injection, settings.guidance or own.guidance_scale, steps,
        **own_parts(settings.model, settings.parts or None),
    )  # fmt: skip
    former = replace(FORMER, num_inference_steps=settings.steps or FORMER.num_inference_steps)
    return {DEFAULT: default, BARE: former}


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """One row per clip, kind of edit and setting; rows of `comparison.compare`."""
    return settings.compare(edit_settings(settings), output)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95% interval over clips, per setting, kind and metric; worst: of a single clip."""
    lines = []
    for (setting, kind), part in rows.groupby(["setting", "kind"], sort=False):
        for metric in (m for m in SHOWN if m in part):
            values = part[metric].dropna()
            s = summarise(values.to_numpy()) if len(values) else UNKNOWN
            worst = values.min() if METRICS[metric].sign > 0 else values.max()
            lines.append({"setting": setting, "kind": kind, "metric": metric, "mean": s.mean,
                          "low": s.low, "high": s.high, "n": s.n, "worst": worst})  # fmt: skip
    return pd.DataFrame(lines)


def page(rows: pd.DataFrame) -> pd.DataFrame:
    """The means of the table, a line per setting and kind, in the units of the metrics' names."""
    means = table(rows).pivot_table("mean", ["setting", "kind"], "metric", sort=False)
    return in_units(means)


def figure(settings: Settings, n_columns: int = 8) -> Figure:
    """A contact sheet of the default edit: source, edit, and true edit where it is known.

    The kinds take turns, each with the next clip; none is chosen by how it looks.
    """
    of_kinds: dict[str, list] = {}
    for case in settings.cases():
        of_kinds.setdefault(case.kind, []).append(case)
    kinds = list(of_kinds.values())
    shown = [kinds[i % len(kinds)] for i in range(settings.n_shown)]
    turns = [of_kind[i % len(of_kind)] for i, of_kind in enumerate(shown)]
    default = {DEFAULT: edit_settings(settings)[DEFAULT]}
    pipe, rows = quiet_pipeline(settings.model, settings.dtype), {}
    for case in turns:
        material = case.material(settings.n_frames, settings.size)
        edited = edited_frames(pipe, case, default, settings.n_frames, settings.size)[DEFAULT]
        name = f"{case.kind} {case.index}"
        rows |= {f"{name}\nsource": material.frames, f"{name}\nedit": edited.float()}
        if material.truth is not None:
            rows[f"{name}\ntrue edit"] = material.truth
    return strip(rows, n_columns, cell=96)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """What a stranger expects of an edit, kind by kind: there, right, in place, steady, true.

    That it is in place and steady is reported, not asserted: there the clips differ most. No claim
    is made where the true edit is not known.
    """
    if "success" not in rows:
        return []  # no true edit is known
    own = rows[rows.setting == DEFAULT]
    of_kinds = own.groupby("kind", sort=False)
    n = own["index"].nunique()
    least = {m: of_kinds[m].mean().min() for m in ("presence", "success", "psnr")}
    most = {m: of_kinds[m].mean().max() for m in ("path_error", "jitter")}
    facts = [
        ("The object is there in 99% of the frames of each kind", "presence", least["presence"],
         least["presence"] >= 0.99),
        ("All attributes are right in 95% of the frames", "success", own.success.mean(),
         own.success.mean() >= 0.95),
    ]  # fmt: skip
    goals = [
        ("The object is within 1.5 pixels of its path in each kind", "path error, pixels",
         most["path_error"], most["path_error"] <= 1.5),
        ("The object does not tremble by more than a pixel in any kind", "jitter, pixels",
         most["jitter"], most["jitter"] <= 1),
    ]  # fmt: skip
    redrawn = own[own.kind.isin(REDRAWN)].groupby("kind").psnr.mean()
    if len(redrawn):
        facts.append(("Edits of the shape reach 20 dB against the true edit",
                      "PSNR, dB", redrawn.min(), redrawn.min() >= 20))  # fmt: skip
    claims = [Claim.of_fact(*fact, n_clips=n) for fact in facts]
    claims += [replace(Claim.of_fact(*goal, n_clips=n), is_asserted=False) for goal in goals]

    # What every kind gains or loses by what the others need is reported, not asserted.
    for kind, of_kind in rows.groupby("kind", sort=False):
        gain = gain_of(of_kind, "psnr", DEFAULT, BARE, sign=1)
        sentence = f"{kind}: nearer to the true edit than by the image model alone"
        claims.append(Claim.of_gain(sentence, "PSNR, gain in dB", gain))
    return claims
