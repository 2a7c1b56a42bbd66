"""A fused edit costs the sum of its sources in time and the largest in memory: counted.

Counted on whole edits, from pixels to pixels, by the pipeline itself: its networks are on the meta
device, have shapes and no numbers, and whatever asks for a value gets an answer that lets it go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import nn

from vala_research.diffusion.motion import load_motion_unet
from vala_research.editing.fusion import Fusion
from vala_research.editing.pipeline import VideoEditPipeline, quiet_pipeline
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.evaluation.flops import PROMPTS, counted_edit, stored_bytes
from vala_research.evaluation.memory import MEBIBYTE, forget_peak, in_fresh_process, peak_mebibytes
from vala_research.experiments.fldm.settings import FUSED, IMAGE, NEVER, VIDEO, source_fusions
from vala_research.methods.fusion import FusionSchedule


def cost_rows(
    pipe: VideoEditPipeline,
    fusions: Mapping[str, Fusion],
    n_frames: Iterable[int],
    size: int,
    steps: int = 50,
    counted: tuple[int, int] = (1, 2),
) -> list[dict]:
    """A row a clip length and fusion: tflop of an edit of `steps` both ways, memory in MiB.

    Every step costs as much as another: edits of `counted` steps tell what any number costs.
    weights: of all networks that the edit asks; live: the peak of all other tensors, after
    counted[1] steps; peak: both. setting: the name; a fusion that never fuses is its source 0.
    """
    rows = []
    for n in n_frames:
        for name, fusion in fusions.items():
            (few, _), (more, live) = (counted_edit(pipe, fusion, n, size, k) for k in counted)
            step = (more - few) / (counted[1] - counted[0])
            weights = stored_bytes(pipe.vae, pipe.text_encoder, *networks(pipe, fusion))
            rows.append(
                {"setting": name, "frames": n, "steps": steps,
                 "tflop": (few + (steps - counted[0]) * step) / 1e12,
                 "weights": weights / MEBIBYTE, "live": live / MEBIBYTE,
                 "peak": (weights + live) / MEBIBYTE}
            )  # fmt: skip
    return rows


def networks(pipe: VideoEditPipeline, fusion: Fusion) -> list[nn.Module]:
    """The denoisers that a fusion asks."""
    sources = fusion.sources[:1] if fusion.schedule == NEVER else fusion.sources
    return [pipe.unet if source.unet is None else source.unet for source in sources]


def aims(rows: Sequence[Mapping], flops: float = 1.05, memory: float = 1.1) -> list[dict]:
    """A row a clip length and aim: the fused edit over the sum, or the largest, of single models.

    rows: of `cost_rows` or `measured_rows`; which of tflop, seconds, peak they have is looked at.
    """
    found = []
    for n in dict.fromkeys(row["frames"] for row in rows):
        given = {row["setting"]: row for row in rows if row["frames"] == n}
        fused = given.pop(FUSED)
        for key, among, aim in (("tflop", sum, flops), ("seconds", sum, flops),
                                ("peak", max, memory)):  # fmt: skip
            if key in fused:
                ratio = fused[key] / among(row[key] for row in given.values())
                found.append({"frames": n, "quantity": key, "ratio": ratio, "aim": aim,
                              "is_reached": ratio <= aim})  # fmt: skip
    return found


@dataclass(frozen=True)
class Measurement:
    """One edit to be measured: a model and its motion modules, a clip's size, how it is edited."""

    model: str = "miniature"
    motion: str = "miniature"
    size: int = 64
    steps: int = 2
    repeats: int = 3
    window: int | None = None
    image_window: int | None = None
    schedule: FusionSchedule = FusionSchedule()
    dtype: torch.dtype | None = None
    is_fresh: bool = True


def measured_rows(
    how: Measurement, n_frames: Iterable[int], names: Sequence[str] = (IMAGE, VIDEO, FUSED)
) -> list[dict]:
    """A row a clip length and name: seconds of an edit, the best of `repeats`, and peak in MiB.

    seconds: of one processor thread, or on a GPU by the clock. peak: how much the process (or the
    GPU) holds beyond what it held before the networks came; motion modules are loaded where they
    are asked. how.is_fresh: a new process each; otherwise in this one, quicker, and the peak says
    nothing, since freed memory is not given back.
    """
    run = in_fresh_process if how.is_fresh else lambda function, *arguments: function(*arguments)
    return [
        {"setting": name, "frames": n} | run(_measured, how, n, name)
        for n in n_frames
        for name in names
    ]


def _measured(how: Measurement, n_frames: int, name: str) -> dict[str, float]:
    """One row of `measured_rows`."""
    if how.is_fresh:
        torch.set_num_threads(1)
    forget_peak()
    before, has_gpu = peak_mebibytes(), torch.cuda.is_available()
    pipe = quiet_pipeline(how.model, how.dtype)
    video = None if name == IMAGE else load_motion_unet(pipe.unet, how.motion)
    fusion = source_fusions(video, how.schedule, how.window, how.image_window)[name]
    clip = torch.rand(n_frames, 3, how.size, how.size, generator=torch.Generator().manual_seed(0))
    clock, seconds = time.perf_counter if has_gpu else time.process_time, []
    forget_peak()
    for _ in range(how.repeats):
        start = clock()
        pipe(
            clip, *PROMPTS, num_inference_steps=how.steps, attention="own", fusion=fusion,
            output_type="pt",
        ).frames.cpu()  # fmt: skip
        seconds.append(clock() - start)
    return {"seconds": min(seconds), "peak": peak_mebibytes() - before}


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
