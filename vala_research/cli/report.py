"""What the commands print and record."""

from __future__ import annotations

import time
import warnings
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from vala_research.cli.options import Inverting


def stop(reason: object, status: int) -> None:
    """End the command: one sentence on stderr, and an exit status."""
    typer.echo(f"vala: {' '.join(str(reason).split())}", err=True)
    raise typer.Exit(status)


def announce(
    pipe, clip, call: Inverting, guidance_scale: float = 1.0, injection: Any = 0.0, fusion=None
) -> dict[str, float]:
    """Say how much memory and time the work will take; on a GPU, make it fit.

    The time is that of one step of this clip, times the number of steps. Returned beside both:
    frames per chunk, where fewer than usual are needed.
    """
    import psutil

    from vala_research.diffusion.vae import n_latent_frames
    from vala_research.editing.estimate import frames_seen
    from vala_research.editing.memory_plan import MemoryPlan

    n, (h, w), n_steps = len(clip), clip.frames.shape[-2:], call.num_inference_steps
    work = dict(
        num_inference_steps=n_steps, guidance_scale=guidance_scale, inversion=call.inversion,
        injection=injection, fusion=fusion, attention=call.attention,
    )  # fmt: skip
    device = pipe.device  # under offload the parts lie elsewhere
    plan = MemoryPlan() if device.type == "cpu" else pipe.fit_memory(n, h, w, **work)
    per_chunk = plan.frames_per_chunk
    expected = pipe.estimate(
        n, h, w, frames_per_chunk=per_chunk, tiling=plan.tiling, offload=plan.offload, **work
    )
    if plan.measures:
        typer.echo(str(plan))
    of_one_step, _ = frames_seen(pipe, call.attention, n_latent_frames(pipe.vae, n))

    # Warm up on one frame, then time one step, with the ControlNet that an edit's steps have. The
    # work itself will warn about the prompt.
    timed = copy(pipe)  # of the same networks
    timed.set_progress_bar_config(disable=True)
    if (control := pipe.edit_defaults.control) is not None:
        control = replace(control, in_inversion=True)
        timed.edit_defaults = replace(pipe.edit_defaults, control=control)
    warm = copy(timed)
    warm.more_controls = tuple(control.of_frames(1) for control in pipe.more_controls)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one_step = dict(num_inference_steps=1, attention=call.attention, inversion="ddim",
                        frames_per_chunk=per_chunk)  # fmt: skip
        warm.invert(clip.frames[:1], call.source_prompt, **one_step)
        start = time.perf_counter()
        timed.invert(clip, call.source_prompt, **one_step)
    seconds = (time.perf_counter() - start) * expected.n_evaluations / of_one_step
    pipe.set_progress_bar_config(leave=False)

    bound = "at most " if call.inversion in ("exact", "null_text") else ""
    typer.echo(
        f"{n} frames of {h}x{w}, {n_steps} steps, {device}: {bound}about "
        f"{size_text(expected.peak_bytes)} and {seconds:.0f} s (one step, timed)."
    )
    free = psutil.virtual_memory().available
    if device.type == "cpu" and expected.peak_bytes > free:
        typer.echo(f"warning: only {size_text(free)} are free: give fewer --frames.", err=True)
    known = {} if per_chunk is None else {"frames_per_chunk": per_chunk}
    return {"seconds": seconds, "peak_bytes": expected.peak_bytes} | known


def write_record(
    path: Path, source: Path, written: dict[Path, Path], used: dict[str, Any],
    results: dict[str, Any],
) -> Path:  # fmt: skip
    """Write how the outputs were made, enough to make them again.

    written: {output: where its file lies now}.
    """
    from vala_research.evaluation.provenance import file_hash, jsonable, record
    from vala_research.files import write_json

    how = record(used, inputs=[source])
    files = {str(name): p for name, p in written.items() if p.is_file() or p.is_dir()}
    how["outputs"] = {name: file_hash(p) for name, p in files.items()}
    return write_json(path, how | jsonable(results))


def report(numbers: dict[str, float], written: list[Path]) -> None:
    """Print one line per number, and the files."""
    for name, value in numbers.items():
        text = str(value) if isinstance(value, int) else f"{value:.3f}".rstrip("0").rstrip(".")
        typer.echo(f"  {name:<52} {text:>8}")
    typer.echo("wrote " + ", ".join(map(typer.format_filename, written)))


def size_text(n_bytes: float) -> str:
    """Bytes in GB or MB."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
