"""Fusions at a glance: alignment against consistency, curves over the ratio.

Intervals are within clips (Morey 2008, Confidence intervals from normalized data): a clip's own
level, which all settings share, is taken out before the interval is formed, so that what is seen
is how surely settings differ, not how clips do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from vala_research.evaluation.comparison import METRICS, per_clip
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.evaluation.fusion_study import (
    IMAGE,
    VIDEO,
    ratios,
)
from vala_research.evaluation.statistics import summarise

# What an axis is called, and the factor of its numbers.
AXES = {
    "psnr": ("PSNR to the true edit, dB", 1),
    "success": ("attribute success, %", 100),
    "warp_error": ("E_warp x 1000", 1000),
    "clip_t": ("CLIP-T", 1),
    "clip_f": ("CLIP-F", 1),
}
PAIRS = (("warp_error", "success"), ("clip_f", "clip_t"))  # consistency, alignment


def axis_title(metric: str, rows: pd.DataFrame) -> str:
    """Of clips from disk nobody knows the true edit: PSNR is to the source."""
    if metric == "psnr" and "gain" not in rows:
        return "PSNR to the source, dB"
    return AXES[metric][0]


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


# --- alignment against consistency --------------------------------------------------------------


def pareto_figure(rows: pd.DataFrame, pairs: Sequence[tuple[str, str]] = PAIRS) -> Picture:
    """A cross a setting: text alignment against temporal consistency, right and up being better.

    pairs: of (consistency, alignment), a panel each; those that the rows do not have are left out.
    """
    pairs = [pair for pair in pairs if set(pair) <= set(rows)]
    table = within_clips(rows, {m for pair in pairs for m in pair}).set_index(["metric", "setting"])
    names = list(dict.fromkeys(rows.setting))
    with rc_context(STYLE):
        fig = Picture(figsize=(3.5 * len(pairs), 3.1))
        for ax, (across, up) in zip(fig.subplots(1, len(pairs), squeeze=False)[0], pairs,
                                    strict=True):  # fmt: skip
            for name, look in looks(names).items():
                _cross(ax, table.loc[across].loc[name] * AXES[across][1],
                       table.loc[up].loc[name] * AXES[up][1], label=name, **look)  # fmt: skip
            front(ax, rows, across, up)
            _directions(ax, across, up, rows)
        handles, labels = ax.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=4)
        n = rows["index"].nunique()
        fig.suptitle(
            f"right and up is better; the line joins what nothing beats in both; {n} clips, "
            "95% intervals within clips", fontsize=7,
        )  # fmt: skip
    return fig


def looks(names: Iterable[str]) -> dict[str, dict]:
    """Image models blue, video orange, fusions green and on: a colour and marker a setting."""
    families = {"image": (COLOURS[0], "so"), "video": (COLOURS[1], "D^"), "fused": (None, "o^vPX*")}
    rest, found, seen = [COLOURS[2], *COLOURS[3:]], {}, {}
    for name in names:
        family = next((f for f in families if name.startswith(f)), "fused")
        colour, markers = families[family]
        i = seen[family] = seen.get(family, -1) + 1
        colour = rest[i % len(rest)] if colour is None else colour
        found[name] = {"color": colour, "marker": markers[i % len(markers)],
                       "fill": family == "fused" or i == 0}  # fmt: skip
    return found


def _cross(ax: Axes, x: pd.Series, y: pd.Series, label: str, color: str, marker: str, fill: bool):
    """A point and its intervals both ways."""
    ax.plot([x.low, x.high], [y["mean"]] * 2, color=color, linewidth=1)
    ax.plot([x["mean"]] * 2, [y.low, y.high], color=color, linewidth=1)
    face = color if fill else "white"
    ax.plot(x["mean"], y["mean"], marker, color=color, markerfacecolor=face, markersize=6,
            label=label, zorder=3, linestyle="none")  # fmt: skip


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other is at least as good as in both and better in one."""
    return [
        i
        for i, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)
    ]


