"""Fusions at a glance: alignment against consistency, curves over the ratio.

Intervals are within clips (Morey 2008, Confidence intervals from normalized data): a clip's own
level, which all settings share, is taken out before the interval is formed, so that what is seen
is how surely settings differ, not how clips do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from vala_research.editing.plan import Plan
from vala_research.evaluation.benchmark import EditSetting
from vala_research.evaluation.comparison import METRICS, per_clip
from vala_research.evaluation.comparison_figures import axis_title, within_clips
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.evaluation.verdicts import Hypothesis
from vala_research.experiments.fldm.settings import (
    FRAMEWISE,
    FUSED,
    IMAGE,
    VIDEO,
    constant,
    single_models,
)

PAIRS = (("warp_error", "success"), ("clip_f", "clip_t"))  # consistency, alignment


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
                _cross(ax, table.loc[across].loc[name] * METRICS[across].factor,
                       table.loc[up].loc[name] * METRICS[up].factor, label=name, **look)  # fmt: skip
            front(ax, rows, across, up)
            mark_directions(ax, across, up, rows)
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
    best = pareto_front(list(zip(METRICS[across].sign * x, METRICS[up].sign * y, strict=True)))
    best.sort(key=lambda i: x[i])
    ax.plot(METRICS[across].factor * x[best], METRICS[up].factor * y[best], color="#BBBBBB", zorder=0)


def mark_directions(ax: Axes, across: str, up: str, rows: pd.DataFrame) -> None:
    ax.set(xlabel=axis_title(across, rows), ylabel=axis_title(up, rows))
    if METRICS[across].sign < 0:
        ax.invert_xaxis()
        ax.set_xlabel(f"{axis_title(across, rows)} (falls to the right)")


ALIGNMENT = ("success", "clip_t")  # with the text: what is read in the frames, CLIP-T
CONSISTENCY = ("warp_error", "clip_f")  # over time


def fusion_settings(motion: str = "miniature", **common) -> dict[str, EditSetting]:
    """The sources and their fusions: released numbers, equal shares, anchors, image from noise."""
    released = Plan(attentions=FRAMEWISE, motion=motion)
    plans = {
        FUSED: released,
        "fused, half and half": replace(released, schedule=constant(0.5)),
        "fused, image from noise": replace(released, image_start="noise"),
        "fused, anchors": replace(released, attentions=("own", "anchors")),
    }
    anchors = {"image only, anchors": EditSetting("anchors", **common)}
    fused = {name: EditSetting(fusion=plan, **common) for name, plan in plans.items()}
    return single_models(motion, **common) | anchors | fused


COMPLEMENTARY = (
    Hypothesis("the image model follows the text better than the video model", IMAGE, VIDEO, ALIGNMENT),
    Hypothesis("the video model is steadier than the image model", VIDEO, IMAGE, CONSISTENCY),
    Hypothesis("fused follows the text better than the video model", FUSED, VIDEO, ALIGNMENT),
    Hypothesis("fused is steadier than the image model", FUSED, IMAGE, CONSISTENCY),
    Hypothesis("fused follows the text better than the image model", FUSED, IMAGE, ALIGNMENT),
    Hypothesis("fused is steadier than the video model", FUSED, VIDEO, CONSISTENCY),
    Hypothesis("fused is a better edit than the image model", FUSED, IMAGE, ("psnr",)),
    Hypothesis("fused is a better edit than the video model", FUSED, VIDEO, ("psnr",)),
)
