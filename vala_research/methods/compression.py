"""Compress a clip by its anchors to K maps or K tokens, which every frame can afford to attend to.

VALA (arXiv 2510.22970) regroups the l latents of a site to a few. The weights come from the
assignment, once per clip, so that a layer pays one small matrix product.
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
    """Compute the weights of each anchor over frames (site) or over all tokens (token).

    Granularity "site": weights sum to 1 over frames, at every site. At a site where an anchor
    explains nothing, the frames are weighted by the anchor's mass in them.
    Granularity "token": weights sum to 1 over all tokens.
    grid: h x w sites on which the responsibilities were found.
    n_tokens: sites of the layer; the responsibilities are averaged down to them.
    Raises InputError when the layer's grid is no reduction of `grid`.
    """
    r = reduced(anchors, grid, n_tokens)

    # Normalise. A little mass per frame keeps empty sites defined.
    if anchors.granularity == "token":
        return r / r.sum((1, 2), keepdim=True).clamp_min(1e-12)
    r = r + 1e-3 * anchors.mass.T[:, :, None] / anchors.mass.sum(0)[:, None, None].clamp_min(1e-12)
    return r / r.sum(1, keepdim=True).clamp_min(1e-12)


def counts_of(
    anchors: Anchors, grid: tuple[int, int], n_tokens: int
) -> Float[Tensor, "k n"] | Float[Tensor, " k"]:
    """Count the frames that each anchor stands for at each site of a layer, at least 0.01.

    Granularity "token": the tokens of all frames that it stands for. The counts of all anchors sum
    to the number of frames, or of tokens. Arguments: as `compression_weights`.
    """
    r = reduced(anchors, grid, n_tokens)
    return r.sum(1 if anchors.granularity == "site" else (1, 2)).clamp_min(1e-2)


def reduced(anchors: Anchors, grid: tuple[int, int], n_tokens: int) -> Float[Tensor, "k f n"]:
    """Average the responsibilities down to the sites of a layer.

    Raises InputError when the layer's grid is no reduction of `grid`.
    """
    # The layer's grid has the shape of the latents' grid.
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
    return F.adaptive_avg_pool2d(r, size).flatten(2)  # k f n
