"""Which schedule for which edit: maps over kinds of schedule and tau."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from vala_research.evaluation.comparison import METRICS, per_clip
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.evaluation.fusion_choice import winners_table
from vala_research.evaluation.fusion_figures import AXES, axis_title
from vala_research.evaluation.fusion_study import check_settings, schedule_name


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
                _map(ax, grid * AXES[metric][1], METRICS[metric], next(established))
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
