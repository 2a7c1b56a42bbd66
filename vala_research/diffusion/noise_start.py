"""Starting from noise: nothing of the clip is kept, but what a ControlNet sees.

Khachatryan et al. 2023, Text2Video-Zero (arXiv 2303.13439), section 3.3: all frames start from one
noise, which may move from frame to frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vala_research import number_in
from vala_research.diffusion.level import Level
from vala_research.methods.motion_field import global_motion, warp_noise


@dataclass(frozen=True)
class NoiseStart:
    """One noise for all frames, in place of an inversion.

    motion: how far the content moves per frame, to the right and down, in sides of the frame.
    share: first share of the steps in which the first frame alone is sampled, before its latents
        are moved and made noisy again. Without it, the noise itself moves.
    """

    motion: tuple[float, float] = (0.0, 0.0)
    share: float = 0.0

    def __post_init__(self):
        number_in("The share of steps before the motion", self.share, 0, 1)

    def moved(self, z: Float[Tensor, "1 c h w"], n_frames: int) -> Float[Tensor, "f c h w"]:
        """The latents of the first frame in all frames."""
        h, w = z.shape[2:]
        step = (self.motion[0] * w, self.motion[1] * h)
        return warp_noise(z[0], global_motion(n_frames, step, h, w).to(z))


def noisy_again(
    z_s: Float[Tensor, "*shape"], eps: Float[Tensor, "*shape"], clean: Level, noisy: Level
) -> Float[Tensor, "*shape"]:
    """Latents of a cleaner level at a noisier one, with fresh noise eps: Eq. (9) of the paper.

    The new noise adds what the level's noise lacks, which is 1 - (a_t / a_s)^2 for diffusion.
    """
    signal = noisy.a / clean.a
    return signal * z_s + math.sqrt(noisy.b**2 - (signal * clean.b) ** 2) * eps
