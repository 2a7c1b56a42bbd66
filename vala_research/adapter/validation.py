"""Losses of a training's checkpoints on held-out samples."""

from pathlib import Path

import torch
from tqdm import tqdm

from vala_research.adapter.batches import Encoders, generator_of
from vala_research.adapter.loss import LossSettings, adapter_loss, draw_noising
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.solvers import n_timesteps_of


@torch.no_grad()
def losses_of_checkpoints(
    pipe, folder: str | Path, dataset, n_samples: int, loss: LossSettings, vision=None
) -> list[dict]:
    """Losses on held-out samples, one row per checkpoint: step, diffusion, temporal, similarity.

    Clips, timesteps and noise are the same for every checkpoint. Step 0 has the LoRA off.
    """
    encoders, n_timesteps = Encoders(pipe, vision), n_timesteps_of(pipe.scheduler)
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
