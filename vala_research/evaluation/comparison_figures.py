"""A comparison at a glance: what each editor gains on a baseline, and what it costs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from vala_research.evaluation.comparison import METRICS, per_clip
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.evaluation.statistics import summarise


def gains_figure(
    table: pd.DataFrame,
    costs: Mapping[str, float] | None = None,
    metrics: Iterable[str] = ("warp_error", "psnr", "success"),
) -> Figure:
    """A dot and its 95% interval for each editor and metric: the paired gain on the baseline.

    table: of `comparison.comparison_table`; right of zero is better in every panel. Editors whose
    name holds "VALA" are drawn in colour; beside each name its cost, if given.
    """
    gains = table.dropna(subset="gain")
    names = list(dict.fromkeys(gains.setting))
    metrics = [m for m in metrics if m in set(gains.metric)]
    (baseline,) = set(table.setting) - set(names)
    with rc_context(STYLE):
        fig = Picture(figsize=(7.0, 0.55 + 0.19 * len(names) + 0.25 * (len(metrics) > 3)))
        axes = fig.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            shown = METRICS[metric]
            factor = shown.factor
            title = shown.axis + ", reduction" * (shown.sign < 0)
            rows = gains[gains.metric == metric].set_index("setting").loc[names]
            for y, (name, row) in enumerate(rows.iterrows()):
                colour = COLOURS[1] if "VALA" in name else COLOURS[0]
                ax.plot([factor * row.gain_low, factor * row.gain_high], [y, y], color=colour)
                ax.plot(factor * row.gain, y, "o", color=colour)
            ax.axvline(0, color="black", linewidth=0.8)
            ax.set_title("\n".join(textwrap.wrap(title, 80 // len(metrics))))
            ax.tick_params(axis="y", length=0)
        labels = [f"{n}  ({costs[n]:.2f}x)" if costs else n for n in names]
        axes[0].set_yticks(range(len(names)), labels)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        n = int(gains.n.min())
        fig.supxlabel(
            f"gain on `{baseline}`, same clips (n = {n}), 95% interval; right is better", fontsize=8
        )
    return fig


def axis_title(metric: str, rows: pd.DataFrame) -> str:
    """Of clips from disk nobody knows the true edit: PSNR is to the source."""
    if metric == "psnr" and "gain" not in rows:
        return "PSNR to the source, dB"
    return METRICS[metric].axis


def within_clips(rows: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """One row a setting and metric: mean over clips, and its 95% interval within clips."""
    table = []
    for metric in (m for m in metrics if m in rows):
        values = per_clip(rows, metric)
        levels, k = values.mean(axis=1), values.shape[1]
        spread = values.sub(levels, axis=0) - (values.mean() - levels.mean())
        widened = values.mean() + spread * np.sqrt(k / max(1, k - 1))
        for name in values:
            s = summarise(widened[name].to_numpy())
            table.append({"setting": name, "metric": metric, "mean": s.mean, "low": s.low,
                          "high": s.high, "n": s.n})  # fmt: skip
    return pd.DataFrame(table)
