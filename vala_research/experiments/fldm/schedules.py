"""Choosing among fusions: what the best of many is worth on clips that it was not chosen on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from vala_research import InputError
from vala_research.editing.plan import Plan
from vala_research.evaluation.benchmark import EditSetting
from vala_research.evaluation.comparison import METRICS, per_clip
from vala_research.evaluation.comparison_figures import axis_title
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.evaluation.statistics import Gain, paired_gain
from vala_research.evaluation.verdicts import Claim, check_settings
from vala_research.experiments.fldm.settings import FRAMEWISE
from vala_research.methods.fusion import KINDS, FusionSchedule


def per_kind_claims(rows: pd.DataFrame, metrics: Iterable[str]) -> list[Claim]:
    """One claim per metric: a schedule per kind of edit beats one schedule for all kinds.

    Both are chosen on the other clips. The gain on a clip is the mean over its kinds.
    """
    claims = []
    for metric in (m for m in metrics if m in rows):
        values = METRICS[metric].sign * rows.pivot_table(metric, "index", ["kind", "setting"])
        gain = _gain_of_choosing(values)
        sentence = "a schedule for each kind of edit beats one for all"
        claims.append(Claim.of_gain(sentence, METRICS[metric].name, gain))
    return claims


def _gain_of_choosing(values: pd.DataFrame) -> Gain:
    """values: one row a clip, columns (kind, setting); clips with every kind count."""
    values = values.dropna()
    if len(values) < 2:
        raise InputError("One clip leaves none to choose a setting on: give two or more.")
    kinds = list(dict.fromkeys(values.columns.get_level_values(0)))
    each = np.stack([values[kind].to_numpy() for kind in kinds])  # kind clip setting
    others = (each.sum(1, keepdims=True) - each) / (each.shape[1] - 1)
    own = np.take_along_axis(each, others.argmax(2)[..., None], 2)[..., 0].mean(0)
    shared = np.take_along_axis(each.mean(0), others.mean(0).argmax(1)[:, None], 1)[:, 0]
    return paired_gain(own, shared)


def _map(ax: Axes, grid: np.ndarray, sign: int, is_established: bool) -> None:
    """Cells with their numbers; the best framed (all that share it, but not if all do)."""
    shown = sign * grid
    ax.imshow(shown, cmap="Blues", aspect="auto", vmin=2 * shown.min() - shown.max() - 1e-12,
              vmax=shown.max())  # fmt: skip
    best = np.isclose(shown, shown.max(), rtol=1e-9)
    ink = shown >= (shown.min() + shown.max()) / 2
    for (i, j), value in np.ndenumerate(grid):
        star = "*" if best[i, j] and is_established else ""
        if best[i, j] and not best.all():
            _frame(ax, j, i)
        ax.text(j, i, f"{value:.3g}{star}", ha="center", va="center", fontsize=6,
                color="white" if ink[i, j] else "black")  # fmt: skip
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _frame(ax: Axes, x: int, y: int, linestyle: str = "-") -> None:
    ax.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, fill=False, edgecolor=COLOURS[1],
                           linewidth=1.4, linestyle=linestyle))  # fmt: skip


def schedule_name(kind: str, tau: float) -> str:
    return f"{kind}, tau {tau:g}"


def winners_table(
    rows: pd.DataFrame, metrics: Iterable[str], baseline: str = schedule_name("decay_image", 0.5)
) -> pd.DataFrame:
    """One row a kind of edit and metric: the best setting, and its paired gain on the baseline.

    best: the first of them, where `tied` settings share the best mean. p: two-sided, times the
    number of settings that the winner was chosen from (Bonferroni); the interval is not corrected.
    """
    table = []
    for metric in (m for m in metrics if m in rows):
        for kind in dict.fromkeys(rows.kind):
            values = METRICS[metric].sign * per_clip(rows[rows.kind == kind], metric)
            check_settings(values, (baseline,))
            best = values.mean().idxmax()
            tied = int(np.isclose(values.mean(), values[best].mean(), rtol=1e-9).sum())
            gain = paired_gain(values[best].to_numpy(), values[baseline].to_numpy())
            p = min(1.0, gain.p_value * (values.shape[1] - 1))
            table.append({"kind": kind, "metric": METRICS[metric].name, "best": best, "tied": tied,
                          "value": METRICS[metric].sign * values[best].mean(), "gain": gain.mean,
                          "low": gain.low, "high": gain.high, "p": p, "n": gain.n})  # fmt: skip
    return pd.DataFrame(table)


def schedules_figure(
    rows: pd.DataFrame,
    kinds: Sequence[str],
    taus: Sequence[float],
    metrics: Sequence[str] = ("psnr", "success", "warp_error"),
    baseline: str = schedule_name("decay_image", 0.5),
) -> Picture:
    """A map a metric (row) and kind of edit (column): each schedule at each tau.

    Dark is better, on one scale a panel. Framed: the best; a star: its gain on the baseline (dotted
    frame) is established after correction for how many it was chosen from.
    """
    metrics = [m for m in metrics if m in rows]
    edits = list(dict.fromkeys(rows.kind))
    winners = winners_table(rows, metrics, baseline)
    established = iter((winners.p < 0.05).tolist())
    with rc_context(STYLE):
        fig = Picture(figsize=(0.9 + 2.05 * len(edits), 0.7 + 1.35 * len(metrics)))
        axes = fig.subplots(len(metrics), len(edits), squeeze=False, sharex=True, sharey=True)
        for line, metric in zip(axes, metrics, strict=True):
            for ax, edit in zip(line, edits, strict=True):
                means = per_clip(rows[rows.kind == edit], metric).mean()
                check_settings(
                    means.to_frame().T, [schedule_name(k, t) for k in kinds for t in taus]
                )
                grid = np.array([[means[schedule_name(k, t)] for t in taus] for k in kinds])
                _map(ax, grid * METRICS[metric].factor, METRICS[metric].sign, next(established))
                places = {schedule_name(k, t): (j, i) for i, k in enumerate(kinds)
                          for j, t in enumerate(taus)}  # fmt: skip
                _frame(ax, *places[baseline], linestyle=":")
            line[0].set_ylabel(fill(axis_title(metric, rows), 14))
            line[0].set_yticks(range(len(kinds)), [k.replace("_", " ") for k in kinds])
        for ax, edit in zip(axes[0], edits, strict=True):
            ax.set_title(edit)
        for ax in axes[-1]:
            ax.set_xticks(range(len(taus)), [f"{t:g}" for t in taus])
            ax.set_xlabel("tau")
        n = rows["index"].nunique()
        fig.suptitle(f"{n} clips; dark is better, framed the best, dotted the released;\n"
                     "* better than the released, p < .05 corrected", fontsize=7)  # fmt: skip
    return fig


def schedule_settings(
    motion: str = "miniature",
    taus: Sequence[float] = (0.0, 0.25, 0.5, 0.75),
    kinds: Sequence[str] = KINDS,
    initial: Sequence[float] = (0.7, 0.3),
    **common,
) -> dict[str, EditSetting]:
    """Every kind of schedule at every tau (a fraction of the steps), from the same weights."""
    schedules = {
        schedule_name(kind, tau): FusionSchedule(kind, initial, float(tau))
        for kind in kinds
        for tau in taus
    }
    return {
        name: EditSetting(
            fusion=Plan(attentions=FRAMEWISE, schedule=schedule, motion=motion), **common
        )
        for name, schedule in schedules.items()
    }
