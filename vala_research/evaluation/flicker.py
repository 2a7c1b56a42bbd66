"""A clip that flickers steadily has less temporal loss than the same clip moving; repaired, more.

The loss is (22) of arXiv 2504.16016, of features that the training of GE-Adapter (arXiv 2501.04606)
reads; repaired, it is L + w mean(1 - s_t). Why: theory/README.md, A6.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vala_research import InputError
from vala_research.data.sprites import World, random_scene, render, split_generator
from vala_research.evaluation.alignment import Case, short_name
from vala_research.evaluation.probes import decoder_layers, feature_maps
from vala_research.methods.temporal import frame_similarity, temporal_consistency_loss

KINDS = ("moving", "one change", "flicker")


def flicker_kinds(
    clip: Float[Tensor, "f 3 y x"], other: Float[Tensor, "f_ 3 y_ x_"]
) -> dict[str, Float[Tensor, "f 3 y x"]]:
    """The clip; the clip with its second half edited; its first frame, edited in every other frame.

    other: the same frames, edited. Raises InputError for shapes that differ or fewer than 3 frames.
    """
    if clip.shape != other.shape or len(clip) < 3:
        raise InputError(
            f"A clip of shape {tuple(clip.shape)} and an edit of shape {tuple(other.shape)}: give "
            "two of one shape, of at least 3 frames."
        )
    number = torch.arange(len(clip), device=clip.device)[:, None, None, None]
    return {
        "moving": clip,
        "one change": torch.where(number < len(clip) // 2, clip, other),
        "flicker": torch.where(number % 2 == 0, clip[:1], other[:1]),
    }


def sprite_flicker(
    n: int, world: World, n_frames: int = 8, size: int = 64
) -> list[dict[str, Case]]:
    """`flicker_kinds` of test clips of the sprite world; edited: the background, white or blue."""
    cases = []
    for i in range(n):
        scene = random_scene(split_generator("test", i), world=replace(world, empty=0.0))
        colour = "blue" if scene.background == "white" else "white"
        pair = (scene, scene.edited(background=colour, pattern="plain"))
        clip, other = (render(s, n_frames, size).frames for s in pair)
        kinds = flicker_kinds(clip, other)
        cases.append({k: Case(x, scene.caption, "", seed=i) for k, x in kinds.items()})
    return cases


def flicker_rows(
    pipe: Any, clips: Iterable[Mapping[str, Case]], t: int = 1, flicker_weight: float = 1.0
) -> list[dict]:
    """One row a clip, kind and hook site: loss, repaired loss, mean similarity of its features.

    t: of the noise added, one noise for all frames: so that frames differ by the clip alone.
    """
    rows = []
    for i, kinds in enumerate(tqdm(list(clips), "clips", disable=None)):
        for kind, case in kinds.items():
            view = case.views(pipe, t, "shared")["without"]
            sites = list(decoder_layers(view.unet).values())
            for site, x in feature_maps(view, sites).items():
                x = x.flatten(1).double()
                paper, repaired = (
                    temporal_consistency_loss(x, flicker_weight=w).item()
                    for w in (0.0, flicker_weight)
                )
                similarity = frame_similarity(x).mean().item()
                rows.append(
                    {"clip": i, "kind": kind, "site": short_name(site), "loss": paper,
                     "repaired": repaired, "similarity": similarity}
                )  # fmt: skip
    return rows
