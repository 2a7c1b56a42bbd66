"""Cost of a fused edit: the sum of its sources in time, the largest in memory (notebook 26)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.memory import MEBIBYTE
from vala_research.evaluation.verdicts import Claim
from vala_research.evaluation.weightless import stable_diffusion, stored_bytes
from vala_research.experiments.contract import MOTION_MODULES, STABLE_DIFFUSION, Preset, save_rows
from vala_research.experiments.fldm.edit_costs import Measurement, cost_rows, measured_rows
from vala_research.experiments.fldm.settings import FUSED, IMAGE, VIDEO, source_fusions

COUNTED_SIZE = 512  # pixels
AT_ONCE = "fused, image at once"


@dataclass(frozen=True, kw_only=True)
class Settings(Preset):
    """Parameters of notebook 26."""

    PRESETS = {
        "smoke": {},
        "sprites": {
            "counted_frames": (8, 16, 32, 64), "measured_frames": (8, 32), "repeats": 5,
            "is_fresh": True,
        },
        "paper": {
            "counted_frames": (8, 16, 32, 64), "measured_frames": (16, 32), "repeats": 3,
            "is_fresh": True, "model": STABLE_DIFFUSION, "motion": MOTION_MODULES,
        },
    }  # fmt: skip

    counted_frames: Sequence[int] = (4,)  # lengths of the figure
    measured_frames: Sequence[int] = (4,)
    counted_steps: int = 50  # diffusion steps each way, of the counted edits
    model: str = "miniature"  # whose edits are measured: or a folder or a hub id
    motion: str = "miniature"  # its motion modules: or a folder or a hub id
    size: int = 0  # side of its square frames, in pixels; 0: 64 for the miniature, else 512
    steps: int = 2  # of the measured edits
    repeats: int = 2  # the best of so many counts
    window: int = 16  # frames that a model sees at once
    is_fresh: bool = False  # a process of its own for every measured edit


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Count edits of Stable Diffusion 1.5 and AnimateDiff; measure edits of `settings.model`.

    Rows by the column part:
        counted: `cost_rows` per length and model; of the longest clip also the fused edit whose
            image model sees all frames at once;
        weights: MiB of the image model, the video model, and both (`FUSED`), shared ones once;
        measured: `measured_rows`.
    """
    pipe, video = stable_diffusion()
    window, lengths = settings.window, settings.counted_frames
    edits = source_fusions(video, window=window, image_window=window)
    at_once = {AT_ONCE: source_fusions(video, window=window)[FUSED]}
    counted = cost_rows(pipe, edits, lengths, COUNTED_SIZE, settings.counted_steps)
    if lengths[-1] > window:
        counted += cost_rows(pipe, at_once, lengths[-1:], COUNTED_SIZE, settings.counted_steps)
    else:  # one window is all frames at once
        counted.append(counted[-1] | {"setting": AT_ONCE})

    denoisers = {IMAGE: [pipe.unet], VIDEO: [video], FUSED: [pipe.unet, video]}
    weights = [
        {"setting": name, "weights": stored_bytes(*nets) / MEBIBYTE}
        for name, nets in denoisers.items()
    ]
    size = settings.size or (64 if settings.model == "miniature" else 512)
    how = Measurement(
        settings.model, settings.motion, size, settings.steps, settings.repeats, window,
        window, dtype=settings.dtype, is_fresh=settings.is_fresh,
    )  # fmt: skip
    measured = measured_rows(how, settings.measured_frames)
    if not settings.is_fresh:  # one process keeps what an earlier edit freed: its peak says nothing
        measured = [row | {"peak": float("nan")} for row in measured]
    parts = {"counted": counted, "weights": weights, "measured": measured}
    return save_rows([{"part": name} | row for name, of in parts.items() for row in of], output)


# --- table, claims, figure ----------------------------------------------------------------------

AIMS = {  # of each quantity: the sources' cost that it is compared with, at most so many times
    "tflop": ("the summed FLOPs", sum, 1.05),
    "seconds": ("the summed seconds", sum, 1.05),
    "peak": ("the largest peak memory", max, 1.1),
}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """The counted edits."""
    columns = ["setting", "frames", "steps", "tflop", "weights", "live", "peak"]
    return rows.loc[rows.part == "counted", columns].astype({"frames": int, "steps": int})


