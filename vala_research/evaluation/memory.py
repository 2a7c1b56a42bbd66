"""Peak memory of whole edits.

Two measures: the peak of all live tensors, which is exact and the same on every machine, and the
peak of the process. An allocator keeps what an edit freed, so each edit gets a fresh process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vala_research import InputError
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.methods.anchors import AnchorSettings

MEBIBYTE = 2**20
PROMPTS = ("a blue circle", "a red circle")  # of an edit whose cost is measured: target, source
# glibc keeps freed blocks of up to 32 MiB in its heap, in pieces that fit nothing. The resident set
# of a long edit is then half as large again. Blocks mapped one by one go back when they are freed.
RETURN_PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536"}
Runner = Callable[..., Any]  # runner(function, **arguments) returns what the function returns


# --- live tensors -------------------------------------------------------------------------------


class LiveTensors(TorchDispatchMode):
    """Count the bytes of all living storages made inside the `with` block: now, and at their peak.

    Scratch memory inside an operation is not seen.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        storages = (x.untyped_storage() for x in _tensors(out))
        made = {s._cdata: s for s in storages if s._cdata not in self._sizes}
        for x in _tensors((args, kwargs)) if made else ():
            made.pop(x.untyped_storage()._cdata, None)  # a view, such as one of weights
        for key, storage in made.items():
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._drop, key)
        self.peak = max(self.peak, self.now)
        return out

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _tensors(of: Any) -> Iterator[Tensor]:
    """The tensors of an operation's arguments or results, several times as fast as a pytree's."""
    if isinstance(of, Tensor):
        yield of
    elif isinstance(of, (tuple, list)):
        for part in of:
            yield from _tensors(part)
    elif isinstance(of, dict):
        yield from _tensors(tuple(of.values()))


# --- one edit per process -----------------------------------------------------------------------


def in_fresh_process(function: Callable, *arguments: Any, **named: Any) -> Any:
    """Call a function in a process of its own, whose allocator gives back what is freed."""
    before = {name: os.environ.get(name) for name in RETURN_PAGES}
    os.environ.update(RETURN_PAGES)
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(function, *arguments, **named).result()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def in_this_process(function: Callable, *arguments: Any, **named: Any) -> Any:
    """Call a function here: quicker, but a peak then counts all that the process holds already."""
    return function(*arguments, **named)


def measured_edits(
    measure: Callable[..., dict], jobs: Iterable[Mapping], run: Runner = in_fresh_process
) -> list[dict]:
    """Measure one edit per job: the rows `measure(**job)`.

    measure: a function that a new process can import.
    jobs: its arguments, "n_frames" among them; ascending for `in_this_process`, as peaks are.
    run: `in_fresh_process` or `in_this_process`.
    Raises InputError when an edit runs out of memory, or its process is killed.
    """
    rows = []
    for job in jobs:
        try:
            rows.append(run(measure, **job))
        except (RuntimeError, MemoryError) as error:
            raise InputError(
                f"The edit of {job['n_frames']} frames failed ({error}): try fewer, or smaller."
            ) from error
    return rows


def edit_memory(
    n_frames: Sequence[int],
    attention: str = "own",
    granularity: str = "site",
    model: str = "miniature",
    size: int = 64,
    steps: int = 2,
    frames_per_chunk: int = 8,
    dtype: str = "float32",
    is_fresh: bool = True,
) -> list[dict]:
    """Measure the peak memory of one edit per clip length.

    n_frames: ascending. granularity: of attention "anchors". size: pixels.
    frames_per_chunk: the same for all lengths, so that only what all frames hold at once grows.
    is_fresh: one new process per length.
    Returns rows of attention, frames, and in MiB:
        peak: of the process, or of the device where there is one (smaller is better);
        live: of tensors, the clip included;
        estimate: the sum that `VideoEditPipeline.estimate` gives, weights included.
    Raises InputError when an edit runs out of memory, or its process is killed.
    """
    shared = dict(
        attention=attention, granularity=granularity, model=model, size=size, steps=steps,
        frames_per_chunk=frames_per_chunk, dtype=dtype,
    )  # fmt: skip
    run = in_fresh_process if is_fresh else in_this_process
    return measured_edits(_loaded_edit, [shared | {"n_frames": n} for n in n_frames], run)


def _loaded_edit(model: str, dtype: str, **settings: Any) -> dict:
    """Load the model and measure one edit."""
    return measured_edit(quiet_pipeline(model, getattr(torch, dtype)), **settings)


def measured_edit(
    pipe, n_frames: int, attention: str, granularity: str, size: int, steps: int,
    frames_per_chunk: int,
) -> dict:  # fmt: skip
    """Measure one row of `edit_memory` here; this process has made no larger edit before."""
    generator, has_anchors = torch.Generator().manual_seed(0), attention == "anchors"
    forget_peak()
    with LiveTensors() as live:
        clip = torch.rand(n_frames, 3, size, size, generator=generator)
        pipe(
            clip, *PROMPTS, num_inference_steps=steps,
            attention=AnchorSettings(granularity=granularity) if has_anchors else attention,
            frames_per_chunk=frames_per_chunk, output_type="pt",
        )  # fmt: skip
    peak = peak_mebibytes()
    expected = pipe.estimate(n_frames, size, size, steps, frames_per_chunk=frames_per_chunk)
    return {
        "attention": f"{attention} {granularity}" if attention == "anchors" else attention,
        "frames": n_frames,
        "peak": peak,
        "live": live.peak / MEBIBYTE,
        "estimate": expected.peak_bytes / MEBIBYTE,
    }


# --- the process or device ----------------------------------------------------------------------


def forget_peak() -> None:
    """Start `peak_mebibytes` anew, where the system can (CUDA, Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mebibytes() -> float:
    """Peak memory since `forget_peak`: the device's where there is one, else the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MEBIBYTE
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) / 1024 for x in lines if x.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
