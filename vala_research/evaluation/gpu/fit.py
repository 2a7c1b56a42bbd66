"""Does an edit fit where `fit_memory` says that it does? The card is made smaller for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vala_research.evaluation.gpu.machine import Machine, attempted, random_pipeline
from vala_research.evaluation.memory import PROMPTS


def fit(machine: Machine) -> Iterator[dict]:
    """Yield one row per memory and clip length: an edit as `fit_memory` planned it.

    free: GB of a smaller card, which this one pretends to be. needed: GB as planned. peak: GB that
    torch took, weights included; reserved: with the cache of its allocator. measures: what the plan
    does. right: the edit was made.
    """
    scale = machine.scale
    for free in scale.cards:
        for n_frames in scale.frames[1:]:
            yield attempted(
                {"free": free, "frames": n_frames, "side": scale.side},
                lambda free=free, n=n_frames: edit_row(machine, free, n), machine,
            )  # fmt: skip


def edit_row(machine: Machine, free: float, n_frames: int) -> dict:
    """Plan and make one edit of two steps in so much memory."""
    scale = machine.scale
    pipe = random_pipeline(machine)
    draw = torch.Generator().manual_seed(0)
    clip = torch.rand(n_frames, 3, scale.side, scale.side, generator=draw)
    call = {"num_inference_steps": 2, "guidance_scale": 7.5, "attention": "anchors"}
    plan = pipe.fit_memory(n_frames, scale.side, scale.side, int(free * 1e9), **call)
    with smaller(machine, free):
        gib = machine.peak_gib(lambda: pipe(
            clip, *PROMPTS, output_type="pt", frames_per_chunk=plan.frames_per_chunk, **call
        ))  # fmt: skip
    is_cuda = machine.device.type == "cuda"
    reserved = {"reserved": torch.cuda.max_memory_reserved() / 1e9} if is_cuda else {}
    measures = {"measures": ", ".join(plan.measures) or "none"}
    return {"needed": plan.needed / 1e9, "peak": gib * 2**30 / 1e9, **reserved, **measures,
            "right": True}  # fmt: skip


@contextmanager
def smaller(machine: Machine, free: float) -> Iterator[None]:
    """Let torch take no more than so many GB of a graphics card in the block."""
    if machine.device.type != "cuda":
        yield
        return
    machine.clear()
    total = torch.cuda.get_device_properties(machine.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, free * 1e9 / total), machine.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, machine.device)
