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
    """Scale until `size` is covered (antialiased bicubic), then crop at the centre."""
    h, w = frames.shape[-2:]
    if size == (h, w):
        return frames

    scale = max(size[0] / h, size[1] / w)
    cover = (max(size[0], round(h * scale)), max(size[1], round(w * scale)))
    frames = F.interpolate(frames, cover, mode="bicubic", antialias=True).clamp(0, 1)

    top, left = (cover[0] - size[0]) // 2, (cover[1] - size[1]) // 2
    return frames[..., top : top + size[0], left : left + size[1]].contiguous()
