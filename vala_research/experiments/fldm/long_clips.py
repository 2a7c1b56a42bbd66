"""Edits of clips longer than a video model sees at once: quality, seams, memory (notebook 24).

FLDM (arXiv 2310.16400) edits 8 frames and leaves 16, 32, 64 and more open. A longer clip is seen in
windows that overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.ticker import LogLocator

from vala_research.diffusion.motion import load_motion_unet
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.editing.plan import Plan
from vala_research.evaluation.comparison_figures import axis_title, end_at_100, within_clips
from vala_research.evaluation.comparison_tables import METRICS, PLACEMENT
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.statistics import paired_gain, summarise
from vala_research.evaluation.verdicts import Claim, Hypothesis, tested
from vala_research.evaluation.weightless import weightless
from vala_research.experiments.contract import (
    MOTION_MODULES,
    POINT,
    PUBLISHED,
    EditPreset,
    save_rows,
)
from vala_research.experiments.fldm.edit_costs import Measurement, cost_rows, measured_rows
from vala_research.experiments.fldm.seams import SeamError, seam_excess
from vala_research.experiments.fldm.settings import (
    FRAMEWISE,
    FUSED,
    IMAGE,
    SHARED,
    VIDEO,
    source_fusions,
)
from vala_research.methods.fusion import FusionSchedule

SHOWN = ("psnr", "success", "warp_error")


@dataclass(frozen=True, kw_only=True)
class Settings(EditPreset):
    """Parameters of notebook 24."""

    PRESETS = {
        "smoke": {"lengths": (4, 8), "window": 6, "overlap": 2, "steps": 2},
        "sprites": POINT | {"lengths": (8, 16, 24, 48), "n_clips": 6},
        "paper": {
            **PUBLISHED, "motion": MOTION_MODULES, "lengths": (8, 16, 32, 64, 128),
        },
    }  # fmt: skip

    CHOICES = EditPreset.CHOICES | {"parts": SHARED}

    motion: str = "miniature"  # motion modules: or a folder or a hub id
    clip_model: str = ""  # CLIPModel that scores; "": no CLIP scores
    lengths: Sequence[int] = (4, 20)  # frames, ascending
    n_clips: int = 1  # sprite clips of each length
    kinds: Sequence[str] = ("several",)  # kinds of edit of sprite clips
    window: int = 16  # frames that the video model sees at once
    overlap: int = 4  # frames that neighbouring windows share at least
    steps: int = 3  # diffusion steps each way


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """The image model, the video model in windows, and their fusion."""
    fused = Plan(
        attentions=FRAMEWISE, motion=settings.motion, window=settings.window,
        overlap=settings.overlap,
    )  # fmt: skip
    never = replace(fused, schedule=FusionSchedule(tau=1.0))
    return {
        IMAGE: EditSetting("own", **settings.sampling),
        VIDEO: EditSetting(fusion=never, **settings.sampling),
        FUSED: EditSetting(fusion=fused, **settings.sampling),
    }


# --- rows ---------------------------------------------------------------------------------------


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Edit every clip at every length; resumes from the folders of `output`, one per length.

    Rows: those of `compare`, and the columns frames, window, overlap, and the cost of such an edit
    (`cost_rows`; process: MiB of a process of its own, in all presets but smoke).
    """
    edits, measure = edit_settings(settings), SeamError(settings.window, settings.overlap)
    parts = []
    for n in settings.lengths:
        folder = Path(output) / f"frames_{n}_overlap_{settings.overlap}"
        rows = replace(settings, n_frames=n).compare(edits, folder, measure=measure)
        parts.append(rows.assign(frames=n, window=settings.window, overlap=settings.overlap))
    rows = pd.concat(parts, ignore_index=True)
    rows = rows.merge(costs(settings), on=["frames", "setting"], how="left")
    return save_rows(rows.to_dict("records"), output)


def costs(settings: Settings) -> pd.DataFrame:
    """One row per length and model: FLOPs and memory of an edit, counted without weights."""
    pipe = quiet_pipeline(settings.model, settings.dtype)
    fusions = source_fusions(load_motion_unet(pipe.unet, settings.motion), window=settings.window)
    empty = weightless(pipe, fusions)
    counted = pd.DataFrame(cost_rows(*empty, settings.lengths, settings.size, settings.steps))
    if settings.preset_name != "smoke":
        how = Measurement(
            settings.model, settings.motion, settings.size, 1, 1, settings.window,
            dtype=settings.dtype,
        )  # fmt: skip
        counted["process"] = [row["peak"] for row in measured_rows(how, settings.lengths)]
    return counted.drop(columns="steps")