def front(ax: Axes, rows: pd.DataFrame, across: str, up: str) -> None:
    """The means that are not beaten in both directions, joined by a grey line."""
    x, y = (per_clip(rows, m).mean().to_numpy() for m in (across, up))
    best = pareto_front(list(zip(METRICS[across] * x, METRICS[up] * y, strict=True)))
    best.sort(key=lambda i: x[i])
    ax.plot(AXES[across][1] * x[best], AXES[up][1] * y[best], color="#BBBBBB", zorder=0)


def _directions(ax: Axes, across: str, up: str, rows: pd.DataFrame) -> None:
    ax.set(xlabel=axis_title(across, rows), ylabel=axis_title(up, rows))
    if METRICS[across] < 0:
        ax.invert_xaxis()
        ax.set_xlabel(f"{axis_title(across, rows)} (falls to the right)")


# --- curves over the ratio ----------------------------------------------------------------------


def alpha_figure(
    rows: pd.DataFrame,
    metrics: Sequence[str] = ("psnr", "success", "clip_t", "warp_error", "clip_f"),
    path: tuple[str, str] = PAIRS[0],
) -> Picture:
    """A panel a metric over the video model's share a, the single models at its ends; last the
    way from one to the other through consistency and alignment."""
    metrics = [m for m in metrics if m in rows]
    path = path if set(path) <= set(rows) else PAIRS[1]
    table = within_clips(rows, {*metrics, *path}).set_index(["metric", "setting"])
    columns = (len(metrics) + 2) // 2
    with rc_context(STYLE):
        fig = Picture(figsize=(2.35 * columns, 4.0))
        axes = fig.subplots(2, columns).ravel()
        for ax, metric in zip(axes, metrics, strict=False):
            _curve(ax, table.loc[metric] * AXES[metric][1])
            ax.set(title=axis_title(metric, rows), xlabel="video model's share a")
        if set(path) <= set(rows):
            _path(axes[len(metrics)], table, path, rows)
        for ax in axes[len(metrics) + 1 :]:
            ax.set_axis_off()
        n = rows["index"].nunique()
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
                   title=f"{n} clips, 95% intervals within clips")  # fmt: skip
    return fig


def _curve(ax: Axes, table: pd.DataFrame) -> None:
    curve = ratios(table[["mean", "low", "high"]].T).T.sort_index()
    ax.fill_between(curve.index, curve.low, curve.high, color=COLOURS[2], alpha=0.25, linewidth=0)
    ax.plot(curve.index, curve["mean"], "o-", color=COLOURS[2], label="constant a, tau 0")
    for x, name, colour in ((0, IMAGE, COLOURS[0]), (1, VIDEO, COLOURS[1])):
        row = table.loc[name]
        ax.axhline(row["mean"], color=colour, linewidth=0.8, linestyle="--", zorder=0)
        ax.plot(x, row["mean"], "s" if x == 0 else "D", color=colour, markerfacecolor="none",
                markersize=8, label=name, linestyle="none")  # fmt: skip
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", ".5", "", "1"])


def _path(ax: Axes, table: pd.DataFrame, path: tuple[str, str], rows: pd.DataFrame) -> None:
    x, y = (AXES[m][1] * ratios(table.loc[m][["mean"]].T).T.sort_index()["mean"] for m in path)
    ax.plot(x, y, "o-", color=COLOURS[2])
    ax.margins(0.2)
    for i, (colour, marker) in ((0, (COLOURS[0], "s")), (-1, (COLOURS[1], "D"))):
        ax.plot(x.iloc[i], y.iloc[i], marker, color=colour, markerfacecolor="none", markersize=8)
        ax.annotate(f"a = {x.index[i]:g}", (x.iloc[i], y.iloc[i]), xytext=(5, -9),
                    textcoords="offset points", fontsize=7)  # fmt: skip
    _directions(ax, *path, rows)
    ax.set_title("from one model to the other")
