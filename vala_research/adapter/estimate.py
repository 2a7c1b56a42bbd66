"""Time and memory of a training, read off one batch before anything is changed."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vala_research.adapter.batches import Encoders
from vala_research.adapter.loss import Noising, adapter_loss
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.adapter.training import TrainingSettings
from vala_research.diffusion.solvers import n_timesteps_of


@dataclass(frozen=True)
class TrainingEstimate:
    """What a training takes.

    seconds: the whole training on this device, warm, with encoding and reading.
    peak_bytes: weights, gradients and moments, and what one batch keeps for its backward pass. The
        working memory of single operations and of the framework comes on top.
    """

    seconds: float
    peak_bytes: int


def estimate_training(
    adapter: TemporalAdapter, encoders: Encoders, dataset: Any, settings: TrainingSettings
) -> TrainingEstimate:
    """Run one batch forward and backward twice: count memory first, then take the time.

    The LoRA is on, which is the dearer side. Nothing is updated, and no gradient is left.
    """
    parameters, kept = adapter.trainable(), {}
    weights = {p.untyped_storage().data_ptr() for m in _networks(adapter, encoders)
               for p in m.parameters()}  # fmt: skip

    # Every tensor kept for the backward pass is counted once, by its storage.
    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    for hooks in (torch.autograd.graph.saved_tensors_hooks(note, lambda x: x), None):
        start = time.perf_counter()
        if hooks is None:
            _one_batch(adapter, encoders, dataset, settings).backward()
        else:
            with hooks:
                loss = _one_batch(adapter, encoders, dataset, settings)
            loss.backward()
        if encoders.pipe.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        for p in parameters:
            p.grad = None
    stored = sum(p.numel() * p.element_size() for m in _networks(adapter, encoders)
                 for p in m.parameters())  # fmt: skip
    trained = sum(12 * p.numel() for p in parameters)  # gradient and two moments
    return TrainingEstimate(
        seconds * settings.accumulation * settings.max_steps,
        stored + trained + sum(kept.values()),
    )


def _one_batch(
    adapter: TemporalAdapter, encoders: Encoders, dataset: Any, settings: TrainingSettings
) -> Tensor:
    n = settings.batch_size
    batch = encoders.batch([next(iter(dataset))] * n, [True] * n)
    if settings.loss.variant == "released":
        batch = batch.frames([0, 1, 0, 1])
    t = torch.full(batch.z_0.shape[:2], n_timesteps_of(encoders.pipe.scheduler) - 1)
    noising = Noising(t, torch.randn(batch.z_0.shape, generator=torch.Generator()), True)
    controlnet = encoders.control.controlnet if encoders.control else None
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(settings.mixed_precision)
    with torch.autocast(encoders.pipe.device.type, kind, enabled=kind is not None):
        return adapter_loss(
            adapter, encoders.pipe.scheduler, batch, noising, settings.loss, controlnet
        )["loss"]


def _networks(adapter: TemporalAdapter, encoders: Encoders) -> list[torch.nn.Module]:
    pipe = encoders.pipe
    found = [pipe.unet, pipe.vae, pipe.text_encoder, adapter.tokens]
    return [m for m in found if m is not None]
