"""Training of a temporal adapter. A training killed at any moment resumes as if it had not been.

Everything random is a function of the seed and of the number of the batch. So the weights, Adam's
moments and the step are all there is to keep. The loss is `adapter_loss`.

Accelerate sets devices and precision. With `accelerate launch` on several GPUs, each process takes
every n-th batch and gradients are averaged.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from vala_research import chosen_from, number_in
from vala_research.adapter.batches import (
    Encoders,
    TrainingControl,
    Vision,
    check_training,
    generator_of,
    numbered_batches,
)
from vala_research.adapter.identity import run_identity
from vala_research.adapter.loss import LossSettings, adapter_loss, draw_noising
from vala_research.adapter.run import Stopped, locked, stop_asked
from vala_research.adapter.state import (
    LOG,
    STATE,
    Log,
    check_place,
    read_state,
    saving,
    write_state,
)
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.solvers import n_timesteps_of

PRECISIONS = ("no", "fp16", "bf16")
COLUMNS = ("step", "loss", "diffusion", "temporal", "similarity", "norm", "lr")
WHOLE = {  # settings that are whole numbers: least and greatest
    "max_steps": (1, 10**8), "accumulation": (1, 10**5), "batch_size": (1, 10**4),
    "checkpoint_every": (1, 10**8), "warmup_steps": (0, 10**8), "n_workers": (0, 64),
    "seed": (-(2**63), 2**63 - 1),
}  # fmt: skip


@dataclass(frozen=True)
class TrainingSettings:
    """How long and how fast to train; AdamW as in GE-Adapter 4.1.

    max_steps: updates of the weights. An update takes `accumulation` batches of `batch_size` clips
        in each process.
    learning_rate: reached after `warmup_steps`, constant afterwards.
    max_norm: the gradient is clipped to it (ours).
    checkpoint_every: steps between checkpoints. n_workers: of the data loader.
    mixed_precision: "no", "fp16" or "bf16"; trained weights stay in float32.
    """

    max_steps: int = 10_000
    learning_rate: float = 3e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    warmup_steps: int = 500
    accumulation: int = 8
    batch_size: int = 1
    max_norm: float = 1.0
    checkpoint_every: int = 500
    mixed_precision: str = "no"
    seed: int = 0
    n_workers: int = 0
    loss: LossSettings = LossSettings()  # noqa: RUF009 - frozen

    def __post_init__(self):
        for name, (low, high) in WHOLE.items():
            number_in(name, getattr(self, name), low, high, whole=True)
        number_in("The learning rate", self.learning_rate, 1e-12, 1)
        number_in("max_norm", self.max_norm, 1e-9, 1e9)
        number_in("weight_decay", self.weight_decay, 0, 1e3)
        for beta in self.betas:
            number_in("A beta of AdamW", beta, 0, 1 - 1e-9)
        chosen_from("precision", self.mixed_precision, PRECISIONS)

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))


def train(
    pipe: Any,
    adapter: TemporalAdapter,
    dataset: Any,
    folder: str | os.PathLike,
    settings: TrainingSettings = TrainingSettings(),
    vision: Vision | None = None,
    control: TrainingControl | None = None,
    more: dict[str, Any] | None = None,
) -> Path:
    """Train the adapter of `pipe.unet` up to `max_steps`; resume where the folder's training ended.

    dataset: samples {"frames": f 3 h w in [0, 1], "caption": str}, by number or as a stream. Sample
        i has number i modulo the length. A sample may bring its own "noise".
    folder: holds afterwards an adapter that `TemporalAdapter.load` reads; `log.csv`, one row per
        step; `step-N`, the adapter at each checkpoint; `state.safetensors`, for resuming.
    more: other facts that a run must share with the run that it resumes.
    The log's temporal loss and similarity are means over the batches with the LoRA on, if any.
    Moves the pipeline to accelerate's device.
    Raises InputError before the first step, also when another run trains in the folder, or did with
    other settings, data or networks. Raises Stopped after SIGTERM, when the step is saved.
    """
    # Put every network on its device, and check that they fit together.
    accelerator, folder = Accelerator(mixed_precision=settings.mixed_precision), Path(folder)
    encoders = Encoders(pipe.to(accelerator.device), vision, control)
    if adapter.tokens is not None:
        adapter.tokens.to(accelerator.device)
    if control is not None:
        control.controlnet.to(accelerator.device).requires_grad_(False)
    check_training(adapter, encoders, dataset, settings.loss)
    check_place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) if accelerator.is_main_process else nullcontext():
        facts = run_identity(settings, adapter, encoders, dataset, accelerator.num_processes)
        _train(accelerator, adapter, encoders, dataset, folder, settings, facts | (more or {}))
    accelerator.wait_for_everyone()
    return folder


def _train(
    accelerator: Accelerator, adapter: TemporalAdapter, encoders: Encoders, dataset: Any,
    folder: Path, settings: TrainingSettings, expected: dict[str, Any],
) -> None:  # fmt: skip
    """The steps that are left. Only the main process writes."""
    bare, step = _resumed(accelerator, adapter, folder, settings, expected)
    parameters, optimizer = adapter.trainable(), accelerator.prepare(bare)
    main = accelerator.is_main_process
    log = Log(folder / LOG, COLUMNS, step) if main else None
    numbers, size = _numbers(settings, step, accelerator), settings.batch_size
    batches = numbered_batches(dataset, numbers, size, settings.n_workers)
    bar = tqdm(total=settings.max_steps, initial=step, desc="adapter", unit="step",
               disable=None if main else True)  # fmt: skip
    with bar, stop_asked() as is_asked:
        while step < settings.max_steps:
            given = adapter, encoders, batches, optimizer, settings, accelerator
            row, stops = _update(step, *given, is_asked)
            step += 1
            is_due = step % settings.checkpoint_every == 0 or step == settings.max_steps
            with saving(folder, step):
                if main:
                    log.add({"step": step, **row})
                if main and is_due:
                    adapter.save_pretrained(folder / f"step-{step:06d}")
                if main and (is_due or stops):  # last: the state vouches for the rest
                    scaler = accelerator.scaler and accelerator.scaler.state_dict()
                    facts = expected | {"step": step, "scaler": scaler}
                    write_state(folder / STATE, parameters, bare, facts)
            bar.update()
            bar.set_postfix({k: f"{v:.3g}" for k, v in row.items() if k != "norm"})
            if stops:
                raise Stopped(
                    f"SIGTERM ended the training in {folder} after step {step} of "
                    f"{settings.max_steps}, which is saved: repeat the command to go on."
                )
    if main:
        with saving(folder, step):
            adapter.save_pretrained(folder)


def _resumed(
    accelerator: Accelerator, adapter: TemporalAdapter, folder: Path, settings: TrainingSettings,
    expected: dict[str, Any],
) -> tuple[torch.optim.AdamW, int]:  # fmt: skip
    """The optimizer, and the step at which an earlier training of the folder stopped."""
    parameters = adapter.trainable()
    for p in parameters:
        p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
    bare = torch.optim.AdamW(
        parameters, settings.learning_rate, settings.betas, weight_decay=settings.weight_decay
    )
    if not (folder / STATE).exists():
        return bare, 0
    facts = read_state(folder / STATE, parameters, bare, expected)
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(facts["scaler"])
    return bare, facts["step"]


def _update(
    step: int, adapter: TemporalAdapter, encoders: Encoders, batches: Iterator, optimizer: Any,
    settings: TrainingSettings, accelerator: Accelerator, is_asked: Callable[[], bool],
) -> tuple[dict[str, float], bool]:  # fmt: skip
    """One step of AdamW over `accumulation` batches of every process.

    Returns the log's row, and whether any process was asked to stop.
    """
    # Gradients of this process's batches, each drawn from the generator of its number.
    parameters = optimizer.param_groups[0]["params"]
    n_timesteps = n_timesteps_of(encoders.pipe.scheduler)
    sums, counts = dict.fromkeys(COLUMNS[1:5], 0.0), dict.fromkeys(COLUMNS[1:5], 0)
    for _ in range(settings.accumulation):
        number, samples = next(batches)
        rng = generator_of(settings.seed, number)
        kept = torch.rand(len(samples), generator=rng) >= settings.loss.caption_dropout
        batch = encoders.batch(samples, kept.tolist())
        if settings.loss.variant == "released":
            batch = batch.frames([0, 1, 0, 1])
        noising = draw_noising(
            tuple(batch.z_0.shape), n_timesteps, settings.loss, rng, adapter.tokens is None
        )
        controlnet = encoders.control.controlnet if encoders.control else None
        with accelerator.autocast():
            losses = adapter_loss(
                adapter, encoders.pipe.scheduler, batch, noising, settings.loss, controlnet
            )
        values = dict(zip(losses, torch.stack([*losses.values()]).tolist(), strict=True))
        if not abs(values["loss"]) < float("inf"):
            raise FloatingPointError(
                f"The loss is not finite at step {step} in {settings.mixed_precision!r} precision: "
                "train in bf16 or without mixed precision, or at a lower learning rate."
            )
        accelerator.backward(losses["loss"] / settings.accumulation)
        for name, value in values.items():
            sums[name], counts[name] = sums[name] + value, counts[name] + 1

    # Average over the processes. Each has every gradient, also where no batch had the LoRA on.
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad = accelerator.reduce(p.grad, "mean")
    norm = accelerator.clip_grad_norm_(parameters, settings.max_norm)
    for group in optimizer.param_groups:
        group["lr"] = settings.rate(step)
    optimizer.step()
    optimizer.zero_grad()

    totals = torch.tensor([*sums.values(), *counts.values(), float(is_asked())])
    *totals, n_asked = accelerator.reduce(totals.to(accelerator.device), "sum").tolist()
    values = zip(sums, totals[:4], totals[4:], strict=True)
    row = {name: total / n for name, total, n in values if n}
    return row | {"norm": float(norm), "lr": settings.rate(step)}, n_asked > 0


def _numbers(settings: TrainingSettings, step: int, accelerator: Accelerator) -> range:
    """Numbers of the batches of this process: every n-th of all that are left."""
    n, world = settings.accumulation * accelerator.num_processes, accelerator.num_processes
    return range(step * n + accelerator.process_index, settings.max_steps * n, world)
