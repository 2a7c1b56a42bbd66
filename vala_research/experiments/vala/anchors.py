"""How good an assignment is, where the right answer is known or can be enumerated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import Tensor

from vala_research import InputError
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.methods import keyframes as frames_by
from vala_research.methods.anchors import (
    KEYFRAME_METHODS,
    Anchors,
    AnchorSettings,
    assign_anchors,
    select_keyframes,
    unit_tokens,
)
from vala_research.sprites.render import SpriteClip, render
from vala_research.sprites.scene import World, random_scene, split_generator


def sprite_clips(
    n_clips: int, world: World, split: str = "test", n_frames: int = 16, size: int = 64
) -> Iterator[SpriteClip]:
    """Clips of a split; clip i has i mod 5 hard cuts."""
    for i in range(n_clips):
        scene = random_scene(split_generator(split, i), n_cuts=i % 5, world=world)
        yield render(scene, n_frames, size)


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
    world: World = World(),
    split: str = "test",
    n_frames: int = 16,
    size: int = 64,
    settings: AnchorSettings = AnchorSettings(),
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


def effective_anchors(
    clips: Iterable[Float[Tensor, "f n d"]],
    priors: Iterable[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    n_anchors: Iterable[int] = (4, 8, 16),
    settings: AnchorSettings = AnchorSettings(),
) -> list[dict]:
    """Rows of clip, n_anchors (the upper bound), dirichlet (the prior a0) and n_effective."""
    rows = []
    for clip, features in enumerate(clips):
        for k, a0 in product(n_anchors, priors):
            given = replace(settings, n_anchors=k, dirichlet=a0)
            found = assign_anchors(features, given).n_effective
            rows.append({"clip": clip, "n_anchors": k, "dirichlet": a0, "n_effective": found})
    return rows


def effective_anchors_curve(rows: list[dict], ax: Axes, n_shots: float | None = None) -> None:
    """Effective number of anchors against the prior, a line for each bound; grey: the shots.

    Mean and 95% bootstrap interval over clips. Where bounds agree, the tighter is the wider line.
    """
    import seaborn as sns

    if not rows:
        raise InputError("There are no rows: give those of effective_anchors.")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    bounds = sorted(set(columns["n_anchors"]))
    sns.lineplot(columns, x="dirichlet", y="n_effective", hue="n_anchors", size="n_anchors",
                 palette=COLOURS[: len(bounds)], sizes=np.geomspace(4, 1, len(bounds)).tolist(),
                 size_order=bounds, marker="o", seed=0, ax=ax)  # fmt: skip
    if n_shots is not None:
        ax.axhline(n_shots, color="#999999", linewidth=7, zorder=0, alpha=0.4, label="shots")
    ax.set(xscale="log", xlabel="prior a0", ylabel="effective anchors", ylim=(0, 1.1 * bounds[-1]))
    ax.minorticks_off()
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.legend(title="at most")


def keyframe_excess_strip(rows: list[dict], ax: Axes) -> None:
    """Excess of D(S) over the best set in percent, a dot a clip and method; the bar is the median.

    rows: of `anchor_quality.keyframe_excess`, which name clip, method and excess. The axis is
    linear up to 1%.
    """
    import seaborn as sns

    if not rows:
        raise InputError("There are no rows: give those of keyframe_excess.")
    percent: dict[str, list[float]] = {}
    for row in rows:
        percent.setdefault(row["method"], []).append(100 * row["excess"])
    columns = {"method": [name for name, values in percent.items() for _ in values],
               "excess": [value for values in percent.values() for value in values]}  # fmt: skip
    sns.stripplot(columns, x="excess", y="method", size=2.5, alpha=0.5, color=COLOURS[0],
                  jitter=0.25, ax=ax)  # fmt: skip
    medians = [float(np.median(values)) for values in percent.values()]
    ax.scatter(medians, range(len(medians)), marker="|", s=120, color="black", zorder=5)
    ax.set_xscale("symlog", linthresh=1)
    ax.set(xlabel="D(S) above the best set, %", ylabel="", xlim=(-0.3, None))


def counted(
    effective: Mapping[str, list[dict]], excess: list[dict], n_shots: float | None = None
) -> Picture:
    """Effective anchors of each kind of descriptor beside the excess of key frames.

    effective: title -> rows of `effective_anchors`; n_shots belongs to the first.
    """
    with rc_context(STYLE):
        fig = Picture(figsize=(2.3 * (len(effective) + 1), 2.3), layout="constrained")
        *axes, last = fig.subplots(1, len(effective) + 1)
        for i, (ax, (title, rows)) in enumerate(zip(axes, effective.items(), strict=True)):
            effective_anchors_curve(rows, ax, None if i else n_shots)
            ax.set_title(title)
            if i:  # the colours are the first panel's
                ax.get_legend().remove()
                ax.set_ylabel("")
        keyframe_excess_strip(excess, last)
        last.set_title("key frames")
    return fig


def frame_descriptors(latents: Float[Tensor, "f c h w"]) -> Float[Tensor, "f 1 d"]:
    """Means and centred second moments of the latent channels: d = c + c (c + 1) / 2.

    Neither moves with the object, while shots differ in both.
    """
    x = latents.flatten(2)
    mean = x.mean(-1, keepdim=True)
    moments = (x - mean) @ (x - mean).transpose(1, 2) / x.shape[-1]
    i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    return torch.cat([mean[..., 0], moments[:, i, j]], -1)[:, None]
