"""`vala info`: versions, devices, memory, and the model."""

from __future__ import annotations

import os

import typer

from vala_research.cli.loading import load_model, model_side
from vala_research.cli.options import Model, Place, Revision, Variant
from vala_research.cli.report import size_text


def info(model: Model = "miniature", variant: Variant = None, revision: Revision = None) -> None:
    """Print versions, devices, memory, and the parts of the model."""
    import psutil
    import torch

    from vala_research.evaluation.provenance import record

    rows = dict(record({})["versions"])
    memory = psutil.virtual_memory()
    rows["cpu"] = free_of(memory.available, memory.total, f"{os.cpu_count()} cores")
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        rows[f"cuda:{i}"] = free_of(free, total, torch.cuda.get_device_name(i))
    if torch.backends.mps.is_available():
        rows["mps"] = "available"
    for key, value in rows.items():
        typer.echo(f"{key:<24} {value}")
    pipe, _ = load_model(Place(model, device="cpu", variant=variant, revision=revision))
    parts = {k: m for k, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    counts = {k: sum(p.numel() for p in m.parameters()) / 1e6 for k, m in parts.items()}
    typer.echo(f"{'model':<24} {model}: {model_side(pipe)} px, " + ", ".join(
        f"{k} {n:.2f} M" for k, n in counts.items()
    ))  # fmt: skip


def free_of(free: float, total: float, device: str) -> str:
    """One line on the memory of a device."""
    return f"{device}, {size_text(free)} of {size_text(total)} free"
