"""What anchors see, in pixels: who explains a site, where that is uncertain, what is shared.

One colour an anchor, from Okabe and Ito 2008; a site explained by two anchors has a mixed colour.
"""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.evaluation.figures import COLOURS
from vala_research.methods.anchors import Anchors
from vala_research.methods.compression import compression_weights

ENTROPY_COLOURS = "viridis"
TORN = float(np.log(2))  # nats of a site torn between two anchors: the scale's least upper end


def anchor_colours(k: int) -> Float[Tensor, "k 3"]:
    """Colours that all readers can tell for the heaviest eight, then their tints and shades."""
    *others, black = COLOURS
    base = torch.tensor([mpl.colors.to_rgb(c) for c in (*others, "#F0E442", black)])
    tinted = torch.cat([base, 0.5 + 0.5 * base, 0.55 * base])
    return tinted.repeat(-(-k // len(tinted)), 1)[:k]


def responsibility_map(anchors: Anchors, grid: tuple[int, int]) -> Float[Tensor, "f 3 h w"]:
    """Each site in the colours of its anchors, mixed by responsibility."""
    r = anchors.responsibilities.detach().float().cpu()
    colours = anchor_colours(r.shape[-1])
    return rearrange(r @ colours, "f (h w) c -> f c h w", h=grid[0]).clamp(0, 1)


def entropy_map(anchors: Anchors, grid: tuple[int, int]) -> tuple[Float[Tensor, "f 3 h w"], float]:
    """Posterior entropy of each site in a perceptually even scale, and its upper end in nats."""
    entropy = rearrange(anchors.entropy.detach().float().cpu(), "f (h w) -> f h w", h=grid[0])
    top = max(TORN, float(entropy.max()))
    picture = torch.from_numpy(mpl.colormaps[ENTROPY_COLOURS]((entropy / top).numpy()))
    return rearrange(picture[..., :3].float(), "f h w c -> f c h w"), top


def pseudo_frames(
    frames: Float[Tensor, "f 3 y x"], anchors: Anchors, grid: tuple[int, int]
) -> Float[Tensor, "k 3 y x"]:
    """Site anchors in pixels: at each site the weighted mean over frames that attention is given.

    The weights are the editor's own, of latents; applied to pixels they only illustrate.
    """
    weights = compression_weights(replace(anchors, granularity="site"), grid, grid[0] * grid[1])
    weights = rearrange(weights.detach().float().cpu(), "k f (h w) -> k f h w", h=grid[0])
    weights = F.interpolate(weights, frames.shape[-2:], mode="nearest-exact")
    return einsum(weights, frames.float().cpu(), "k f y x, f c y x -> k c y x").clamp(0, 1)


def token_swatches(
    frames: Float[Tensor, "f 3 y x"], anchors: Anchors, grid: tuple[int, int]
) -> Float[Tensor, "k 3"]:
    """Token anchors in pixels: the mean colour of what each explains."""
    weights = compression_weights(replace(anchors, granularity="token"), grid, grid[0] * grid[1])
    pixels = F.interpolate(frames.float().cpu(), grid, mode="area").flatten(2)
    return einsum(weights.detach().float().cpu(), pixels, "k f n, f c n -> k c").clamp(0, 1)


def resized(pictures: Float[Tensor, "f c h w"], longer: int) -> Float[Tensor, "f c y x"]:
    """Longer side about `longer` pixels: a whole factor upwards (squares stay), means downwards."""
    side = max(pictures.shape[-2:])
    factor = max(1, round(longer / side)) if side <= longer else longer / side
    size = [max(1, round(s * factor)) for s in pictures.shape[-2:]]
    mode = "nearest-exact" if side <= longer else "area"
    return F.interpolate(pictures.float().cpu(), size, mode=mode).clamp(0, 1)


def check_anchors(frames: Tensor, anchors: Anchors, grid: tuple[int, int]) -> None:
    """Raises InputError when anchors are not of these frames and this grid, or not finite."""
    f, n, _ = anchors.responsibilities.shape
    if len(frames) != f or grid[0] * grid[1] != n:
        raise InputError(
            f"The anchors are of {f} frames with {n} sites, the clip has {len(frames)} frames and "
            f"the grid {grid[0]} x {grid[1]}: give the frames and the grid they were found on."
        )
    if not torch.isfinite(anchors.responsibilities).all():
        raise InputError(
            "The anchors' responsibilities hold NaN: change the settings they come of."
        )


def shares(anchors: Anchors) -> list[float]:
    """The part of the clip's tokens that each anchor explains."""
    mass = anchors.mass.sum(0)
    return (mass / mass.sum()).tolist()
