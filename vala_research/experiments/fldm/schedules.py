"""Fusion schedules for each kind of edit (notebook 22).

FLDM (arXiv 2310.16400) releases one schedule and leaves open which schedule suits objects, style or
background. The best of many schedules looks good by chance; so its p-value is corrected, and a
choice per kind of edit is judged on clips that it was not made on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from vala_research import InputError
from vala_research.editing.plan import Plan
from vala_research.evaluation.comparison_figures import axis_title
from vala_research.evaluation.comparison_tables import METRICS, PLACEMENT, per_clip
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import COLOURS, COLUMN, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.statistics import Gain, paired_gain
from vala_research.evaluation.verdicts import Claim, check_settings, completeness
from vala_research.experiments.contract import POINT
from vala_research.experiments.fldm.settings import (
    FRAMEWISE,
    FUSED_MODELS,
    FusionPreset,
)
from vala_research.methods.fusion import KINDS, FusionSchedule


def schedule_name(kind: str, tau: float) -> str:
    """Name the setting of a schedule."""
    return f"{kind}, tau {tau:g}"


RELEASED = schedule_name("decay_image", 0.5)


@dataclass(frozen=True, kw_only=True)
class Settings(FusionPreset):
    """Parameters of notebook 22."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(
            schedules=("constant", "decay_image"), taus=(0, 0.5), kinds=("shape", "colour"),
            n_frames=2, steps=2,
        ),
        "sprites": dict(POINT, n_clips=6, kinds="shape,colour,background", taus=(0, 0.5)),
        "paper": FUSED_MODELS,
    }  # fmt: skip
    CHOICES: ClassVar[dict[str, Collection]] = FusionPreset.CHOICES | {"schedules": KINDS}

    schedules: Sequence[str] = KINDS  # kinds of schedule
    taus: Sequence[float] = (0, 0.25, 0.5, 0.75)  # when fusion begins, as shares of the steps


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """Return every kind of schedule at every tau, all from the weights 0.7 video, 0.3 image."""
    schedules = {
        schedule_name(kind, tau): FusionSchedule(kind, (0.7, 0.3), tau)
        for kind in settings.schedules
        for tau in settings.taus
    }
    released = Plan(attentions=FRAMEWISE, motion=settings.motion)
    return {
        name: EditSetting(fusion=replace(released, schedule=schedule), **settings.sampling)
        for name, schedule in schedules.items()
    }


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Make one row per edit and setting, kept in `output`/rows.csv."""
    return settings.compare(edit_settings(settings), output)


def shown(rows: pd.DataFrame) -> tuple[str, ...]:
    """Return the metrics to show. Where the true edit is unknown, the first is CLIP-T."""
    is_known = "gain" in rows
    return ("psnr", "success", "warp_error") if is_known else ("clip_t", "warp_error", "psnr")


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Make one row per kind of edit and schedule: the means as drawn, and of the placement."""
    metrics = [*shown(rows), *(m for m in PLACEMENT if m in rows)]
    means = rows.groupby(["kind", "setting"], sort=False)[metrics].mean()
    return means.reset_index()


