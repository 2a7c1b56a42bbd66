"""Optical flow: estimate it, and move pictures along it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vala_research import InputError


def warp(
    image: Float[Tensor, "f c h w"], flow: Float[Tensor, "f 2 h w"], mode: str = "bilinear",
    padding_mode: str = "border",
) -> Float[Tensor, "f c h w"]:  # fmt: skip
    """image(p + flow(p)); pixel centres at whole numbers.

    flow: pixels, dx first. mode, padding_mode: as in `torch.nn.functional.grid_sample`.
    """
    h, w = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    at = torch.stack([x, y]).to(flow) + flow  # f 2 h w, pixels
    # align_corners=False: -1 is the left edge of pixel 0, so pixel i lies at (2 i + 1) / n - 1.
    size = torch.tensor([w, h]).to(flow)[:, None, None]
    grid = ((2 * at + 1) / size - 1).permute(0, 2, 3, 1)
    return F.grid_sample(image, grid, mode, padding_mode, align_corners=False)


def estimate_flow(
    frames: Float[Tensor, "f 3 h w"], tolerance: float = 1.0
) -> tuple[Float[Tensor, "p 2 h w"], Bool[Tensor, "p 1 h w"]]:
    """Flow t -> t+1 in pixels (dx first) by OpenCV's DIS (Kroeger et al. 2016), and its validity.

    Valid: inside the next frame, and forward then backward returns to within `tolerance` pixels,
    |flow(p) + back(p + flow(p))| < tolerance. Raises InputError for frames of under 16 pixels.
    """
    import cv2

    if min(frames.shape[-2:]) < 16:
        raise InputError(f"frames are {tuple(frames.shape[-2:])}: DIS needs 16x16 pixels or more.")
    grey = (frames.float().cpu().mean(1).clamp(0, 1) * 255).round().byte().numpy()
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flows(first, second):
        fields = [dis.calc(a, b, None) for a, b in zip(first, second, strict=True)]
        return torch.from_numpy(np.stack(fields)).permute(0, 3, 1, 2).contiguous()

    there, back = flows(grey[:-1], grey[1:]), flows(grey[1:], grey[:-1])
    returned = (there + warp(back, there)).norm(dim=1, keepdim=True) < tolerance
    h, w = frames.shape[-2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    at = torch.stack([x, y]) + there
    limit = torch.tensor([w - 1, h - 1])[:, None, None]
    return there, returned & ((at >= 0) & (at <= limit)).all(1, keepdim=True)
