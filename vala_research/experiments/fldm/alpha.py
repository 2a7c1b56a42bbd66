"""The video model's share from 0 to 1 (notebook 21)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from vala_research.editing.plan import Plan
from vala_research.evaluation.benchmark import EditSetting
from vala_research.evaluation.comparison import METRICS, per_clip
from vala_research.evaluation.comparison_figures import axis_title, within_clips
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.evaluation.statistics import paired_gain
from vala_research.evaluation.verdicts import Claim, held_out_gain
from vala_research.experiments.fldm.fusion import CONSISTENCY, PAIRS, mark_directions
from vala_research.experiments.fldm.settings import FRAMEWISE, IMAGE, VIDEO, constant, single_models


def held_out_claims(
    rows: pd.DataFrame, metrics: Iterable[str], candidates: Sequence[str], baselines: Sequence[str]
) -> list[Claim]:
    """One claim per metric: some mixture beats the better single model (`held_out_gain`)."""
    claims = []
    for metric in (m for m in metrics if m in rows):
        values = METRICS[metric].sign * per_clip(rows, metric)
        gain = held_out_gain(values, candidates, baselines)
        sentence = "a mixture beats the better single model"
        claims.append(Claim.of_gain(sentence, METRICS[metric].name, gain))
    return claims


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
            _curve(ax, table.loc[metric] * METRICS[metric].factor)
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
    x, y = (METRICS[m].factor * ratios(table.loc[m][["mean"]].T).T.sort_index()["mean"] for m in path)
    ax.plot(x, y, "o-", color=COLOURS[2])
    ax.margins(0.2)
    for i, (colour, marker) in ((0, (COLOURS[0], "s")), (-1, (COLOURS[1], "D"))):
        ax.plot(x.iloc[i], y.iloc[i], marker, color=colour, markerfacecolor="none", markersize=8)
        ax.annotate(f"a = {x.index[i]:g}", (x.iloc[i], y.iloc[i]), xytext=(5, -9),
                    textcoords="offset points", fontsize=7)  # fmt: skip
    mark_directions(ax, *path, rows)
    ax.set_title("from one model to the other")


def alpha_settings(
    motion: str = "miniature", values: Sequence[float] | None = None, **common
) -> dict[str, EditSetting]:
    """The sources, and the video model's constant share a from 0 to 1 at every step."""
    values = [i / 10 for i in range(11)] if values is None else values
    fused = {
        f"a = {a:g}": EditSetting(fusion=Plan(attentions=FRAMEWISE, schedule=constant(a),
                                              motion=motion), **common)
        for a in values
    }  # fmt: skip
    return single_models(motion, **common) | fused


def trend_claims(rows: pd.DataFrame, metrics: Iterable[str]) -> list[Claim]:
    """One claim per metric: more of the video model is steadier and follows the text worse.

    The measured gain is the slope of a line through each clip's values at "a = ...", in the
    claimed direction. Its interval is over clips.
    """
    claims = []
    for metric in (m for m in metrics if m in rows):
        values = METRICS[metric].sign * ratios(per_clip(rows, metric))
        slopes = np.polyfit(values.columns.to_numpy(float), values.to_numpy().T, 1)[0]
        sign, verb = (1, "gains") if metric in CONSISTENCY else (-1, "loses")
        gain = paired_gain(sign * slopes, np.zeros_like(slopes))
        name = METRICS[metric].name
        claims.append(Claim.of_gain(f"{name} {verb} as the video model's share grows", name, gain))
    return claims


def ratios(values: pd.DataFrame) -> pd.DataFrame:
    """The columns "a = ..." of a table by clip, named by their numbers."""
    names = [name for name in values if str(name).startswith("a = ")]
    return values[names].rename(columns=lambda name: float(name.removeprefix("a = ")))
