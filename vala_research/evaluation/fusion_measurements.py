"""What fused edits take on this machine: seconds and memory, each in a process of its own.

The counts of `fusion_costs` are the same everywhere; these are not, and are read as ratios.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from vala_research.diffusion.motion import load_motion_unet
from vala_research.evaluation.benchmark import forget_peak, peak_mebibytes, quiet_pipeline
from vala_research.evaluation.fusion_costs import PROMPTS, source_fusions
from vala_research.evaluation.fusion_study import FUSED, IMAGE, VIDEO
from vala_research.evaluation.memory import in_fresh_process
from vala_research.methods.fusion import FusionSchedule


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
