"""A frame as one token: what its latents are, wherever they are in the frame."""

import torch
from jaxtyping import Float
from torch import Tensor


def frame_descriptors(latents: Float[Tensor, "f c h w"]) -> Float[Tensor, "f 1 d"]:
    """Means and centred second moments of the latent channels: d = c + c (c + 1) / 2.

    Neither moves with the object, while shots differ in both.
    """
    x = latents.flatten(2)
    mean = x.mean(-1, keepdim=True)
    moments = (x - mean) @ (x - mean).transpose(1, 2) / x.shape[-1]
    i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    return torch.cat([mean[..., 0], moments[:, i, j]], -1)[:, None]
