"""Make an edit fit into the memory that is free: tiles of the VAE, chunks of frames, offload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from vala_research import InputError

SHARE = 0.85  # of the free memory that is planned with; kernels take the rest
# Bytes that stay free on a GPU beside it. Torch keeps memory in pieces, which do not always fit: on
# one card edits failed with 0.55 GB more than they needed, and with 0.95 GB all were made.
CACHE = 1e9


@dataclass(frozen=True)
class MemoryPlan:
    """How an edit fits.

    needed, free: bytes, weights included; `needed` is an estimate, see `peak_bytes`. tiling: the
    VAE works in tiles, which may change a picture slightly at their edges. offload: parts wait in
    the memory of the CPU until they are called. frames_per_chunk: for the call; None: as usual.
    """

    needed: int = 0
    free: int = 0
    tiling: bool = False
    offload: bool = False
    frames_per_chunk: int | None = None

    @property
    def measures(self) -> list[str]:
        """What is done to save memory, in words."""
        names = {
            "one frame per chunk": self.frames_per_chunk == 1,
            "the VAE in tiles": self.tiling,
            "parts offloaded to the CPU": self.offload,
        }
        return [name for name, is_taken in names.items() if is_taken]

    def __str__(self) -> str:
        how = f", with {', '.join(self.measures)}" if self.measures else ""
        return f"The edit needs about {self.needed / 1e9:.1f} of {self.free / 1e9:.1f} GB{how}."


def plan_memory(
    pipe: Any, n_frames: int, height: int, width: int, free: int | None = None, **call: Any
) -> MemoryPlan:
    """Choose the fastest way in which an edit fits into `free` bytes; `fit_memory` applies it.

    Tried in this order: as it is; one frame per chunk; the VAE in tiles too; parts offloaded too,
    on a GPU. free: bytes of the device for weights and work; None asks the device. call: arguments
    of the edit that `estimate` takes.
    Raises InputError if nothing fits.
    """
    device = pipe._execution_device
    free = free_bytes(pipe, device) if free is None else free
    usable = usable_bytes(free, device)
    asked = call.pop("frames_per_chunk", None)
    ways = [(False, False, asked), (False, False, 1), (True, False, 1)]
    ways += [] if device.type == "cpu" else [(True, True, 1)]
    for tiling, offload, per_chunk in ways:
        needed = pipe.estimate(
            n_frames, height, width, frames_per_chunk=per_chunk, tiling=tiling, offload=offload,
            **call,
        ).peak_bytes  # fmt: skip
        if needed <= usable:
            return MemoryPlan(needed, free, tiling, offload, per_chunk)
    raise InputError(
        f"The edit of {n_frames} frames of {height}x{width} needs about {needed / 1e9:.1f} GB and "
        f"{usable / 1e9:.1f} GB are free: take fewer frames or smaller ones"
        + (" or half precision." if pipe.dtype == torch.float32 else ".")
    )


def fit_memory(
    pipe: Any, n_frames: int, height: int, width: int, free: int | None = None, **call: Any
) -> MemoryPlan:
    """Make an edit of such a clip fit into the device's memory; return what was chosen.

        plan = pipe.fit_memory(32, 512, 512, attention="extended")
        pipe(clip, prompt, source_prompt, frames_per_chunk=plan.frames_per_chunk)

    Tiles and offload are switched on where they are needed, and stay on. The arguments and errors
    are those of `plan_memory`.
    """
    plan = plan_memory(pipe, n_frames, height, width, free, **call)
    if plan.tiling:
        pipe.vae.enable_tiling()
    if plan.offload:
        pipe.enable_model_cpu_offload()
    return plan


def usable_bytes(free: float, device: torch.device) -> float:
    """The part of the free bytes of a device that an edit may need."""
    return SHARE * free if device.type == "cpu" else max(0.0, min(SHARE * free, free - CACHE))


def free_bytes(pipe: Any, device: torch.device) -> int:
    """Bytes of a device for a pipeline: what is free, and what the pipeline's parts hold there."""
    own = {
        id(p): p.nbytes
        for part in pipe.components.values() if isinstance(part, torch.nn.Module)
        for p in part.parameters() if p.device == device
    }  # fmt: skip
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + sum(own.values())
    return psutil.virtual_memory().available + sum(own.values())