def ratios(rows: pd.DataFrame) -> dict[tuple[int, str], float]:
    """By length and quantity of `AIMS`: the fused edit over the sum, or the largest, of sources."""
    found = {}
    for n, part in rows.groupby("frames", sort=False):
        values = part.set_index("setting")
        for key, (_, among, _) in AIMS.items():
            if key in values and not np.isnan(fused := values[key][FUSED]):
                found[int(n), key] = fused / among(values[key][name] for name in (IMAGE, VIDEO))
    return found


def claims(rows: pd.DataFrame) -> list[Claim]:
    """The aims of counted edits, asserted, and of measured edits, reported: machines differ."""
    found = []
    for part in ("counted", "measured"):
        for (n, key), ratio in ratios(rows[rows.part == part]).items():
            cost, _, aim = AIMS[key]
            sentence = (f"{n} frames, {part}: a fused edit takes at most {aim:g} times {cost} "
                        "of its sources' edits")  # fmt: skip
            aimed = Claim.of_fact(sentence, "ratio", ratio, ratio <= aim)
            found.append(replace(aimed, is_asserted=part == "counted"))
    tflop = table(rows).pivot(index="frames", columns="setting", values="tflop")
    least = (tflop[FUSED] / tflop[[IMAGE, VIDEO]].max(axis=1)).min()
    weights = rows[rows.part == "weights"].set_index("setting").weights
    return [
        *found,
        Claim.of_fact("a fused edit asks both models", "FLOPs over the larger", least, least > 1),
        Claim.of_fact("the video model shares all weights of the image model", "MiB of both",
                      weights[FUSED], weights[FUSED] == weights[VIDEO]),
    ]  # fmt: skip


PARTS = {IMAGE: COLOURS[0], VIDEO: COLOURS[1], FUSED: COLOURS[2]}


@drawn
def figure(rows: pd.DataFrame) -> Picture:
    """FLOPs of a fused edit beside its sources' FLOPs, stacked, and peak memory beside theirs.

    The ratios of `AIMS` stand above the bars.
    """
    counted = table(rows)
    lengths = list(dict.fromkeys(counted.frames))
    by = {name: counted[counted.setting == name] for name in PARTS}
    x = np.arange(len(lengths))
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, 2.7))
        left, right = fig.subplots(1, 2)
        tops = {"tflop": _flops_panel(left, x, by), "peak": _memory_panel(right, x, by)}
        ratio = ratios(counted)
        for ax, (key, top), shift in zip((left, right), tops.items(), (0.2, 0.27), strict=True):
            for at, y, n in zip(x + shift, top, lengths, strict=True):
                ax.annotate(f"{ratio[n, key]:.3f}", (at, y), xytext=(0, 2),
                            textcoords="offset points", ha="center", fontsize=7)  # fmt: skip
            ax.set_xticks(x, [str(n) for n in lengths])
            ax.grid(axis="x", visible=False)
            ax.margins(y=0.12)
        fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def _flops_panel(ax: Axes, x: np.ndarray, by: dict[str, pd.DataFrame]) -> np.ndarray:
    """Bars of FLOPs; returns the height of the higher one at each length."""
    tflop = {name: part.tflop.to_numpy() for name, part in by.items()}
    ax.bar(x - 0.2, tflop[IMAGE], 0.36, color=PARTS[IMAGE], label=IMAGE)
    ax.bar(x - 0.2, tflop[VIDEO], 0.36, tflop[IMAGE], color=PARTS[VIDEO], label=VIDEO)
    ax.bar(x + 0.2, tflop[FUSED], 0.36, color=PARTS[FUSED], label=FUSED)
    ax.set(title="TFLOP of an edit, and ratio to the sum of sources", xlabel="frames")
    return np.maximum(tflop[FUSED], tflop[IMAGE] + tflop[VIDEO])


def _memory_panel(ax: Axes, x: np.ndarray, by: dict[str, pd.DataFrame]) -> np.ndarray:
    """Bars of weights and all else; returns the height of the fused edit's bars."""
    for i, (name, part) in enumerate(by.items()):
        at, weights, live = x + 0.27 * (i - 1), part.weights / 1024, part.live / 1024
        ax.bar(at, weights, 0.25, color=PARTS[name])
        ax.bar(at, live, 0.25, weights, color=PARTS[name], alpha=0.5)
    ax.set_title("peak memory, GiB, and ratio to the largest source")
    ax.set_xlabel("frames (full colour: weights; paler: all else)")
    return by[FUSED].peak.to_numpy() / 1024
