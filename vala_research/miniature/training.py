"""The training loop of every part: a clock for a schedule, resumable from one safetensors file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from vala_research.adapter.run import Stopped, locked, stop_asked
from vala_research.adapter.state import Log, read_checkpoint, restore_moments, write_checkpoint
from vala_research.miniature.feeding import Batches

EMA_EVERY = 4  # updates; the average moves too slowly to notice
LOG_EVERY, SAVE_EVERY = 20, 120  # seconds


@dataclass(frozen=True)
class Stage:
    """One training run; `share` is its part of the recipe's minutes."""

    name: str
    share: float
    batch: int  # per process
    lr: float
    ema: float = 0.999
    gpu_batch: int = 0  # on a GPU; 0: as elsewhere
    warmup: float = 0.01  # of the time
    weight_decay: float = 1e-2


def train(
    stage: Stage, module: nn.Module, sample: Callable, run: Path, minutes: float,
    accelerator: Accelerator,
) -> dict[str, Tensor]:  # fmt: skip
    """Train `module` for `minutes` of its own time; return the moving average of its weights.

    The learning rate follows the clock, so any machine finishes the recipe in the time it is given.
    The state is written every two minutes, and at SIGTERM, which raises Stopped. A killed run needs
    nothing else to go on. Raises InputError if another run trains in the folder.

    module: returns a dict with `loss`. sample: batch size, generator and progress -> a batch, on
        the CPU.
    """
    optimizer = torch.optim.AdamW(
        module.parameters(), stage.lr, betas=(0.9, 0.99), weight_decay=stage.weight_decay,
        fused=True,
    )  # fmt: skip
    path, step, seconds = run / f"{stage.name}.safetensors", 0, 0.0
    ema = {k: v.detach().clone() for k, v in module.state_dict().items()}
    if path.exists():
        ema, step, seconds = _resume(path, module, optimizer)
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    main = accelerator.is_main_process
    is_cpu = accelerator.device.type == "cpu"
    feed = Batches(sample, stage.batch if is_cpu else stage.gpu_batch or stage.batch)
    made = feed.on(accelerator.device, seed=1000 * step + accelerator.process_index)
    clock = _Clock(seconds, minutes, accelerator.num_processes > 1)
    report, saved = _Report(stage.name, run, step, clock, main), clock.now
    with stop_asked() as is_asked, locked(run) if main else nullcontext():
        while clock.progress < 1:
            optimizer.param_groups[0]["lr"] = stage.lr * _rate(clock.progress, stage.warmup)
            feed.progress.fill_(clock.progress)
            row = _update(wrapped, optimizer, next(made), clock.progress, accelerator)
            step += 1
            clock.tick()
            if main and step % EMA_EVERY == 0:
                _average(ema, module, stage.ema, step)
            if main:
                report.add(step, row)
            stops = is_asked()
            if main and (stops or clock.is_due(saved, SAVE_EVERY)):
                saved = clock.now
                _checkpoint(path, module, ema, optimizer, {"step": step, "seconds": clock.seconds})
            if stops:
                raise Stopped(f"SIGTERM ended the recipe at {path}: repeat the command to go on.")
    report.bar.close()
    return ema


class _Clock:
    """The time that a run has trained, of its budget; one clock for all processes."""

    def __init__(self, seconds: float, minutes: float, is_shared: bool):
        self.seconds, self.budget, self.is_shared = seconds, 60 * minutes, is_shared
        self.progress, self.now = torch.tensor(seconds / self.budget).item(), time.monotonic()

    def tick(self) -> None:
        """Count the time since the last look. A pause (a suspended machine) is no training time."""
        before, self.now = self.now, time.monotonic()
        self.seconds += self.now - before if self.now - before < 20 else 0.0
        progress = torch.tensor(self.seconds / self.budget)
        if self.is_shared:  # or the learning rates of the processes drift apart
            torch.distributed.broadcast(progress, 0)
        self.progress = progress.item()

    def is_due(self, last: float, every: float) -> bool:
        """Whether so many seconds have passed since `last`, or the run is over."""
        return self.now - last > every or self.progress >= 1


def _rate(progress: float, warmup: float) -> float:
    """Factor of the learning rate: a linear warm-up, then a cosine down to 2%."""
    return min(1.0, progress / warmup + 1e-2) * 0.5 * (1.02 + math.cos(math.pi * progress) * 0.98)


def _update(wrapped, optimizer, batch: tuple, progress: float, accelerator) -> dict[str, Tensor]:
    """One step of AdamW; returns the log's row, on the device: a GPU is not waited for."""
    out = wrapped(*batch, progress=progress)
    accelerator.backward(out["loss"])
    norm = accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return {k: v.detach() for k, v in out.items()} | {"norm": norm}


def _average(ema: dict[str, Tensor], module: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the live weights; faster at first, when it is mostly the start."""
    decay = min(decay, (1 + step) / (10 + step)) ** EMA_EVERY
    live = module.state_dict()
    torch._foreach_lerp_(list(ema.values()), [live[k].detach() for k in ema], 1 - decay)


class _Report:
    """The run's progress bar, and its log of one row per 20 seconds: means over their steps."""

    def __init__(self, name: str, run: Path, step: int, clock: _Clock, is_shown: bool):
        self.path, self.step, self.clock = run / f"{name}.csv", step, clock
        self.log, self.rows, self.logged = None, [], clock.now
        self.bar = tqdm(total=int(clock.budget), initial=int(clock.seconds), desc=name, unit="s",
                        disable=not is_shown)  # fmt: skip

    def add(self, step: int, row: dict[str, Tensor]) -> None:
        self.rows.append(row)
        if not self.clock.is_due(self.logged, LOG_EVERY):
            return
        means = {k: torch.stack([r[k] for r in self.rows]).mean().item() for k in row}
        line = {"step": step, "seconds": round(self.clock.seconds, 1), **means}
        self.log = self.log or Log(self.path, tuple(line), self.step)
        self.log.add(line)
        self.bar.n = int(self.clock.seconds)
        self.bar.set_postfix({k: f"{v:.4g}" for k, v in line.items() if k != "seconds"})
        self.rows, self.logged = [], self.clock.now


def _checkpoint(path: Path, module: nn.Module, ema: dict[str, Tensor], optimizer, facts: dict):
    weights = {f"live.{k}": v for k, v in module.state_dict().items()}
    write_checkpoint(path, weights | {f"ema.{k}": v for k, v in ema.items()}, optimizer, facts)


def _resume(path: Path, module: nn.Module, optimizer) -> tuple[dict[str, Tensor], int, float]:
    """Restore weights and moments; returns the average of the weights, the step and the seconds."""
    tensors, facts = read_checkpoint(path)
    module.load_state_dict(part_of(tensors, "live."))
    restore_moments(optimizer, tensors)
    return part_of(tensors, "ema."), facts["step"], facts["seconds"]


def named_device(asked: str) -> str:
    """The device that a recipe's option asks for; "auto" is a GPU where there is one."""
    if asked != "auto":
        return asked
    return "cuda" if torch.cuda.is_available() else "cpu"


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it, on the CPU."""
    return {k.removeprefix(prefix): v.cpu() for k, v in tensors.items() if k.startswith(prefix)}
