"""Training of a temporal adapter. A training killed at any moment resumes as if it had not been.

Everything random is a function of the seed and of the number of the batch. So the weights, Adam's
moments and the step are all there is to keep. The loss is `adapter_loss`.

Accelerate sets devices and precision. With `accelerate launch` on several GPUs, each process takes
every n-th batch and gradients are averaged.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from vala_research import InputError, chosen_from
from vala_research.adapter.batches import (
    Control,
    Encoders,
    Vision,
    check_training,
    generator_of,
    numbered_batches,
)
from vala_research.adapter.loss import LossSettings, adapter_loss, draw_noising
from vala_research.adapter.state import LOG, STATE, Log, read_state, write_state
from vala_research.adapter.temporal_adapter import TemporalAdapter

PRECISIONS = ("no", "fp16", "bf16")
COLUMNS = ("step", "loss", "diffusion", "temporal", "similarity", "norm", "lr")
OF_THE_MACHINE = ("max_steps", "checkpoint_every", "accumulation", "n_workers")


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
        for name in ("max_steps", "accumulation", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: give at least 1.")
        if not (self.learning_rate > 0 and self.max_norm > 0):
            raise InputError("The learning rate and max_norm must be positive.")
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
    control: Control | None = None,
) -> Path:
    """Train the adapter of `pipe.unet` up to `max_steps`; resume where the folder's training ended.

    dataset: samples {"frames": f 3 h w in [0, 1], "caption": str}, by number or as a stream. Sample
        i has number i modulo the length. A sample may bring its own "noise".
    folder: holds afterwards an adapter that `TemporalAdapter.load` reads; `log.csv`, one row per
        step; `step-N`, the adapter at each checkpoint; `state.safetensors`, for resuming.
    The log's temporal loss and similarity are means over the batches with the LoRA on; empty where
    a step had none. Moves the pipeline to accelerate's device.
    Raises InputError before the first step.
    """
    # Put every network on its device, and check that they fit together.
    accelerator, folder = Accelerator(mixed_precision=settings.mixed_precision), Path(folder)
    encoders = Encoders(pipe.to(accelerator.device), vision, control)
    if adapter.tokens is not None:
        adapter.tokens.to(accelerator.device)
    if control is not None:
        control.controlnet.to(accelerator.device).requires_grad_(False)
    check_training(adapter, encoders, dataset, settings.loss)
    folder.mkdir(parents=True, exist_ok=True)

    # The optimizer, and where an earlier training stopped.
    parameters = adapter.trainable()
    for p in parameters:
        p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
    bare = torch.optim.AdamW(
        parameters, settings.learning_rate, settings.betas, weight_decay=settings.weight_decay
    )
    expected, step = _identity(settings, adapter, accelerator, control), 0
    if (folder / STATE).exists():
        facts = read_state(folder / STATE, parameters, bare, expected)
        step = facts["step"]
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(facts["scaler"])
    optimizer = accelerator.prepare(bare)

    # The steps that are left. Only the main process writes.
    main = accelerator.is_main_process
    log = Log(folder / LOG, COLUMNS, step) if main else None
    batches = numbered_batches(
        dataset, _numbers(settings, step, accelerator), settings.batch_size, settings.n_workers
    )
    bar = tqdm(total=settings.max_steps, initial=step, desc="adapter", unit="step",
               disable=None if main else True)  # fmt: skip
    while step < settings.max_steps:
        row = _update(step, adapter, encoders, batches, optimizer, settings, accelerator)
        step += 1
        if main:
            log.add({"step": step, **row})
            bar.update()
            bar.set_postfix({k: f"{v:.3g}" for k, v in row.items() if k != "norm"})
        if main and (step % settings.checkpoint_every == 0 or step == settings.max_steps):
            adapter.save_pretrained(folder / f"step-{step:06d}")
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
            facts = expected | {"step": step, "scaler": scaler}
            write_state(folder / STATE, parameters, bare, facts)  # last: it vouches for the rest
    bar.close()
    if main:
        adapter.save_pretrained(folder)
    accelerator.wait_for_everyone()
    return folder


def _update(
    step: int, adapter: TemporalAdapter, encoders: Encoders, batches: Iterator, optimizer: Any,
    settings: TrainingSettings, accelerator: Accelerator,
) -> dict[str, float]:  # fmt: skip
    """One step of AdamW over `accumulation` batches of every process. Returns the log's row."""
    # Gradients of this process's batches, each drawn from the generator of its number.
    parameters = optimizer.param_groups[0]["params"]
    n_timesteps = len(encoders.pipe.scheduler.alphas_cumprod)
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
        if not torch.isfinite(losses["loss"]):
            raise FloatingPointError(
                f"The loss is not finite at step {step} in {settings.mixed_precision!r} precision: "
                "train in bf16 or without mixed precision, or at a lower learning rate."
            )
        accelerator.backward(losses["loss"] / settings.accumulation)
        for name, value in losses.items():
            sums[name] += value.item()
            counts[name] += 1

    # Average over the processes. Each has every gradient, also where no batch had the LoRA on.
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad = accelerator.reduce(p.grad, "mean")
    norm = accelerator.clip_grad_norm_(parameters, settings.max_norm)
    for group in optimizer.param_groups:
        group["lr"] = settings.rate(step)
    optimizer.step()
    optimizer.zero_grad()

    totals = torch.tensor([*sums.values(), *counts.values()], device=accelerator.device)
    totals = accelerator.reduce(totals, "sum").tolist()
    values = zip(sums, totals[:4], totals[4:], strict=True)
    row = {name: total / n for name, total, n in values if n}
    return row | {"norm": float(norm), "lr": settings.rate(step)}


