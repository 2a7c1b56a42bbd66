"""Anchors compress a clip to what every frame can afford to attend to: K maps, or K tokens.

VALA (arXiv 2510.22970) regroups l latents of a site to a few; the weights come from the assignment
once a clip, so that a layer pays one small matrix product.
"""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.methods.anchors import Anchors


def compression_weights(
    anchors: Anchors, grid: tuple[int, int], n_tokens: int
) -> Float[Tensor, "k f n"]:
    """Weights over frames (site: they sum to 1 at every site) or over all tokens (token).

    The responsibilities, found on a `grid` of h x w sites, are averaged down to a layer of
    `n_tokens`. At a site where an anchor explains nothing, it takes the frames by its mass in them.
    Raises InputError when the layer is no such grid.
    """
    n = anchors.responsibilities.shape[1]
    h, w = grid
    factor = math.sqrt(n / n_tokens)
    size = round(h / factor), round(w / factor)
    if h * w != n or size[0] * size[1] != n_tokens:
        raise InputError(
            f"A layer of {n_tokens} tokens does not fit anchors of {n} ({h} x {w}): find them "
            "on the latents of the same clip."
        )
    r = anchors.responsibilities.permute(2, 0, 1).unflatten(-1, grid)
    r = F.adaptive_avg_pool2d(r, size).flatten(2)  # k f n
    if anchors.granularity == "token":
        return r / r.sum((1, 2), keepdim=True).clamp_min(1e-12)
    r = r + 1e-3 * anchors.mass.T[:, :, None] / anchors.mass.sum(0)[:, None, None].clamp_min(1e-12)
    return r / r.sum(1, keepdim=True).clamp_min(1e-12)
