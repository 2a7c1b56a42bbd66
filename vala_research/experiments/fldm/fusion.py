"""Fused edits against each model alone (notebook 20).

FLDM (Lu et al. 2023, arXiv 2310.16400) claims that a fusion follows the text better than the video
model and is steadier than the image model. Every claim is a paired difference on the same clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from vala_research import chosen_from
from vala_research.editing.plan import Plan
from vala_research.evaluation.comparison_figures import (
    axis_title,
    interval_mark,
    intervals,
    within_clips,
)
from vala_research.evaluation.comparison_tables import METRICS, PLACEMENT, per_clip
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.verdicts import Claim, Hypothesis, completeness, tested
from vala_research.experiments.contract import POINT
from vala_research.experiments.fldm.settings import (
    FRAMEWISE,
    FUSED,
    FUSED_MODELS,
    IMAGE,
    VIDEO,
    FusionPreset,
    constant,
    single_models,
)

ALIGNMENT = ("success", "clip_t")  # with the text: what is read in the frames, CLIP-T
CONSISTENCY = ("warp_error", "clip_f", "jitter")  # over time
SHOWN = ("psnr", "success", "warp_error", "clip_t", "clip_f", *PLACEMENT)
PAIRS = (("warp_error", "success"), ("clip_f", "clip_t"))  # consistency, alignment
PANELS = (("jitter", "psnr"), *PAIRS)  # consistency, and what it may cost

COMPLEMENTARY = tuple(
    Hypothesis(sentence, better, than, metrics)
    for sentence, better, than, metrics in (
        ("the image model follows the text better than the video model", IMAGE, VIDEO, ALIGNMENT),
        ("the video model is steadier than the image model", VIDEO, IMAGE, CONSISTENCY),
        ("fused follows the text better than the video model", FUSED, VIDEO, ALIGNMENT),
        ("fused is steadier than the image model", FUSED, IMAGE, CONSISTENCY),
        ("fused follows the text better than the image model", FUSED, IMAGE, ALIGNMENT),
        ("fused is steadier than the video model", FUSED, VIDEO, CONSISTENCY),
        ("fused is a better edit than the image model", FUSED, IMAGE, ("psnr",)),
        ("fused is a better edit than the video model", FUSED, VIDEO, ("psnr",)),
    )
)


@dataclass(frozen=True, kw_only=True)
class Settings(FusionPreset):
    """Parameters of notebook 20."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(shown=(IMAGE, VIDEO, FUSED), n_frames=3, steps=4),
        "sprites": dict(POINT, n_clips=8, kinds="shape,colour,several"),
        "paper": FUSED_MODELS,
    }
    shown: Sequence[str] = ()  # names of `edit_settings`; (): all


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """Return the sources and their fusions: released, equal shares, image from noise, anchors."""
    released = Plan(attentions=FRAMEWISE, motion=settings.motion)
    plans = {
        FUSED: released,
        "fused, half and half": replace(released, schedule=constant(0.5)),
        "fused, image from noise": replace(released, image_start="noise"),
        "fused, anchors": replace(released, attentions=("own", "anchors")),
    }

    sampling = settings.sampling
    known = single_models(settings.motion, **sampling)
    known["image only, anchors"] = EditSetting("anchors", **sampling)
    known |= {name: EditSetting(fusion=plan, **sampling) for name, plan in plans.items()}

    names = settings.shown or list(known)
    for name in names:
        chosen_from("setting", name, known)
    return {name: known[name] for name in names}


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Make one row per edit and setting, kept in `output`/rows.csv."""
    return settings.compare(edit_settings(settings), output)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Make one row per setting and metric: mean over clips and 95% interval within clips."""
    return within_clips(rows, SHOWN)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Judge the paper's hypotheses. Assert that the edits are complete and really mixed."""
    hypotheses = tested(rows, COMPLEMENTARY)
    psnr = rows.pivot_table("psnr", ["kind", "index"], "setting")
    copies = sum(int(psnr[FUSED].eq(psnr[source]).sum()) for source in (IMAGE, VIDEO))
    sentence = "every fused edit differs from both sources"
    mixed = Claim.of_fact(sentence, "equal edits", copies, copies == 0)
    return [*hypotheses, completeness(rows), mixed]


# --- alignment against consistency --------------------------------------------------------------


@drawn(claim="fused is steadier than the image model, jitter")
def figure(
    rows: pd.DataFrame, pairs: Sequence[tuple[str, str]] = PANELS, n_panels: int = 2
) -> Picture:
    """Draw quality or text alignment against temporal consistency, one cross per setting.

    pairs: (consistency, other) of each panel. The first n_panels that the rows have are drawn.
    Right and up is better.
    """
    known = {name for name in rows if rows[name].notna().any()}
    pairs = [pair for pair in pairs if set(pair) <= known][:n_panels]
    means = within_clips(rows, {m for pair in pairs for m in pair}).set_index(["metric", "setting"])
    looks = _looks(dict.fromkeys(rows.setting))
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE * len(pairs) / 2, 3.1))
        axes = fig.subplots(1, len(pairs), squeeze=False)[0]
        for ax, (across, up) in zip(axes, pairs, strict=True):
            for name, look in looks.items():
                x = means.loc[(across, name)] * METRICS[across].factor
                y = means.loc[(up, name)] * METRICS[up].factor
                interval_mark(
                    ax, x["mean"], y["mean"], x_ends=(x.low, x.high),
                    y_ends=(y.low, y.high), label=name, markersize=6, **look,
                )  # fmt: skip
            _front(ax, rows, across, up)
            mark_directions(ax, across, up, rows)

        n = rows["index"].nunique()
        note = f"right and up is better; the line joins what nothing beats in both; {n} clips"
        fig.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
            title=note + intervals(n, "95% intervals within clips"), title_fontsize=7,
        )  # fmt: skip
    return fig


def _looks(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Choose a look per setting: image models blue, video models orange, fusions green and on."""
    families = {"image": (COLOURS[0], "so"), "video": (COLOURS[1], "D^"), "fused": (None, "o^vPX*")}
    rest, looks, seen = COLOURS[2:], {}, {}
    for name in names:
        family = next((f for f in families if name.startswith(f)), "fused")
        colour, markers = families[family]
        i = seen[family] = seen.get(family, -1) + 1
        colour = colour or rest[i % len(rest)]

        # The second model of a colour is hollow.
        face = colour if family == "fused" or i == 0 else "white"
        looks[name] = {"colour": colour, "marker": markers[i % len(markers)],
                       "markerfacecolor": face}  # fmt: skip
    return looks


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return indices of the points that no other point beats.

    A point beats another if it is at least as good in both coordinates and better in one.
    """
    return [
        i
        for i, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)
    ]


def _front(ax: Axes, rows: pd.DataFrame, across: str, up: str) -> None:
    """Join the means that are not beaten in both directions by a grey line."""
    x, y = (per_clip(rows, m).mean().to_numpy() for m in (across, up))
    best = pareto_front(list(zip(METRICS[across].sign * x, METRICS[up].sign * y, strict=True)))
    best.sort(key=lambda i: x[i])
    x, y = METRICS[across].factor * x[best], METRICS[up].factor * y[best]
    ax.plot(x, y, color="#BBBBBB", zorder=0)


def mark_directions(ax: Axes, across: str, up: str, rows: pd.DataFrame) -> None:
    """Name both axes, and turn x so that right is better."""
    ax.set(xlabel=axis_title(across, rows), ylabel=axis_title(up, rows))
    if METRICS[across].sign < 0:
        ax.invert_xaxis()
        ax.set_xlabel(f"{axis_title(across, rows)} (falls to the right)")
