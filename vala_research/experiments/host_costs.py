"""Counts what an edit by each host costs at Stable Diffusion 1.5's size, without weights.

`python -m vala_research.experiments.host_costs` writes notebooks/results/host_costs.csv: minutes on
one core.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import pandas as pd

from vala_research.editing.hosts import HOSTS
from vala_research.editing.pipeline import VideoEditPipeline
from vala_research.evaluation.weightless import counted_edit, stable_diffusion, stored_bytes
from vala_research.experiments.batches.inspection import notebook_folder
from vala_research.files import written_whole

LENGTHS, SIZE, STEPS, GUIDANCE = (16, 32), 512, 2, 7.5
OWN = "own"  # frame by frame, which the costs are relative to


def cost_rows(
    pipe: VideoEditPipeline, lengths: Iterable[int], size: int, names: Iterable[str] = tuple(HOSTS)
) -> pd.DataFrame:
    """Count one row per clip length and host, after one of an edit frame by frame.

    Edits take STEPS steps each way and GUIDANCE. Hosts that invert do so by DDIM: null text comes
    on top. No ControlNet is counted. Columns: setting; frames; tflop; flops, those over frame by
    frame; bytes, the peak of weights and live tensors.
    """
    weights = stored_bytes(pipe.vae, pipe.text_encoder, pipe.unet)
    rows = []
    for n in lengths:
        counts = {name: _counted(pipe, n, size, name) for name in (OWN, *names)}
        own, _ = counts[OWN]
        rows += [
            {"setting": name, "frames": n, "tflop": flops / 1e12, "flops": flops / own,
             "bytes": weights + live}
            for name, (flops, live) in counts.items()
        ]  # fmt: skip
    return pd.DataFrame(rows)


def _counted(pipe: VideoEditPipeline, n_frames: int, size: int, name: str) -> tuple[int, int]:
    """FLOPs and the peak of live tensors of one edit."""
    call, inversion = {}, "ddim"
    if host := HOSTS.get(name):
        call = {"host": name, "attention": host.attention}
        inversion = "noise" if host.inversion == "noise" else "ddim"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The host .* ControlNet")
        return counted_edit(
            pipe, None, n_frames, size, STEPS, guidance_scale=GUIDANCE, inversion=inversion, **call
        )


def main() -> None:
    """Write the rows."""
    table = cost_rows(stable_diffusion()[0], LENGTHS, SIZE)
    with written_whole(notebook_folder() / "results" / "host_costs.csv") as unfinished:
        table.to_csv(unfinished, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
