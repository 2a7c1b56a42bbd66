"""One-shot tuning: an adapter learns the clip that is edited (Wu et al. 2022, Tune-A-Video)."""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research.adapter.loss import LossSettings
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.adapter.training import TrainingSettings, train

TUNED = AdapterSettings(
    rank=8, alpha=8, n_shared=0, uses_frame_tokens=False, interval=(0.0, 1.0), scale=1.0
)
TUNING = TrainingSettings(
    max_steps=100, learning_rate=1e-3, warmup_steps=10, accumulation=1, checkpoint_every=10**8,
    loss=LossSettings(
        lambda_diffusion=1.0, lambda_temporal=0.0, temporal_from=0.0, attention="sparse_causal",
        weighting="velocity",
    ),
)  # fmt: skip


def one_clip(frames: Float[Tensor, "f 3 h w"], caption: str) -> list[dict[str, Any]]:
    """A data set of one clip: {"frames": f 3 h w in [0, 1], "caption", "name"}."""
    return [{"frames": frames, "caption": caption, "name": "clip"}]


def tune(
    pipe: Any, frames: Float[Tensor, "f 3 h w"], caption: str, folder: str | PathLike,
    training: TrainingSettings = TUNING, settings: AdapterSettings = TUNED,
) -> Path:  # fmt: skip
    """Train an adapter on one clip and its caption; return the folder for `pipe.load_adapter`.

    frames: in [0, 1], at least 3. A folder whose tuning is done is not tuned again.
    Every step sees all frames, with fresh noise, under `sparse_causal` attention.

    Differs from paper: LoRA in all attentions, not the query projections themselves, and no new
    temporal layers.
    Raises InputError, see `train`; also where the pipeline has an adapter.
    """
    generator = torch.Generator().manual_seed(training.seed)
    adapter = TemporalAdapter.attach(pipe.unet, settings, generator=generator)
    try:
        return train(pipe, adapter, one_clip(frames, caption), folder, training)
    finally:
        adapter.detach()
