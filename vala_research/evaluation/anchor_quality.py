"""How good an assignment is, where the right answer is known or can be enumerated."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.data.sprites import SpriteClip, World, random_scene, render, split_generator
from vala_research.methods import keyframes as frames_by
from vala_research.methods.anchors import (
    KEYFRAME_METHODS,
    Anchors,
    AnchorSettings,
    assign_anchors,
    covering_frames,
    select_keyframes,
    unit_tokens,
)
from vala_research.methods.contrastive import frame_summaries
from vala_research.methods.descriptors import frame_descriptors
from vala_research.methods.mixture import maximised


def sprite_clips(
    n_clips: int, world: World, split: str = "test", n_frames: int = 16, size: int = 64
) -> Iterator[SpriteClip]:
    """Clips of a split; clip i has i mod 5 hard cuts."""
    for i in range(n_clips):
        scene = random_scene(split_generator(split, i), n_cuts=i % 5, world=world)
        yield render(scene, n_frames, size)


def latent_tokens(pipe, frames: Float[Tensor, "f c h w"]) -> Float[Tensor, "f n d"]:
    """The clean latents of a clip, a token a site."""
    return rearrange(pipe.encode(frames), "f c h w -> f (h w) c")


def keyframe_excess(
    clips: Iterable[Float[Tensor, "f n d"]],
    n_keyframes: int = 4,
    methods: Iterable[str] = KEYFRAME_METHODS,
    generator: torch.Generator | None = None,
) -> list[dict]:
    """What each method's key frames lose beyond the best set: excess = D(S) / D(optimal) - 1.

    Rows of clip, method, distortion (D in [0, 4]) and excess; smaller is better, 0 is optimal.
    """
    rows = []
    for clip, features in enumerate(clips):
        cost = frames_by.token_costs(unit_tokens(features)).flatten(0, 1)
        weight = torch.ones_like(cost[:, 0])
        best = frames_by.optimal_set(cost, weight, n_keyframes)
        least = frames_by.set_cost(cost, weight, best)
        for method in methods:
            found = best
            if method != "optimal":
                found = select_keyframes(features, n_keyframes, method, generator)
            loss = frames_by.set_cost(cost, weight, found)
            excess = loss / least - 1 if least > 0 else math.inf if loss > 0 else 0.0
            rows.append({"clip": clip, "method": method, "distortion": loss, "excess": excess})
    return rows


def scene_counts(
    n_clips: int,
    pipe,
    world: World = World(),  # noqa: B008 - frozen
    split: str = "test",
    n_frames: int = 16,
    size: int = 64,
    settings: AnchorSettings = AnchorSettings(),  # noqa: B008 - frozen
) -> list[dict]:
    """Does the number of anchors of whole frames equal the number of shots?

    Rows of clip, scenes (the truth: 1 to 5 in turn) and found (`n_effective` of the frames'
    descriptors of clean latents).
    """
    rows = []
    for i, clip in enumerate(sprite_clips(n_clips, world, split, n_frames, size)):
        found = assign_anchors(frame_descriptors(pipe.encode(clip.frames)), settings).n_effective
        rows.append({"clip": i, "scenes": int(clip.scene_index.max()) + 1, "found": found})
    return rows


def assignment_speed(
    features: Float[Tensor, "f n d"],
    n_anchors: int = 8,
    n_keyframes: int = 4,
    repeats: int = 3,
    seed: int = 0,
    stride: int = 8,
) -> dict:
    """Processor seconds of the assignment beside scikit-learn's KMeans(n_init=1), best of several.

    ratio: KMeans / ours, larger is better. distortion, kmeans_distortion: D(S) in [0, 4], on every
    `stride`-th token, of the key frames chosen from our anchors and, by the same rule, from KMeans'
    clusters; smaller is better. gap, kmeans_gap: mean squared distance of unit tokens to the
    nearest direction, which KMeans minimises and a mixture does not. Both have one thread.
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

    labels = torch.from_numpy(kmeans.labels_).long().unflatten(0, u.shape[:2])
    clusters = _hard_anchors(u, F.one_hot(labels, n_anchors).to(u), settings.dirichlet)
    cost = frames_by.token_costs(u[:, ::stride]).flatten(0, 1)
    found = {"seconds": ours, "kmeans_seconds": theirs, "ratio": theirs / ours}
    for name, a in (("", anchors), ("kmeans_", clusters)):
        chosen = covering_frames(a, n_keyframes)
        found[f"{name}distortion"] = frames_by.set_cost(cost, torch.ones_like(cost[:, 0]), chosen)
        found[f"{name}gap"] = float((2 - 2 * (tokens @ a.directions.T).amax(-1)).mean())
    return found


def _hard_anchors(
    u: Float[Tensor, "f n d"], r: Float[Tensor, "f n k"], dirichlet: float
) -> Anchors:
    """Anchors of given clusters."""
    m = maximised(r.flatten(0, 1).T.contiguous(), u.flatten(0, 1), dirichlet)
    directions, kappa, weights = (x.to(u) for x in (m.directions, m.concentrations, m.counts))
    return Anchors(r, directions, kappa, weights / weights.sum(), frame_summaries(u, r), [])


def object_purity(anchors: Anchors, mask: Float[Tensor, "f 1 h w"]) -> dict:
    """How the anchors split object and background; the mask is averaged down to the latent grid.

    share: of each anchor's mass, the part on the object (nan where it has none). purity: share of
    all tokens that an anchor's majority side explains; base: the same with one anchor. information:
    between anchor and side, as a share of the entropy of the side, in [0, 1]; larger is better.
    """
    r = anchors.responsibilities  # f n k
    side = math.sqrt(r.shape[1])
    if side != int(side):
        raise InputError(f"Anchors of {r.shape[1]} sites are on no square grid: use square clips.")
    inside = F.adaptive_avg_pool2d(mask.to(r), int(side)).flatten(1)  # f n
    joint = torch.stack([torch.einsum("fn,fnk->k", x, r) for x in (inside, 1 - inside)])
    joint = joint / joint.sum()  # side k
    by_side, by_anchor = joint.sum(1), joint.sum(0)
    entropy = torch.special.entr(by_side).sum()
    mutual = entropy + torch.special.entr(by_anchor).sum() - torch.special.entr(joint).sum()
    return {
        "share": (joint[0] / by_anchor).tolist(),
        "purity": float(joint.amax(0).sum()),
        "base": float(by_side.max()),
        "information": float(mutual / entropy) if entropy > 0 else math.nan,
    }
