"""One training step of the temporal adapter at the scale's size, in bfloat16."""

from collections.abc import Iterator

import torch

from vala_research.adapter.loss import Batch, LossSettings, Noising, adapter_loss
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.evaluation.gpu.machine import Machine, attempted, random_pipeline
from vala_research.evaluation.gpu.speed import TEXT, latent_side

D_VISION, N_VISION = 768, 50  # image tokens of CLIP ViT-B/32


def training_step(machine: Machine) -> Iterator[dict]:
    """Yield one row: seconds, peak memory and loss of one batch, forward, backward and AdamW.

    The batch is one clip of as many frames as the loss needs, with the LoRA on. Its latents, text
    and image tokens are noise: encoding is not timed. The frozen network is in bfloat16, and what
    is trained in float32.
    """
    pipe = random_pipeline(machine, torch.bfloat16)
    draw = torch.Generator().manual_seed(0)
    adapter = TemporalAdapter.attach(pipe.unet, d_vision=D_VISION, generator=draw)
    settings, side = LossSettings(), latent_side(machine)
    n_frames, optimiser = settings.n_frames, torch.optim.AdamW(adapter.trainable(), lr=3e-5)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(machine.device)

    shape = (1, n_frames, machine.scale.unet["in_channels"], side, side)
    text, vision = (TEXT, machine.scale.unet["cross_attention_dim"]), (N_VISION, D_VISION)
    batch = Batch(drawn(*shape), drawn(1, *text), drawn(1, n_frames, *vision))
    n_timesteps = len(pipe.scheduler.alphas_cumprod)
    t = torch.full(shape[:2], n_timesteps - 1)
    noising = Noising(t, torch.randn(shape, generator=draw), is_temporal=True)

    def step() -> float:
        with torch.autocast(machine.device.type, torch.bfloat16):
            loss = adapter_loss(adapter, pipe.scheduler, batch, noising, settings)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    def measured() -> dict:
        gib = machine.peak_gib(step)  # it also warms up
        seconds, loss = machine.seconds(step), step()
        right = torch.isfinite(torch.tensor(loss)).item()
        return {"seconds": seconds, "gib": gib, "loss": loss, "right": right}

    row = {"frames": n_frames, "side": machine.scale.side, "weights": adapter.n_parameters}
    yield attempted(row, measured, machine)
