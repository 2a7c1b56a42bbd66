"""What the commands print and record."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import typer


def stop(reason: object, status: int) -> None:
    typer.echo(f"vala: {' '.join(str(reason).split())}", err=True)
    raise typer.Exit(status)


def announce(pipe, clip, settings: dict[str, Any], fusion=None) -> dict[str, float]:
    """Say what is to come; the time is that of one step of this clip, times their number."""
    import psutil

    n, (h, w) = len(clip), clip.frames.shape[-2:]
    keys = ("num_inference_steps", "guidance_scale", "inversion", "injection")
    known = {k: settings[k] for k in keys if k in settings}
    expected = pipe.estimate(n, h, w, fusion=fusion, **known)
    pipe.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the prompt: the edit itself will warn
        one_step = dict(num_inference_steps=1, attention=settings["attention"])
        pipe.invert(clip.frames[:1], settings["source_prompt"], **one_step)  # warms up
        start = time.perf_counter()
        pipe.invert(clip, settings["source_prompt"], **one_step)
    seconds = (time.perf_counter() - start) * expected.n_evaluations / n
    pipe.set_progress_bar_config(leave=False)
    bound = "at most " if settings["inversion"] in ("exact", "null_text") else ""
    typer.echo(
        f"{n} frames of {h}x{w}, {settings['num_inference_steps']} steps, {pipe.device}: "
        f"{bound}about {size_text(expected.peak_bytes)} and {seconds:.0f} s (one step, timed)."
    )
    free = psutil.virtual_memory().available
    if pipe.device.type == "cpu" and expected.peak_bytes > free:
        typer.echo(f"warning: only {size_text(free)} are free: give fewer --frames.", err=True)
    return {"seconds": seconds, "peak_bytes": expected.peak_bytes}


def write_record(path: Path, source: Path, written: list, used: dict, results: dict) -> Path:
    """How the outputs were made, enough to make them again."""
    from vala_research.evaluation.provenance import file_hash, jsonable, record
    from vala_research.files import written_whole

    made = record(used, inputs=[source])
    made["outputs"] = {str(file): file_hash(file) for file in written}
    with written_whole(path) as unfinished:
        text = json.dumps(made | jsonable(results), indent=2)
        unfinished.write_text(text + "\n", encoding="utf-8")
    return path


def report(numbers: dict[str, float], written: list[Path]) -> None:
    for name, value in numbers.items():
        text = str(value) if isinstance(value, int) else f"{value:.3f}".rstrip("0").rstrip(".")
        typer.echo(f"  {name:<52} {text:>8}")
    typer.echo("wrote " + ", ".join(map(str, written)))


def size_text(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
