"""What one edit costs: counted without weights, or measured in a process of its own.

Costs are counted on whole edits, from pixels to pixels, by the pipeline itself. Its networks are on
the meta device: they have shapes and no numbers. Code that asks for a value gets an answer with
which it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vala_research.diffusion.motion import load_motion_unet
from vala_research.editing.fusion import Fusion
from vala_research.editing.pipeline import VideoEditPipeline, quiet_pipeline
from vala_research.evaluation.known_calls import KnownCalls
from vala_research.evaluation.memory import (
    MEBIBYTE,
    PROMPTS,
    forget_peak,
    in_fresh_process,
    in_this_process,
    measured_edits,
    peak_mebibytes,
)
from vala_research.evaluation.weightless import counted_edit, stored_bytes
from vala_research.experiments.fldm.settings import FUSED, IMAGE, NEVER, VIDEO, source_fusions
from vala_research.methods.fusion import FusionSchedule

# --- counted ------------------------------------------------------------------------------------


def cost_rows(
    pipe: VideoEditPipeline,
    fusions: Mapping[str, Fusion],
    n_frames: Iterable[int],
    size: int,
    steps: int = 50,
    counted: tuple[int, int] = (1, 2),
) -> list[dict]:
    """Count one row per clip length and fusion: tflop of an edit of `steps` both ways, and MiB.

    All steps cost the same, so edits of `counted` steps tell the cost of any number of steps.
    Columns: setting, the fusion's name (a fusion that never fuses is its source 0); weights, of all
    networks that the edit asks; live, the peak of all other tensors after counted[1] steps; peak,
    the sum of both.
    """
    rows, known = [], KnownCalls()
    for n in n_frames:
        for name, fusion in fusions.items():
            (few, _), (more, live) = (
                counted_edit(pipe, fusion, n, size, k, known) for k in counted
            )
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


# --- measured -----------------------------------------------------------------------------------


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
    """Measure one row per clip length and name: seconds, the best of `repeats`, and peak in MiB.

    seconds: of one processor thread, or on a GPU by the clock.
    peak: memory of the process (or the GPU) beyond what it held before the networks came. Motion
        modules are loaded only where an edit asks them. It says nothing unless how.is_fresh, since
        one process keeps what earlier edits freed.
    """
    jobs = [{"how": how, "n_frames": n, "name": name} for n in n_frames for name in names]
    run = in_fresh_process if how.is_fresh else in_this_process
    rows = measured_edits(_measured, jobs, run)
    return [
        {"setting": job["name"], "frames": job["n_frames"]} | row
        for job, row in zip(jobs, rows, strict=True)
    ]


def _measured(how: Measurement, n_frames: int, name: str) -> dict[str, float]:
    """Load the networks of one edit, and measure it."""
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
