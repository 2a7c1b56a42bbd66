"""ControlNets: load one, make its control pictures from frames, add its residuals to a UNet.

ControlNet (Zhang et al. 2023, arXiv 2302.05543) keeps the layout of a frame by a picture of it.
"""

from os import PathLike
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from jaxtyping import Float
from skimage.color import rgb2gray
from skimage.feature import canny
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.backbone import device_of
from vala_research.diffusion.loading import load_network


def canny_edges(frames: Float[Tensor, " f 3 h w"], sigma: float = 1.0) -> Float[Tensor, " f 3 h w"]:
    """White outlines on black, by the Canny detector of scikit-image after a blur of sigma pixels.

    Differs from paper: the detector of OpenCV, on 8-bit frames with thresholds of 100 and 200, does
    not blur and finds somewhat more edges.
    """
    grey = rgb2gray(frames.detach().cpu().double().numpy(), channel_axis=1)
    edges = torch.stack([torch.from_numpy(canny(frame, sigma)) for frame in grey])
    return edges[:, None].expand(-1, 3, -1, -1).to(frames)


def load_controlnet(where: str | PathLike, unet: UNet2DConditionModel) -> ControlNetModel:
    """Load a ControlNet from a folder or hub id, on the device and in the precision of `unet`.

    Raises InputError when it cannot be read as safetensors, or was made for a UNet of other widths.
    """
    remedy = "give the folder or hub id of a diffusers ControlNetModel with safetensors weights."
    controlnet = load_network(
        ControlNetModel, where, f"The ControlNet {str(where)!r}", remedy, unet.dtype
    )
    for key in ("in_channels", "cross_attention_dim", "block_out_channels"):
        theirs, ours = controlnet.config[key], unet.config[key]
        theirs, ours = (list(x) if isinstance(x, tuple) else x for x in (theirs, ours))
        if theirs != ours:
            raise InputError(
                f"The ControlNet {str(where)!r} has {key} {theirs} and the UNet {ours}: give one "
                "that was trained for this UNet."
            )
    return controlnet.to(device_of(unet))


def control_residuals(
    controlnet: ControlNetModel, x: Float[Tensor, "g f c h w"], t: int,
    text: Float[Tensor, "g n d"], control: Float[Tensor, "f 3 y x"], scale: float,
) -> dict[str, Any]:  # fmt: skip
    """The residuals of a ControlNet, by the names of the UNet's arguments."""
    g, f = x.shape[:2]
    dtype = controlnet.dtype
    down, mid = controlnet(
        x.flatten(0, 1).to(dtype), t, text[:, None].expand(-1, f, -1, -1).flatten(0, 1).to(dtype),
        control.repeat(g, 1, 1, 1).to(dtype), conditioning_scale=scale, return_dict=False,
    )  # fmt: skip
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