# --- table, claims, figure ----------------------------------------------------------------------


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per length and model: means over edits, and the cost of one."""
    by = ["frames", "setting"]
    means = [m for m in (*SHOWN, *PLACEMENT, "seam_warp", "other_warp") if m in rows]
    cost = [c for c in ("tflop", "weights", "live", "peak", "process") if c in rows]
    return rows.groupby(by, sort=False)[[*means, *cost]].mean().reset_index()


def claims(rows: pd.DataFrame) -> list[Claim]:
    """By length: fused against the image model, and seams against the image model's own ratio.

    Asserted are the facts: every model edits every clip, seams are where windows are, and memory.
    """
    found = []
    for n, part in rows.groupby("frames"):
        sentence, metrics = f"{n} frames: fused beats the image model", (*SHOWN, *PLACEMENT)
        found += tested(part, [Hypothesis(sentence, FUSED, IMAGE, metrics)])
        for name in (VIDEO, FUSED):
            if len(excess := seam_excess(part, name)):
                gain = paired_gain(excess, np.zeros_like(excess))
                found.append(Claim.of_gain(f"{n} frames: seams show: {name}", "log ratio", gain))
    return [*found, *_facts(rows)]


def _facts(rows: pd.DataFrame) -> list[Claim]:
    edits = rows.pivot_table("psnr", ["frames", "kind", "index"], "setting")
    is_whole = set(LOOKS) <= set(edits) and edits.notna().all(axis=None)
    has_seams = rows.seam_warp.notna()

    # Memory grows at most linearly in the frames, and is not the sum of the two models.
    live = rows.pivot_table("live", "frames", "setting")
    per_frame = live.div(live.index, axis=0)
    growth = (per_frame.iloc[-1] / per_frame.iloc[0]).max()
    largest = (live[FUSED] / live[[IMAGE, VIDEO]].max(axis=1)).max()
    return [
        Claim.of_fact("every model edits every clip", "edits", len(rows), is_whole),
        Claim.of_fact("there are seams where there are windows, and nowhere else",
                      "edits with seams", int(has_seams.sum()),
                      (has_seams == (rows.frames > rows.window)).all()),
        Claim.of_fact("live memory per frame does not grow with the clip",
                      "longest over shortest clip", growth, growth <= 1.02),
        Claim.of_fact("a fused edit holds what the larger of its two models holds",
                      "live memory over the larger", largest, largest <= 1.1),
    ]  # fmt: skip


LOOKS = {
    IMAGE: {"color": COLOURS[0], "marker": "s"},
    VIDEO: {"color": COLOURS[1], "marker": "D"},
    FUSED: {"color": COLOURS[2], "marker": "o"},
}
SHIFTS = {IMAGE: 0.96, VIDEO: 1.04, FUSED: 1.0}  # intervals side by side


@drawn(claim="fused beats the image model, E_warp")
def figure(rows: pd.DataFrame) -> Picture:
    """Quality, seams and memory against the number of frames, with 95% intervals within clips."""
    metrics = [m for m in SHOWN if m in rows]
    lengths = sorted(set(rows.frames))
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, 3.9))
        axes = fig.subplots(2, 3).ravel()
        for ax, metric in zip(axes, metrics, strict=False):
            ends = {
                n: within_clips(part, [metric]).set_index("setting")[["mean", "low", "high"]]
                for n, part in rows.groupby("frames")
            }
            for name in LOOKS:
                line = {n: t.loc[name] for n, t in ends.items() if name in t.index}
                _line(ax, {n: METRICS[metric].factor * mean for n, mean in line.items()}, name)
            ax.set_title(axis_title(metric, rows))
            end_at_100(ax, metric)
            if metric == "warp_error":
                ax.set_yscale("log")
                ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter("")
        _seam_panel(axes[3], rows)
        _memory_panel(axes[4], rows)

        # The sixth place holds the legend; the others share their axis of lengths.
        axes[5].set_axis_off()
        axes[5].legend(*axes[0].get_legend_handles_labels(), loc="center left")
        for ax in axes[:5]:
            ax.set(xscale="log", xlabel="frames", xlim=(0.85 * lengths[0], 1.18 * lengths[-1]))
            ax.set_xticks(lengths, [str(n) for n in lengths])
            ax.minorticks_off()
    return fig


def _line(ax, ends: Mapping[int, pd.Series], name: str) -> None:
    """Means joined, their intervals upright; ends: mean, low and high of each length."""
    x = [n * SHIFTS[name] for n in ends]
    ax.plot(x, [s["mean"] for s in ends.values()], label=name, **LOOKS[name])
    for at, s in zip(x, ends.values(), strict=True):
        ax.plot([at, at], [s["low"], s["high"]], color=LOOKS[name]["color"], linewidth=0.8)


def _seam_panel(ax, rows: pd.DataFrame) -> None:
    for name in (VIDEO, FUSED):
        excess = {n: seam_excess(part, name) for n, part in rows.groupby("frames")}
        logs = {n: pd.Series(vars(summarise(v))) for n, v in excess.items() if len(v)}
        _line(ax, {n: np.exp(s) for n, s in logs.items()}, name)
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set_yscale("log")
    ax.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    ax.set_title("E_warp at seams / elsewhere,\nover that of image only")


def _memory_panel(ax, rows: pd.DataFrame) -> None:
    for name, look in LOOKS.items():
        live = rows[rows.setting == name].groupby("frames").live.first()
        ax.plot(live.index, live / live.index, **look)
    ax.set_title("live memory per frame, MiB")
    ax.set_ylim(0, 1.15 * ax.get_ylim()[1])
