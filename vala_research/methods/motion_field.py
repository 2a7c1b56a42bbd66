"""Motion field: the noise of the first frame moves on from frame to frame.

Khachatryan et al. 2023, Text2Video-Zero (arXiv 2303.13439), section 3.3.1, Eqs. (7) and (8).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research.methods.optical_flow import warp


def global_motion(
    n_frames: int, step: tuple[float, float], height: int, width: int
) -> Float[Tensor, "f 2 h w"]:
    """A translation that grows by `step` = (dx, dy) sites per frame; none for the first frame."""
    flow = torch.arange(n_frames)[:, None] * torch.tensor(step)
    return flow[:, :, None, None].expand(-1, -1, height, width)


def warp_noise(
    noise: Float[Tensor, "c h w"], flow: Float[Tensor, "f 2 h w"]
) -> Float[Tensor, "f c h w"]:
    """One frame of latents moved along the flow of each frame, by its nearest site.

    flow: sites that the content moves, dx first. Content that enters is mirrored at the border.
    The nearest site keeps the values, so that noise stays noise.
    """
    moved = noise.expand(len(flow), -1, -1, -1)
    return warp(moved, -flow.to(noise), "nearest", "reflection")
