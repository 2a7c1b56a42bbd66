"""A clip longer than a video model sees at once is edited in windows: quality, seams, memory.

FLDM (arXiv 2310.16400) edits 8 frames; its seed asks about 16, 32, 64 and more. A seam is a pair of
neighbours to which the windows contribute in different shares, every pair across an overlap: there,
and only there, one window's idea of the clip gives way to another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import rc_context
from torch import Tensor

from vala_research.editing.plan import Plan
from vala_research.editing.source import shares_of, windows_of
from vala_research.evaluation.benchmark import EditSetting
from vala_research.evaluation.cases import ClipCase, EditCase, Material
from vala_research.evaluation.comparison import METRICS, compare, per_clip
from vala_research.evaluation.comparison_figures import axis_title, within_clips
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.evaluation.metrics import warp_error
from vala_research.evaluation.statistics import paired_gain, summarise
from vala_research.evaluation.verdicts import Hypothesis, claims_table, judged
from vala_research.experiments.fldm.settings import FRAMEWISE, FUSED, IMAGE, VIDEO
from vala_research.methods.fusion import FusionSchedule

METRICS_OF_LENGTH = ("psnr", "success", "warp_error")


# --- seams --------------------------------------------------------------------------------------


def seams(n_frames: int, window: int | None, overlap: int) -> list[int]:
    """Pairs (t, t+1), by t, whose frames are not made by the same windows in the same shares."""
    windows = windows_of(n_frames, window, overlap)
    if not windows:
        return []
    shares = shares_of(windows)
    return (shares.diff(dim=1).abs() > 1e-6).any(0).nonzero()[:, 0].tolist()


@dataclass(frozen=True)
class SeamError:
    """A measure for `run_edits`: E_warp at the seams of these windows, and elsewhere.

    Pairs weigh the same, whatever is hidden in them; NaN where there is no seam.
    """

    window: int
    overlap: int

    def __call__(self, frames: Float[Tensor, "f c h w"], material: Material) -> dict[str, float]:
        at = set(seams(len(frames), self.window, self.overlap))
        errors = pair_errors(frames, material)
        inside = [e for t, e in enumerate(errors) if t in at]
        outside = [e for t, e in enumerate(errors) if t not in at]
        mean = {"seam_warp": inside, "other_warp": outside}
        return {k: float(np.nanmean(v)) if v else float("nan") for k, v in mean.items()}


def pair_errors(frames: Float[Tensor, "f c h w"], material: Material) -> list[float]:
    """E_warp of every pair of neighbours; NaN where nothing can be followed."""
    flow, valid = material.flow, material.flow_valid
    return [
        warp_error(frames[t : t + 2], flow[t : t + 1], valid[t : t + 1])
        if valid[t].any()
        else float("nan")
        for t in range(len(frames) - 1)
    ]


# --- edits --------------------------------------------------------------------------------------


def long_settings(
    motion: str = "miniature",
    window: int = 16,
    overlap: int = 4,
    schedule: FusionSchedule = FusionSchedule(),
    **common,
) -> dict[str, EditSetting]:
    """The image model, the video model in windows, and their fusion."""
    plan = dict(attentions=FRAMEWISE, motion=motion, window=window, overlap=overlap)
    never = Plan(schedule=FusionSchedule(tau=1.0), **plan)
    return {
        IMAGE: EditSetting("own", **common),
        VIDEO: EditSetting(fusion=never, **common),
        FUSED: EditSetting(fusion=Plan(schedule=schedule, **plan), **common),
    }


def compare_lengths(
    model: str,
    cases: Mapping[int, Sequence[EditCase | ClipCase]],
    settings: Mapping[str, EditSetting],
    folder: str | Path,
    window: int,
    overlap: int,
    **arguments,
) -> pd.DataFrame:
    """Rows of `compare` with a column frames; cases: of every length. Resumes from the folder."""
    measure = SeamError(window, overlap)
    parts = []
    for n, given in cases.items():
        output = Path(folder) / f"frames_{n}_overlap_{overlap}.csv"
        rows = compare(model, given, settings, output, n, measure=measure, **arguments)
        parts.append(rows.assign(frames=n, overlap=overlap))
    return pd.concat(parts, ignore_index=True)


def length_claims(rows: pd.DataFrame) -> pd.DataFrame:
    """Verdicts, by length: fused against the image model alone, and seams against their control.

    The excess at seams is log(E_warp there / elsewhere) of a setting, minus that of the image model
    alone on the same pairs of the same clip: it knows no windows, the clip's own motion does.
    """
    found = []
    for n, part in rows.groupby("frames"):
        if {FUSED, IMAGE} <= set(part.setting):
            claim = Hypothesis("fused beats the image model", FUSED, IMAGE, METRICS_OF_LENGTH)
            found += [{"frames": n} | row for row in claims_table(part, [claim]).to_dict("records")]
        for name in (VIDEO, FUSED):
            excess = seam_excess(part, name)
            if len(excess):
                gain = paired_gain(excess, np.zeros_like(excess))
                found.append({"frames": n} | judged(f"seams show: {name}", "log ratio", gain))
    return pd.DataFrame(found)


def seam_excess(rows: pd.DataFrame, name: str) -> np.ndarray:
    """One value a clip: how much a setting's E_warp at seams exceeds what the control's does."""
    rows = rows.dropna(subset=["seam_warp", "other_warp"])
    if rows.empty or name not in set(rows.setting) or IMAGE not in set(rows.setting):
        return np.empty(0)
    rows = rows.assign(ratio=np.log(rows.seam_warp / rows.other_warp))
    values = per_clip(rows, "ratio")
    return (values[name] - values[IMAGE]).dropna().to_numpy()


# --- picture ------------------------------------------------------------------------------------


def length_figure(rows: pd.DataFrame, memory: Iterable[Mapping]) -> Picture:
    """Quality, seams and memory against the number of frames, with 95% intervals within clips.

    rows: of `compare_lengths`; memory: rows of setting, frames and live (MiB) of a whole edit.
    """
    metrics = [m for m in METRICS_OF_LENGTH if m in rows]
    lengths = sorted(set(rows.frames))
    with rc_context(STYLE):
        fig = Picture(figsize=(7.0, 3.9))
        axes = fig.subplots(2, 3).ravel()
        for ax, metric in zip(axes, metrics, strict=False):
            found = {n: within_clips(part, [metric]).set_index("setting")[["mean", "low", "high"]]
                     for n, part in rows.groupby("frames")}  # fmt: skip
            for name in LOOKS:
                of = {n: t.loc[name] for n, t in found.items() if name in t.index}
                _line(ax, {n: METRICS[metric].factor * ends for n, ends in of.items()}, name)
            ax.set_title(axis_title(metric, rows))
            ax.set_yscale("log" if metric == "warp_error" else "linear")
        _seam_panel(axes[3], rows)
        _memory_panel(axes[4], list(memory))
        axes[5].set_axis_off()
        axes[5].legend(*axes[0].get_legend_handles_labels(), loc="center left")
        for ax in axes[:5]:
            ax.set(xscale="log", xlabel="frames", xlim=(0.85 * lengths[0], 1.18 * lengths[-1]))
            ax.set_xticks(lengths, [str(n) for n in lengths])
            ax.minorticks_off()
    return fig


LOOKS = {
    IMAGE: {"color": COLOURS[0], "marker": "s"},
    VIDEO: {"color": COLOURS[1], "marker": "D"},
    FUSED: {"color": COLOURS[2], "marker": "o"},
}
SHIFTS = {IMAGE: 0.96, VIDEO: 1.04, FUSED: 1.0}  # intervals side by side


def _line(ax, found: Mapping[int, pd.Series], name: str) -> None:
    """Means joined, their intervals upright; found: mean, low and high of each length."""
    x = [n * SHIFTS[name] for n in found]
    ax.plot(x, [s["mean"] for s in found.values()], label=name, **LOOKS[name])
    for at, s in zip(x, found.values(), strict=True):
        ax.plot([at, at], [s["low"], s["high"]], color=LOOKS[name]["color"], linewidth=0.8)


def _seam_panel(ax, rows: pd.DataFrame) -> None:
    for name in (VIDEO, FUSED):
        excess = {n: seam_excess(part, name) for n, part in rows.groupby("frames")}
        logs = {n: summarise(v) for n, v in excess.items() if len(v)}
        ends = {n: pd.Series({"mean": s.mean, "low": s.low, "high": s.high})
                for n, s in logs.items()}  # fmt: skip
        _line(ax, {n: np.exp(x) for n, x in ends.items()}, name)
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set_yscale("log")
    ax.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    ax.set_title("E_warp at seams / elsewhere,\nover that of image only")


def _memory_panel(ax, memory: Sequence[Mapping]) -> None:
    for name, look in LOOKS.items():
        line = {row["frames"]: row["live"] / row["frames"] for row in memory
                if row["setting"] == name}  # fmt: skip
        if line:
            ax.plot(list(line), list(line.values()), **look)
    ax.set_title("live memory a frame, MiB")
    ax.set_ylim(0, 1.15 * ax.get_ylim()[1])
