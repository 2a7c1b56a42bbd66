"""What a run must share with the run that it goes on from: settings, networks and data."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from vala_research.adapter.batches import Encoders
from vala_research.adapter.temporal_adapter import NAME, TemporalAdapter

OF_THE_MACHINE = ("max_steps", "checkpoint_every", "accumulation", "n_workers")
N_COMPARED = 64  # numbers of each weight


def run_identity(
    settings: Any, adapter: TemporalAdapter, encoders: Encoders, dataset: Any, n_processes: int
) -> dict[str, Any]:
    """The facts of a run, as JSON has them.

    settings: TrainingSettings. dataset: its own `identity()`, a dict of plain values, or else its
        first sample.
    """
    shared = {k: v for k, v in asdict(settings).items() if k not in OF_THE_MACHINE}
    shared["betas"] = list(shared["betas"])
    adapter_settings = asdict(adapter.settings)
    for name in ("interval", "token_interval"):
        value = adapter_settings[name]
        adapter_settings[name] = None if value is None else list(value)
    shared |= {"adapter": adapter_settings, "batches a step": settings.accumulation * n_processes}

    # The frozen networks, by some numbers of each weight.
    pipe, control = encoders.pipe, encoders.control
    shared |= {"ControlNet": control is not None}
    if control is not None:
        shared["weights of the ControlNet"] = weights_digest(_weights(control.controlnet))
    shared["weights of the model"] = weights_digest(
        p for network in (pipe.unet, pipe.vae, pipe.text_encoder) for p in _weights(network)
    )
    tower = getattr(getattr(encoders.vision, "__self__", None), "model", None)
    if isinstance(tower, nn.Module):
        shared["weights of the vision encoder"] = weights_digest(_weights(tower))
    return shared | _identity_of_data(dataset)


def _identity_of_data(dataset: Any) -> dict[str, Any]:
    if hasattr(dataset, "identity"):
        return dataset.identity()
    first = next(iter(dataset))
    return {"first sample": digest([first["caption"], first["frames"]])}


def _weights(network: nn.Module) -> list[Tensor]:
    """All weights but a LoRA's."""
    return [p for name, p in network.named_parameters() if f".{NAME}." not in name]


def weights_digest(weights: Iterable[Tensor]) -> str:
    """A digest of the shapes and the first numbers of weights."""
    return digest(x for p in weights for x in (list(p.shape), p.flatten()[:N_COMPARED]))


def digest(parts: Iterable[Any]) -> str:
    """A short digest of texts, plain values and tensors."""
    state = hashlib.sha256()
    for part in parts:
        is_tensor = isinstance(part, Tensor)
        text = part.detach().to("cpu", torch.float32).numpy().tobytes() if is_tensor else b""
        state.update(text if is_tensor else repr(part).encode())
        state.update(b"\0")
    return state.hexdigest()[:16]
