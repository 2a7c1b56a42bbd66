"""The training loop of every part: a clock for a schedule, resumable from one safetensors file."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from vala_research.files import written_whole

EMA_EVERY = 4  # updates; the average moves too slowly to notice


@dataclass(frozen=True)
class Stage:
    """One training run; `share` is its part of the recipe's minutes."""

    name: str
    share: float
    batch: int  # a process
    lr: float
    ema: float = 0.999
    warmup: float = 0.01  # of the time
    weight_decay: float = 1e-2


def train(
    stage: Stage, module: nn.Module, sample: Callable, run: Path, minutes: float,
    accelerator: Accelerator,
) -> dict:  # fmt: skip
    """Train `module` (returns a dict with `loss`) for `minutes` of its own time; returns the EMA.

    The learning rate follows the clock (warm-up, then cosine), so any machine finishes the recipe
    in the time it was given. State is written every two minutes, and nothing else is needed to
    resume after a kill.
    """
    optimizer = torch.optim.AdamW(
        module.parameters(), stage.lr, betas=(0.9, 0.99), weight_decay=stage.weight_decay,
        fused=True,
    )  # fmt: skip
    state, path = {"step": 0, "seconds": 0.0}, run / f"{stage.name}.safetensors"
    ema = {k: v.detach().clone() for k, v in module.state_dict().items()}
    if path.exists():
        ema, state = _resume(path, module, optimizer)
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    main = accelerator.is_main_process
    generator = torch.Generator().manual_seed(1000 * state["step"] + accelerator.process_index)
    bar = tqdm(total=int(minutes * 60), initial=int(state["seconds"]), desc=stage.name,
               unit="s", disable=not main)  # fmt: skip
    clock = saved = logged = time.monotonic()
    logs: list[dict] = []
    progress = torch.tensor(state["seconds"] / (60 * minutes))
    while progress < 1:
        factor = min(1.0, progress.item() / stage.warmup + 1e-2) * 0.5
        factor *= 1.02 + math.cos(math.pi * progress.item()) * 0.98
        optimizer.param_groups[0]["lr"] = stage.lr * factor
        out = wrapped(*sample(stage.batch, generator, progress.item()), progress=progress.item())
        accelerator.backward(out["loss"])
        norm = accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        state["step"] += 1
        if main and state["step"] % EMA_EVERY == 0:
            decay = min(stage.ema, (1 + state["step"]) / (10 + state["step"])) ** EMA_EVERY
            live = module.state_dict()
            torch._foreach_lerp_(list(ema.values()), [live[k].detach() for k in ema], 1 - decay)
        logs.append({k: v.item() for k, v in out.items()} | {"norm": norm.item()})
        now = time.monotonic()
        gap = now - clock
        # A pause (a suspended machine) is not training time.
        state["seconds"] += gap if gap < 20 else 0.0
        clock = now
        progress = torch.tensor(state["seconds"] / (60 * minutes))
        if accelerator.num_processes > 1:  # one clock for all, or their learning rates drift apart
            torch.distributed.broadcast(progress, 0)
        if main and (now - logged > 20 or progress >= 1):
            logged = now
            row = {k: sum(d[k] for d in logs) / len(logs) for k in logs[0]}
            row = {"step": state["step"], "seconds": round(state["seconds"], 1), **row}
            _log(run / f"{stage.name}.csv", row)
            bar.n = int(state["seconds"])
            bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if k != "seconds"})
            logs = []
        if main and (now - saved > 120 or progress >= 1):
            saved = now
            _checkpoint(path, module, optimizer, ema, state)
    bar.close()
    return ema


def _log(path: Path, row: dict) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def _checkpoint(path: Path, module, optimizer, ema: dict, state: dict) -> None:
    """Weights, EMA and Adam moments in one safetensors file, renamed into place."""
    tensors = {f"live.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.items()}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in moments.items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with written_whole(path) as unfinished:
        save_file(tensors, unfinished, {k: str(v) for k, v in state.items()})


def _resume(path: Path, module, optimizer) -> tuple[dict, dict]:
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    group = {p: {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)}
             for p in ("live.", "ema.", "adam.")}  # fmt: skip
    module.load_state_dict(group["live."])
    moments: dict[int, dict] = {}
    for key, value in group["adam."].items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({**whole, "state": moments})
    return group["ema."], {"step": int(meta["step"]), "seconds": float(meta["seconds"])}
