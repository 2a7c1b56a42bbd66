"""Fit frames to a size; CLIP's normalisation constants."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Mean and standard deviation of the pixels that OpenAI's CLIP models were trained on.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def fit_to_size(
    frames: Float[Tensor, "f c h w"], size: tuple[int, int]
) -> Float[Tensor, "f c height width"]:
    """Scale until `size` is covered (antialiased bicubic), then crop at the centre.

    The longer side is rounded down, as CLIP's preprocessing does (torchvision, transformers).
    """
    h, w = frames.shape[-2:]
    if size == (h, w):
        return frames

    # One side is met, the other one is covered.
    meets_height = size[0] * w >= size[1] * h
    cover = (size[0], size[0] * w // h) if meets_height else (size[1] * h // w, size[1])
    frames = F.interpolate(frames, cover, mode="bicubic", antialias=True).clamp(0, 1)

    top, left = (cover[0] - size[0]) // 2, (cover[1] - size[1]) // 2
    return frames[..., top : top + size[0], left : left + size[1]].contiguous()
