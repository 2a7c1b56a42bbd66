"""Two networks of which one denoises high noise and the other low noise, as in Wan 2.2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """Wan 2.2 A14B: one transformer from a boundary of the noise levels on, another below it.

    boundary: as a fraction of the T = 1000 timesteps.
    """

    def __init__(self, transformer: nn.Module, transformer_2: nn.Module, boundary: float):
        super().__init__()
        self.transformer, self.transformer_2 = transformer, transformer_2
        self.boundary = boundary

    @property
    def config(self) -> Any:
        """That of both."""
        return self.transformer.config

    @property
    def dtype(self) -> torch.dtype:
        """Precision of both."""
        return self.transformer.dtype

    @property
    def device(self) -> torch.device:
        """Where the expert of high noise is."""
        return self.transformer.device

    def forward(self, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the expert of this noise level; timestep: one per branch, all equal."""
        is_high = float(timestep.flatten()[0]) >= 1000 * self.boundary
        expert = self.transformer if is_high else self.transformer_2
        return expert(x, timestep, *args, **kwargs)
