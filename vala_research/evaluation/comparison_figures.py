"""A comparison at a glance: what each editor gains on a baseline, and what it costs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vala_research.evaluation.comparison_tables import METRICS, per_clip
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture
from vala_research.evaluation.statistics import FEWEST, UNKNOWN, summarise


def gains_figure(
    table: pd.DataFrame,
    costs: Mapping[str, float] | None = None,
    metrics: Iterable[str] = ("warp_error", "jitter", "psnr", "success"),
) -> Figure:
    """A dot and its 95% interval for each editor and metric: the paired gain on the baseline.

    table: of `comparison_table`; right of zero is better in every panel. Editors whose
    name holds "VALA" are drawn in colour; beside each name its cost, if given.
    """
    gains = table.dropna(subset="gain")
    names = list(dict.fromkeys(gains.setting))
    metrics = [m for m in metrics if m in set(gains.metric)]
    (baseline,) = set(table.setting) - set(names)
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, 0.55 + 0.19 * len(names) + 0.25 * (len(metrics) > 3)))
        axes = fig.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            shown = METRICS[metric]
            factor = shown.factor
            title = shown.axis + ", reduction" * (shown.sign < 0)
            rows = gains[gains.metric == metric].set_index("setting").reindex(names)
            for y, (name, row) in enumerate(rows.iterrows()):
                colour = COLOURS[1] if "VALA" in name else COLOURS[0]
                ends = factor * row.gain_low, factor * row.gain_high
                interval_mark(ax, factor * row.gain, y, colour, x_ends=ends)
            ax.axvline(0, color="black", linewidth=0.8)
            lines = textwrap.wrap(title, 76 // len(metrics), break_long_words=False)
            ax.set_title("\n".join(lines))
            ax.tick_params(axis="y", length=0)
        labels = [f"{n}  ({costs[n]:.2f}x)" if costs else n for n in names]
        axes[0].set_yticks(range(len(names)), labels)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        n = int(gains[gains.metric.isin(metrics)].n_gain.min())
        fig.supxlabel(
            f"gain on `{baseline}`, same clips (n = {n}){intervals(n)}; right is better", fontsize=8
        )
    return fig


def intervals(n_clips: int, kind: str = "95% interval") -> str:
    """What a figure says of its intervals: fewer than `FEWEST` clips have none."""
    return f", {kind}" if n_clips >= FEWEST else f", no intervals below {FEWEST} clips"


def interval_mark(
    ax: Axes,
    x: float,
    y: float,
    colour: str,
    x_ends: tuple[float, float] | None = None,
    y_ends: tuple[float, float] | None = None,
    **point,
) -> None:
    """Draw a mean as a point, and its interval as a line along x, along y, or along both.

    x_ends, y_ends: the ends of the interval; NaN draws no line. point: further arguments of the
    point, such as `marker` (default "o"), `markerfacecolor` or `label`.
    """
    if x_ends is not None:
        ax.plot(x_ends, [y, y], color=colour, linewidth=1)
    if y_ends is not None:
        ax.plot([x, x], y_ends, color=colour, linewidth=1)
    ax.plot(x, y, color=colour, zorder=3, **{"marker": "o", "linestyle": "none"} | point)


def axis_title(metric: str, rows: pd.DataFrame) -> str:
    """Name the axis of a metric. Where the true edit is unknown, PSNR is to the source."""
    if metric == "psnr" and "gain" not in rows:
        return "PSNR to the source, dB"
    return METRICS[metric].axis


SHARES = ("success", "presence")  # of frames


def end_at_100(ax: Axes, metric: str) -> None:
    """Let the axis of a share end at 100%, or a mark's height above it."""
    low, high = ax.get_ylim()
    if metric in SHARES and high > 100:
        low = min(low, 99)
        ax.set_ylim(low, 100 + 0.03 * (100 - low))


def within_clips(rows: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Make one row per setting and metric: mean over clips, with its 95% interval within clips.

    A clip's own level, which all settings share, is taken out before the interval is formed. So
    the interval shows how surely settings differ, not how much clips do (Morey 2008, Confidence
    intervals from normalized data). Edits that have no value under one of the settings are left
    out. Where none is left, the mean is over each setting's own edits, without an interval.
    """
    table = []
    for metric in (m for m in metrics if m in rows and rows[m].notna().any()):
        values = per_clip(rows, metric)
        levels, k = values.mean(axis=1), values.shape[1]

        # Morey's factor makes up for the variance that the levels took away.
        spread = values.sub(levels, axis=0) - (values.mean() - levels.mean())
        widened = values.mean() + spread * np.sqrt(k / max(1, k - 1))
        for name in values:
            if len(values):
                s = summarise(widened[name].to_numpy())
            else:
                own = per_clip(rows, metric, [name])[name]
                s = replace(UNKNOWN, mean=own.mean(), n=len(own))
            high = 1.0 if metric in SHARES and s.high > 1 else s.high
            table.append({"setting": name, "metric": metric, "mean": s.mean, "low": s.low,
                          "high": high, "n": s.n})  # fmt: skip
    return pd.DataFrame(table)
