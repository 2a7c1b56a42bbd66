"""Cost of assigning anchors: counted FLOPs, and time beside k-means."""

from __future__ import annotations

import math
import time
from math import prod

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from vala_research.methods import keyframes as frames_by
from vala_research.methods.anchors import (
    Anchors,
    AnchorSettings,
    assign_anchors,
    covering_frames,
    unit_tokens,
)
from vala_research.methods.contrastive import frame_summaries
from vala_research.methods.mixture import maximised


def latent_tokens(pipe, frames: Float[Tensor, "f c h w"]) -> Float[Tensor, "f n d"]:
    """Encode a clip: its clean latents, one token per site."""
    return rearrange(pipe.encode(frames), "f c h w -> f (h w) c")


def assignment_speed(
    features: Float[Tensor, "f n d"],
    n_anchors: int = 8,
    n_keyframes: int = 4,
    repeats: int = 3,
    seed: int = 0,
    stride: int = 8,
) -> dict:
    """Time the assignment beside scikit-learn's KMeans(n_init=1); both have one thread.

    Returns:
        seconds, kmeans_seconds: processor time, the best of `repeats`;
        ratio: KMeans / ours, larger is better;
        distortion, kmeans_distortion: D(S) in [0, 4], on every `stride`-th token, of the key frames
            that our anchors and, by the same rule, KMeans' clusters choose; smaller is better;
        gap, kmeans_gap: mean squared distance of unit tokens to the nearest direction, which KMeans
            minimises and a mixture does not.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    u = unit_tokens(features)
    tokens, settings = u.flatten(0, 1), AnchorSettings(n_anchors, n_keyframes=n_keyframes)
    ours, theirs, n_threads = math.inf, math.inf, torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for _ in range(repeats):
            start = time.process_time()
            anchors = assign_anchors(features, settings)
            middle = time.process_time()
            kmeans = KMeans(n_anchors, n_init=1, random_state=seed).fit(tokens.numpy())
            ours = min(ours, middle - start)
            theirs = min(theirs, time.process_time() - middle)
    torch.set_num_threads(n_threads)

    # Clusters become anchors, so that one rule chooses the key frames of both.
    labels = torch.from_numpy(kmeans.labels_).long().unflatten(0, u.shape[:2])
    clusters = _hard_anchors(u, F.one_hot(labels, n_anchors).to(u), settings.dirichlet)
    row = {"seconds": ours, "kmeans_seconds": theirs, "ratio": theirs / ours}
    for name, each in (("", anchors), ("kmeans_", clusters)):
        quality = _quality(u, each, n_keyframes, stride)
        row |= {f"{name}{measure}": value for measure, value in quality.items()}
    return row


def _quality(u: Float[Tensor, "f n d"], anchors: Anchors, n_keyframes: int, stride: int) -> dict:
    """D(S) of the key frames that anchors choose, and the gap of unit tokens to directions."""
    cost = frames_by.token_costs(u[:, ::stride]).flatten(0, 1)
    keyframes = covering_frames(anchors, n_keyframes)
    nearest = (u.flatten(0, 1) @ anchors.directions.T).amax(-1)
    return {
        "distortion": frames_by.set_cost(cost, torch.ones_like(cost[:, 0]), keyframes),
        "gap": float((2 - 2 * nearest).mean()),
    }


def _hard_anchors(
    u: Float[Tensor, "f n d"], r: Float[Tensor, "f n k"], dirichlet: float
) -> Anchors:
    """Turn clusters into anchors."""
    m = maximised(r.flatten(0, 1).T.contiguous(), u.flatten(0, 1), dirichlet)
    directions, kappa, weights = (x.to(u) for x in (m.directions, m.concentrations, m.counts))
    return Anchors(r, directions, kappa, weights / weights.sum(), frame_summaries(u, r), [])


# Upper bound of one elementary operation on one element: an exponential in software.
FLOPS_PER_ELEMENT = 20


class ElementCounter(TorchDispatchMode):
    """Count elements that operations other than counted products read or write, views included."""

    def __init__(self):
        super().__init__()
        self.n_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket not in flop_registry:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.n_elements += max((prod(x.shape) for x in tensors), default=0)
        return out


def assignment_flops(
    features: Float[Tensor, "f n d"],
    settings: AnchorSettings = AnchorSettings(),
) -> dict[str, int]:
    """Count the work of `assign_anchors` on these features.

    products: FLOPs of its matrix products. elements: of all else, the largest tensor of each
    operation. flops: an upper bound, products and FLOPS_PER_ELEMENT for each element.
    """
    with FlopCounterMode(display=False) as counter, ElementCounter() as rest:
        assign_anchors(features, settings)
    products = counter.get_total_flops()
    return {
        "products": products,
        "elements": rest.n_elements,
        "flops": products + FLOPS_PER_ELEMENT * rest.n_elements,
    }