def winners(
    rows: pd.DataFrame, metrics: Sequence[str] | None = None, baseline: str = RELEASED
) -> pd.DataFrame:
    """Make one row per kind of edit and metric: the best schedule, and its gain on the baseline.

    * best: the first of the `tied` schedules that share the best mean.
    * value: its mean. gain, low, high: paired with the baseline; the interval is not corrected.
    * p: two-sided, times the number of schedules that the winner was chosen from (Bonferroni).
    """
    lines = []
    for metric in (m for m in metrics or shown(rows) if m in rows):
        for kind in dict.fromkeys(rows.kind):
            values = METRICS[metric].sign * per_clip(rows[rows.kind == kind], metric)
            check_settings(values, (baseline,))
            best = values.mean().idxmax()
            tied = int(np.isclose(values.mean(), values[best].mean(), rtol=1e-9).sum())
            gain = paired_gain(values[best].to_numpy(), values[baseline].to_numpy())
            p = min(1.0, gain.p_value * (values.shape[1] - 1))
            lines.append({"kind": kind, "metric": METRICS[metric].name, "best": best, "tied": tied,
                          "value": METRICS[metric].sign * values[best].mean(), "gain": gain.mean,
                          "low": gain.low, "high": gain.high, "p": p, "n": gain.n})  # fmt: skip
    return pd.DataFrame(lines)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Judge the winner of each kind of edit, and whether a schedule per kind pays at all.

    Asserted: the edits are complete, and the schedules make a difference.
    """
    metrics = [metric for metric in shown(rows) if metric in rows]
    best = [
        Claim.of_gain(
            f"{line.kind}: {line.best} beats the released schedule", line.metric,
            Gain(line.gain, line.low, line.high, line.n, line.p),
        )
        for line in winners(rows, metrics[:1]).itertuples()
    ]  # fmt: skip
    per_kind = [_choice_per_kind(rows, metric) for metric in metrics]
    alike = int((rows.groupby(["kind", "index"]).psnr.nunique() == 1).sum())
    sentence = "the schedule changes every edit"
    matters = Claim.of_fact(sentence, "edits alike under all schedules", alike, alike == 0)
    return [*best, *per_kind, completeness(rows), matters]


def _choice_per_kind(rows: pd.DataFrame, metric: str) -> Claim:
    """Claim that a schedule per kind of edit beats one schedule for all kinds.

    Both are chosen on the other clips. The gain on a clip is the mean over its kinds.
    """
    values = METRICS[metric].sign * rows.pivot_table(metric, "index", ["kind", "setting"])
    sentence = "a schedule for each kind of edit beats one for all"
    return Claim.of_gain(sentence, METRICS[metric].name, _gain_of_choosing(values))


def _gain_of_choosing(values: pd.DataFrame) -> Gain:
    """Measure what choosing per kind of edit gains on choosing once.

    values: one row per clip, columns (kind, setting). Only clips with every kind of edit count.
    """
    values = values.dropna()
    if len(values) < 2:
        raise InputError("One clip leaves none to choose a setting on: give two or more.")
    kinds = list(dict.fromkeys(values.columns.get_level_values(0)))
    each = np.stack([values[kind].to_numpy() for kind in kinds])  # kind clip setting

    # The choice for a clip looks at the mean over all other clips.
    others = (each.sum(1, keepdims=True) - each) / (each.shape[1] - 1)
    own = np.take_along_axis(each, others.argmax(2)[..., None], 2)[..., 0].mean(0)
    shared = np.take_along_axis(each.mean(0), others.mean(0).argmax(1)[:, None], 1)[:, 0]
    return paired_gain(own, shared)


# --- maps ---------------------------------------------------------------------------------------


@drawn(claim="a schedule for each kind of edit beats one for all, PSNR")
def figure(
    rows: pd.DataFrame, metrics: Sequence[str] | None = None, baseline: str = RELEASED
) -> Picture:
    """Draw a map per metric (row) and kind of edit (column): every schedule at every tau.

    Dark is better, on one scale per panel. The best is framed, the baseline has a dotted frame. A
    star marks a best whose gain on the baseline has p < .05 after correction.
    """
    metrics = [metric for metric in metrics or shown(rows) if metric in rows]
    edits = list(dict.fromkeys(rows.kind))
    established = iter((winners(rows, metrics, baseline).p < 0.05).tolist())
    kinds, taus, grid = _grid(rows)
    row = next(i for i, names in enumerate(grid) if baseline in names)
    with rc_context(STYLE):
        fig = Picture(figsize=(COLUMN if len(edits) == 1 else PAGE, 0.7 + 1.2 * len(metrics)))
        axes = fig.subplots(len(metrics), len(edits), squeeze=False, sharex=True, sharey=True)
        for line, metric in zip(axes, metrics, strict=True):
            for ax, edit in zip(line, edits, strict=True):
                means = per_clip(rows[rows.kind == edit], metric).mean()
                check_settings(means.index, sum(grid, []))
                values = np.array([means[names] for names in grid]) * METRICS[metric].factor
                _map(ax, values, METRICS[metric].sign, next(established))
                _frame(ax, grid[row].index(baseline), row, linestyle=":")
            line[0].set_ylabel(fill(axis_title(metric, rows), 14))
            line[0].set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])

        for ax, edit in zip(axes[0], edits, strict=True):
            ax.set_title(edit)
        for ax in axes[-1]:
            ax.set_xticks(range(len(taus)), taus)
            ax.set_xlabel("tau")
        n = rows["index"].nunique()
        fig.supxlabel(f"{n} clips; dark is better, framed the best, dotted the released;\n"
                      "* better than the released, p < .05 corrected", fontsize=7)  # fmt: skip
    return fig


def _grid(rows: pd.DataFrame) -> tuple[list[str], list[str], list[list[str]]]:
    """Return kinds of schedule, taus, and the names of the settings: one line per kind."""
    pairs = [name.split(", tau ") for name in dict.fromkeys(rows.setting)]
    kinds, taus = (list(dict.fromkeys(column)) for column in zip(*pairs, strict=True))
    return kinds, taus, [[f"{kind}, tau {tau}" for tau in taus] for kind in kinds]


def _map(ax: Axes, grid: np.ndarray, sign: int, is_established: bool) -> None:
    """Draw cells with their numbers, and frame the best: every tied cell, unless all are tied."""
    goodness = sign * grid
    worst, top = goodness.min(), goodness.max()
    ax.imshow(goodness, cmap="Blues", aspect="auto", vmin=2 * worst - top - 1e-12, vmax=top)
    best = np.isclose(goodness, top, rtol=1e-9)
    ink = goodness >= (worst + top) / 2
    for (i, j), value in np.ndenumerate(grid):
        star = "*" if best[i, j] and is_established else ""
        if best[i, j] and not best.all():
            _frame(ax, j, i)
        ax.text(j, i, f"{value:.3g}{star}", ha="center", va="center", fontsize=7,
                color="white" if ink[i, j] else "black")  # fmt: skip
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _frame(ax: Axes, x: int, y: int, linestyle: str = "-") -> None:
    """Draw a frame around a cell."""
    ax.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, fill=False, edgecolor=COLOURS[1],
                           linewidth=1.4, linestyle=linestyle))  # fmt: skip
