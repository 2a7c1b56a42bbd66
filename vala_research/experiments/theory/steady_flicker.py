"""Where flicker costs nothing: frame-by-frame networks and one noise. Elsewhere: measured.

A part of notebook 40. Frames A, B, A, B have features a, b, a, b if a network maps equal frames to
equal features. It does so if every frame sees its own tokens, or tokens that all frames share, and
if all frames carry one noise. Attention to the previous frame and a noise per frame break this.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vala_research import InputError
from vala_research.diffusion.injection import attention_patches
from vala_research.evaluation.cases import Case
from vala_research.evaluation.probes import decoder_layers, feature_maps
from vala_research.evaluation.verdicts import Claim
from vala_research.methods.temporal import frame_similarity, temporal_consistency_loss
from vala_research.sprites.render import render
from vala_research.sprites.scene import WORLD, World, random_scene, split_generator

ALIKE = ("own", "first", "extended")  # attention that maps equal frames to equal features
ZERO = 1e-10  # float32 noise of a loss of 0
KEYS = ["attention", "noise", "t"]


def flicker_kinds(
    clip: Float[Tensor, "f 3 y x"], other: Float[Tensor, "f_ 3 y_ x_"]
) -> dict[str, Float[Tensor, "f 3 y x"]]:
    """Derive three clips: "moving", "one change" and "flicker".

    "moving" is the clip itself. "one change" has its second half edited. "flicker" repeats the
    first frame, edited in every other frame. other: the same frames, edited.
    Raises InputError for shapes that differ or fewer than 3 frames.
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
    n: int, world: World = WORLD, n_frames: int = 8, size: int = 64
) -> list[dict[str, Case]]:
    """`flicker_kinds` of n test clips of the sprite world.

    The edit changes the background, to white, or to blue where it is white.
    """
    cases = []
    for i in range(n):
        scene = random_scene(split_generator("test", i), world=replace(world, empty=0.0))
        colour = "blue" if scene.background == "white" else "white"
        pair = (scene, scene.edited(background=colour, pattern="plain"))
        clip, other = (render(s, n_frames, size).frames for s in pair)
        kinds = flicker_kinds(clip, other)
        cases.append({k: Case(x, scene.caption, "", seed=i) for k, x in kinds.items()})
    return cases


def setting_rows(
    pipe: Any,
    clips: Iterable[Mapping[str, Case]],
    attentions: Sequence[str] = (*ALIKE, "sparse_causal"),
    times: Sequence[int] = (501, 901),
) -> list[dict]:
    """Measure L of the moving and the flickering clip: one row per clip, kind and setting.

    attentions: tried at t = 1 with one noise for all frames. times: timesteps tried frame by frame
    ("own") with a noise per frame, as in training. L is the mean over hook sites.
    """
    settings = [(name, "shared", 1) for name in attentions] + [("own", "own", t) for t in times]
    rows = []
    for i, kinds in enumerate(tqdm(list(clips), "settings", disable=None)):
        for attention, noise, t in settings:
            for kind in ("moving", "flicker"):
                view = kinds[kind].views(pipe, t, noise)["without"]
                patches = attention_patches(view.unet, attention, 1, len(view.z))
                sites = list(decoder_layers(view.unet).values())
                features = [x.flatten(1).cpu().double() for x in
                            feature_maps(view, sites, *patches).values()]  # fmt: skip
                losses = [temporal_consistency_loss(x).item() for x in features]
                alike = [frame_similarity(x).mean().item() for x in features]
                row = {"clip": i, "kind": kind, "attention": attention, "noise": noise, "t": t}
                row |= {"loss": sum(losses) / len(losses), "similarity": sum(alike) / len(alike)}
                rows.append(row)
    return rows


def setting_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean L of both kinds, and the clips in which flicker costs less; one row per setting."""
    losses = _losses(rows)
    lower = (losses.flicker < losses.moving).groupby(KEYS, sort=False).sum()
    means = losses.groupby(KEYS, sort=False).mean()
    means["clips with less L for flicker"] = [f"{n} of {losses.groupby(KEYS).size().iloc[0]}"
                                              for n in lower]  # fmt: skip
    return means


def setting_claims(rows: pd.DataFrame) -> list[Claim]:
    """Flicker costs 0 where equal frames have equal features, and something elsewhere."""
    losses = _losses(rows).reset_index()
    is_shared = losses.noise == "shared"
    alike = losses[is_shared & losses.attention.isin(ALIKE)]
    causal = losses[is_shared & (losses.attention == "sparse_causal")]
    noisy = losses[~is_shared]
    share = (noisy.flicker < noisy.moving).mean()
    largest, least = alike.flicker.max(), causal.flicker.min()
    return [
        Claim.of_fact("one noise, own, first and extended attention: L of flicker is 0",
                      "largest L", largest, largest < ZERO, len(alike)),
        Claim.of_fact("one noise, attention to the previous frame: L of flicker is not 0",
                      "least L", least, least > ZERO, len(causal)),
        Claim.of_fact("a noise per frame: flicker does not cost less in every clip",
                      "share of clips", share, share < 1, len(noisy)),
    ]  # fmt: skip


def _losses(rows: pd.DataFrame) -> pd.DataFrame:
    """L per clip and setting, one column per kind."""
    return rows.set_index([*KEYS, "clip", "kind"]).loss.unstack("kind")[["flicker", "moving"]]
