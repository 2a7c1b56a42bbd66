"""The video model's share from 0 to 1 (notebook 21).

FLDM (arXiv 2310.16400) leaves this check open: a larger share a should be steadier and follow the
text worse. Here a is constant over all steps, so a = 0 must be the image model and a = 1 the video
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from vala_research.editing.plan import Plan
from vala_research.evaluation.comparison_figures import (
    axis_title,
    end_at_100,
    intervals,
    within_clips,
)
from vala_research.evaluation.comparison_tables import METRICS, PLACEMENT, per_clip
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.statistics import paired_gain
from vala_research.evaluation.verdicts import Claim, held_out_gain
from vala_research.experiments.contract import POINT
from vala_research.experiments.fldm.fusion import CONSISTENCY, PAIRS, mark_directions
from vala_research.experiments.fldm.settings import (
    FRAMEWISE,
    FUSED_MODELS,
    IMAGE,
    VIDEO,
    FusionPreset,
    constant,
    single_models,
)

SHOWN = ("psnr", "success", "clip_t", "warp_error", "clip_f", "jitter")
ENDS = {IMAGE: "a = 0", VIDEO: "a = 1"}


@dataclass(frozen=True, kw_only=True)
class Settings(FusionPreset):
    """Parameters of notebook 21."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(ratios=(0, 0.5, 1), n_frames=3, steps=2),
        "sprites": dict(
            POINT, n_clips=8, kinds="several", ratios=(0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)
        ),
        "paper": FUSED_MODELS,
    }
    # Shares a of the video model.
    ratios: Sequence[float] = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """Return the sources, and each constant share a of the video model."""
    plans = {
        f"a = {a:g}": Plan(attentions=FRAMEWISE, schedule=constant(a), motion=settings.motion)
        for a in settings.ratios
    }
    fused = {name: EditSetting(fusion=plan, **settings.sampling) for name, plan in plans.items()}
    return single_models(settings.motion, **settings.sampling) | fused


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Make one row per edit and setting, kept in `output`/rows.csv."""
    return settings.compare(edit_settings(settings), output)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Make one row per setting and metric: mean over clips and 95% interval within clips."""
    return within_clips(rows, dict.fromkeys((*SHOWN, *PLACEMENT)))


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Judge the trend over a, and whether a mixture beats both ends.

    Asserted: both ends are the single models, and no mixture is the video model.
    """
    values = {metric: per_clip(rows, metric) for metric in SHOWN if metric in rows}
    metrics = [m for m, by_clip in values.items() if m != "jitter" or len(by_clip) > 1]
    values = {metric: values[metric] for metric in metrics}
    trends = [_trend(metric, values[metric]) for metric in metrics]
    mixtures = [_best_mixture(metric, values[metric]) for metric in metrics]
    ends = [_end(name, values) for name in ENDS]

    # Each mixture must change some clip.
    psnr = values["psnr"]
    changes = psnr[_inner(psnr)].sub(psnr[VIDEO], axis=0).abs().max()
    equal = int((changes == 0).sum())
    mixed = Claim.of_fact(
        "every mixture differs from the video model", "equal mixtures", equal, equal == 0
    )
    return [*trends, *mixtures, *ends, mixed]


def _trend(metric: str, values: pd.DataFrame) -> Claim:
    """Claim that more of the video model is steadier, or follows the text worse.

    The gain is the slope of a line through each clip's values over a, in the claimed direction.
    Its interval is over clips.
    """
    curves = METRICS[metric].sign * by_ratio(values)
    slopes = np.polyfit(curves.columns.to_numpy(float), curves.to_numpy().T, 1)[0]
    sign, verb = (1, "gains") if metric in CONSISTENCY else (-1, "loses")
    gain = paired_gain(sign * slopes, np.zeros_like(slopes))
    name = METRICS[metric].name
    return Claim.of_gain(f"{name} {verb} as the video model's share grows", name, gain)


def _best_mixture(metric: str, values: pd.DataFrame) -> Claim:
    """Claim that some mixture beats the better model; both are chosen on the other clips."""
    gain = held_out_gain(METRICS[metric].sign * values, _inner(values), tuple(ENDS))
    return Claim.of_gain("a mixture beats the better single model", METRICS[metric].name, gain)


def _end(name: str, values: dict[str, pd.DataFrame]) -> Claim:
    """Claim that the end of the curve is the single model, in every metric.

    Measured: the largest difference of a clip, relative to the metric's largest value.
    """
    end = ENDS[name]
    offs = (abs(v[name] - v[end]).max() / (abs(v[name]).max() or 1) for v in values.values())
    off = float(max(offs))
    return Claim.of_fact(f"{end} is the {name} edit", "relative difference", off, off < 1e-4)


def _inner(values: pd.DataFrame) -> list[str]:
    """Return names of the mixtures, which use both models."""
    return [name for name in values if str(name).startswith("a = ") and name not in ENDS.values()]


def by_ratio(values: pd.DataFrame) -> pd.DataFrame:
    """Return the columns "a = ..." of a table by clip, named by their numbers."""
    names = [name for name in values if str(name).startswith("a = ")]
    return values[names].rename(columns=lambda name: float(name.removeprefix("a = ")))


# --- curves over the ratio ----------------------------------------------------------------------


@drawn(claim="jitter gains as")
def figure(rows: pd.DataFrame) -> Picture:
    """Draw each metric over the video model's share a, between the levels of the single models.

    The last panel shows the way from one model to the other through consistency and alignment.
    """
    metrics = [metric for metric in SHOWN if metric in rows and rows[metric].notna().any()]
    path = next((pair for pair in PAIRS if set(pair) <= set(rows)), ())
    means = within_clips(rows, {*metrics, *path}).set_index(["metric", "setting"])
    columns = (len(metrics) + 2) // 2
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, 3.7))
        axes = fig.subplots(2, columns).ravel()
        for ax, metric in zip(axes, metrics, strict=False):
            _curve(ax, means.loc[metric] * METRICS[metric].factor)
            ax.set(title=axis_title(metric, rows), xlabel="video model's share a")
            end_at_100(ax, metric)
        if path:
            _path(axes[len(metrics)], means, path, rows)
        for ax in axes[len(metrics) + 1 :]:
            ax.set_axis_off()

        n = rows["index"].nunique()
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
                   title=f"{n} clips{intervals(n, '95% intervals within clips')}")  # fmt: skip
    return fig


def _curve(ax: Axes, means: pd.DataFrame) -> None:
    """Draw one metric over a with its band, and the single models at the ends."""
    curve = by_ratio(means[["mean", "low", "high"]].T).T.sort_index()
    ax.fill_between(curve.index, curve.low, curve.high, color=COLOURS[2], alpha=0.25, linewidth=0)
    ax.plot(curve.index, curve["mean"], "o-", color=COLOURS[2], label="constant a, tau 0")
    for x, name, colour in ((0, IMAGE, COLOURS[0]), (1, VIDEO, COLOURS[1])):
        level = means.loc[name]["mean"]
        ax.axhline(level, color=colour, linewidth=0.8, linestyle="--", zorder=0)
        ax.plot(x, level, "s" if x == 0 else "D", color=colour, markerfacecolor="none",
                markersize=8, label=name, linestyle="none")  # fmt: skip
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", ".5", "", "1"])


def _path(ax: Axes, means: pd.DataFrame, path: tuple[str, str], rows: pd.DataFrame) -> None:
    """Draw the means of two metrics against each other, joined in the order of a."""
    x, y = (
        METRICS[metric].factor * by_ratio(means.loc[metric][["mean"]].T).T.sort_index()["mean"]
        for metric in path
    )
    ax.plot(x, y, "o-", color=COLOURS[2])
    ax.margins(0.2)
    for i, (colour, marker) in ((0, (COLOURS[0], "s")), (-1, (COLOURS[1], "D"))):
        ax.plot(x.iloc[i], y.iloc[i], marker, color=colour, markerfacecolor="none", markersize=8)
        ax.annotate(f"a = {x.index[i]:g}", (x.iloc[i], y.iloc[i]), xytext=(5, -9),
                    textcoords="offset points", fontsize=7)  # fmt: skip
    mark_directions(ax, *path, rows)
    ax.set_title("from one model to the other")