def _identity(settings: TrainingSettings, adapter: TemporalAdapter, accelerator, control) -> dict:
    """What a run must share with the run that it resumes."""
    shared = {k: v for k, v in asdict(settings).items() if k not in OF_THE_MACHINE}
    shared["betas"] = list(shared["betas"])
    adapter_settings = asdict(adapter.settings)
    adapter_settings["interval"] = list(adapter_settings["interval"])
    n = settings.accumulation * accelerator.num_processes
    shared |= {"adapter": adapter_settings, "batches a step": n}
    return shared | {"ControlNet": control is not None}


def _numbers(settings: TrainingSettings, step: int, accelerator: Accelerator) -> range:
    """Numbers of the batches of this process: every n-th of all that are left."""
    n, world = settings.accumulation, accelerator.num_processes
    start = step * n * world + accelerator.process_index
    return range(start, settings.max_steps * n * world, world)


@torch.no_grad()
def losses_of_checkpoints(
    pipe, folder: str | Path, dataset, n_samples: int, loss: LossSettings, vision=None
) -> list[dict]:
    """Losses on held-out samples, one row per checkpoint: step, diffusion, temporal, similarity.

    Clips, timesteps and noise are the same for every checkpoint. Step 0 has the LoRA off.
    """
    encoders, n_timesteps = Encoders(pipe, vision), len(pipe.scheduler.alphas_cumprod)
    drawn = []
    for i in range(n_samples):
        batch = encoders.batch([dataset[i]], [True])
        rng = generator_of(0, i)
        drawn.append((batch, draw_noising(tuple(batch.z_0.shape), n_timesteps, loss, rng, True)))
    rows = []
    for checkpoint in tqdm(sorted(Path(folder).glob("step-*")), "checkpoints", disable=None):
        step = int(checkpoint.name.partition("-")[2])
        adapter = TemporalAdapter.load(checkpoint, pipe.unet)
        if not rows:
            with adapter.active(True, scale=0.0):
                rows.append({"step": 0, **_mean_losses(adapter, pipe.scheduler, drawn, loss)})
        rows.append({"step": step, **_mean_losses(adapter, pipe.scheduler, drawn, loss)})
        adapter.detach()
    return rows


def _mean_losses(adapter, scheduler, drawn: list, loss: LossSettings) -> dict[str, float]:
    found = [adapter_loss(adapter, scheduler, batch, noising, loss) for batch, noising in drawn]
    names = ("diffusion", "temporal", "similarity")
    return {k: torch.stack([row[k] for row in found]).mean().item() for k in names}
