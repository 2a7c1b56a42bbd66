"""Pictures of what fusion asks and costs: one latent space, arithmetic, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.evaluation.fusion_figures import axis_title, within_clips
from vala_research.evaluation.fusion_study import FUSED, IMAGE, VIDEO
from vala_research.evaluation.latent_compatibility import (
    EDIT,
    INVERSION,
    NORMALISED,
    OTHER_CLIP,
    SAME,
    UNTRAINED,
)
from vala_research.evaluation.statistics import summarise

PHASES = {INVERSION: "inversion of each model alone", EDIT: "edit of each model alone"}
LINES = {SAME: (COLOURS[0], "-"), UNTRAINED: (COLOURS[6], "-"), OTHER_CLIP: ("#888888", ":")}


# --- one latent space ---------------------------------------------------------------------------


def compatibility_figure(
    cosines: pd.DataFrame, rows: pd.DataFrame, measure: str = "centred", metric: str = "psnr"
) -> Picture:
    """The cosine of each source to the video model over t, and what its fusion is worth.

    cosines: of `cosine_rows`, of which `measure` is drawn; rows: of `compare`, under the names of
    `compatibility_settings`. Intervals of the right panel are within clips.
    """
    with rc_context(STYLE):
        fig = Picture(figsize=(7.2, 2.7))
        left, middle, right = fig.subplots(1, 3, width_ratios=(1, 1, 1.15))
        middle.sharey(left)
        rest = iter((COLOURS[5], COLOURS[3], COLOURS[4], *COLOURS[1:3]))
        looks = {n: LINES.get(n) or (next(rest), "-") for n in dict.fromkeys(cosines.source)}
        for ax, (phase, title) in zip((left, middle), PHASES.items(), strict=True):
            part = cosines[cosines.phase == phase]
            for name, (colour, line) in looks.items():
                _band(ax, part[part.source == name], measure, colour, line, name)
            ax.set(title=title, xlabel="diffusion step t")
        left.set_ylabel("cosine to the video model")
        fig.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3,
                   title=f"image model ({measure} latents):")  # fmt: skip
        _spaces(right, rows, metric)
        handles, labels = right.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower right", ncols=1)
    return fig


def _band(ax: Axes, part: pd.DataFrame, measure: str, colour: str, line: str, name: str) -> None:
    """Mean over clips at each t, and its interval."""
    levels = {t: summarise(p.groupby("index")[measure].mean().to_numpy())
              for t, p in part.groupby("t")}  # fmt: skip
    t = list(levels)
    ax.plot(t, [s.mean for s in levels.values()], color=colour, linestyle=line, label=name)
    low, high = ([getattr(s, end) for s in levels.values()] for end in ("low", "high"))
    ax.fill_between(t, low, high, color=colour, alpha=0.2, linewidth=0)


def _spaces(ax: Axes, rows: pd.DataFrame, metric: str) -> None:
    """Fused quality of each space, as it is and normalised, and the video model alone."""
    table = within_clips(rows, [metric]).set_index("setting")
    names = [n for n in table.index if n != VIDEO and not n.endswith(NORMALISED)]
    colour = COLOURS[2]
    for suffix, face, shift in (("", colour, -0.1), (NORMALISED, "white", 0.1)):
        for x, name in enumerate(names):
            row = table.loc[name + suffix]
            ax.plot([x + shift] * 2, [row.low, row.high], color=colour, linewidth=1)
            label = f"fused{suffix}" if x == 0 else None
            ax.plot(x + shift, row["mean"], "o", color=colour, markerfacecolor=face, label=label)
    ax.axhline(table.loc[VIDEO]["mean"], color=COLOURS[1], linestyle="--", label=VIDEO)
    labels = [n.replace("rotated by ", "").replace(SAME, "0") for n in names]
    labels = [f"{label}°" if label.isdigit() else label for label in labels]
    ax.set_xticks(range(len(names)), labels)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set(title=axis_title(metric, rows), xlabel="rotation of the image model's space")


# --- costs --------------------------------------------------------------------------------------

PARTS = {IMAGE: COLOURS[0], VIDEO: COLOURS[1], FUSED: COLOURS[2]}


def fusion_cost_figure(rows: Sequence[Mapping], aims: Sequence[Mapping]) -> Picture:
    """FLOPs of a fused edit beside its sources' one upon the other, and peak memory beside theirs.

    rows: of `fusion_costs.cost_rows`; aims: of `fusion_costs.aims`, written above the bars.
    """
    table = pd.DataFrame(rows).set_index(["frames", "setting"])
    ratios = pd.DataFrame(aims).set_index(["frames", "quantity"]).ratio
    lengths = list(dict.fromkeys(row["frames"] for row in rows))
    x = np.arange(len(lengths))
    with rc_context(STYLE):
        fig = Picture(figsize=(7.0, 2.7))
        left, right = fig.subplots(1, 2)
        tflop = {name: table.xs(name, level="setting").tflop.to_numpy() for name in PARTS}
        left.bar(x - 0.2, tflop[IMAGE], 0.36, color=PARTS[IMAGE], label=IMAGE)
        left.bar(x - 0.2, tflop[VIDEO], 0.36, tflop[IMAGE], color=PARTS[VIDEO], label=VIDEO)
        left.bar(x + 0.2, tflop[FUSED], 0.36, color=PARTS[FUSED], label=FUSED)
        top = np.maximum(tflop[FUSED], tflop[IMAGE] + tflop[VIDEO])
        _ratios(left, x + 0.2, top, [ratios[n, "tflop"] for n in lengths])
        left.set(title="TFLOP of an edit, and ratio to the sum of sources", xlabel="frames")
        for i, name in enumerate(PARTS):
            part = table.xs(name, level="setting")
            at = x + 0.27 * (i - 1)
            right.bar(at, part.weights / 1024, 0.25, color=PARTS[name])
            right.bar(at, part.live / 1024, 0.25, part.weights / 1024, color=PARTS[name], alpha=0.5)
        _ratios(right, x + 0.27, part.peak.to_numpy() / 1024, [ratios[n, "peak"] for n in lengths])
        right.set_title("peak memory, GiB, and ratio to the largest source")
        right.set_xlabel("frames (full colour: weights; paler: all else)")
        for ax in (left, right):
            ax.set_xticks(x, [str(n) for n in lengths])
            ax.grid(axis="x", visible=False)
            ax.margins(y=0.12)
        fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def _ratios(ax: Axes, x: np.ndarray, y: np.ndarray, ratios: Sequence[float]) -> None:
    for at, top, ratio in zip(x, y, ratios, strict=True):
        ax.annotate(f"{ratio:.3f}", (at, top), xytext=(0, 2), textcoords="offset points",
                    ha="center", fontsize=7)  # fmt: skip
