"""Notebook 51: site anchors in place of the native attention of a video transformer.

A video transformer lets all frames meet. A policy restricts it: own frame, key frames, or own frame
and site anchors (VALA, arXiv 2510.22970), whose keys are averages of rotated keys. What that costs
in quality is measured on the miniature's flow model; what it saves is counted on Wan 2.1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure

from vala_research.diffusion.attention import Keyframes
from vala_research.diffusion.difference import DifferenceEdit
from vala_research.evaluation.comparison_figures import gains_figure
from vala_research.evaluation.comparison_tables import comparison_table, in_units
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import Picture, drawn
from vala_research.evaluation.flops import WAN_1_3B, WAN_14B, forward_flops, meta_policy, meta_wan
from vala_research.evaluation.verdicts import CONFIRMED, Claim, Hypothesis, completeness, tested
from vala_research.experiments.contract import CLIP, POINT, PUBLISHED, WAN, LaterClipsPreset
from vala_research.experiments.flow.editing import kept_background
from vala_research.methods.anchors import AnchorSettings

NATIVE = "all frames"
POLICIES = {
    NATIVE: "extended", "own": "own", "own and 2 key frames": Keyframes("uniform", 2),
    "own and 1 anchor": AnchorSettings(n_anchors=1), "own and 2 anchors": AnchorSettings(2),
    "own and 4 anchors": AnchorSettings(4),
}  # fmt: skip
WANS = {"Wan 1.3B": WAN_1_3B, "Wan 14B": WAN_14B}
CLIPS = {"41 frames, 480p": (11, 60, 104), "81 frames, 480p": (21, 60, 104),
         "81 frames, 720p": (21, 90, 160)}  # latent frames, height, width  # fmt: skip
COUNTED = ("Wan 1.3B", "81 frames, 480p")  # beside the gains
SHOWN = ("psnr", "success", "path_error", "jitter", "warp_error", "background")


@dataclass(frozen=True, kw_only=True)
class Settings(LaterClipsPreset):
    """Parameters of notebook 51."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(policies=(NATIVE, "own", "own and 2 anchors"), n_clips=1, n_frames=3,
                      steps=3),  # fmt: skip
        "sprites": {k: v for k, v in POINT.items() if k != "parts"}
        | dict(n_clips=8, first_clip=112, kinds=("several", "shape"), steps=25),
        "paper": PUBLISHED | dict(model=WAN, clip_model=CLIP, n_frames=41, size=480),
    }
    CHOICES: ClassVar[dict[str, Collection]] = LaterClipsPreset.CHOICES | {"policies": POLICIES}

    model: str = "miniature_flow"  # a video transformer: a folder or a hub id
    policies: Sequence[str] = tuple(POLICIES)  # the first is the baseline
    source_guidance: float = 1.0  # FlowEdit's guidance of the source prompt; 1: none


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """FlowEdit in all steps under each policy."""
    way = DifferenceEdit(1.0, source_guidance=settings.source_guidance)
    return {name: EditSetting(POLICIES[name], way, **settings.sampling)
            for name in settings.policies}  # fmt: skip


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """One row per clip, kind of edit and policy; rows of `comparison.compare`, with background."""
    return settings.compare(edit_settings(settings), output, measure=kept_background)


@cache
def flops() -> pd.DataFrame:
    """FLOPs of a forward of Wan 2.1 over those of the native one: counted, nothing is computed.

    One row per policy; columns are models and clips. The native ones are in TFLOP. All layers cost
    the same, so that networks of one and of two layers tell the cost of any number.
    """
    counts: dict[str, Mapping[str, float]] = {}
    for model, config in WANS.items():
        one, two = (meta_wan(config | {"num_layers": n}) for n in (1, 2))
        for clip, shape in CLIPS.items():
            found = {}
            for name, policy in POLICIES.items():
                asked = meta_policy(policy, *shape), *shape
                first, both = (forward_flops(m, *asked, n_text=512) for m in (one, two))
                found[name] = first + (config["num_layers"] - 1) * (both - first)
            native = found[NATIVE]
            relative = {name: count / native for name, count in found.items()}
            counts[f"{model}, {clip}"] = {"native, TFLOP": native / 1e12} | relative
    return pd.DataFrame(counts)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means, and gains on all frames, paired by clip; relative FLOPs beside."""
    compared = comparison_table(rows, rows.setting.iloc[0], [m for m in SHOWN if m in rows])
    relative = flops()[", ".join(COUNTED)]
    return compared.assign(flops=compared.setting.map(relative))


@drawn(claim="beats own and 2 anchors, PSNR")
def figure(rows: pd.DataFrame) -> Figure:
    """Gains of every policy on all frames; beside its name its FLOPs over the native ones."""
    compared = table(rows)
    relative = compared.drop_duplicates("setting").set_index("setting").flops.to_dict()
    return gains_figure(compared, relative, ("psnr", "success", "jitter", "warp_error"))


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Asserted: all edits, and the counted savings. Reported: what restrictions cost."""
    stated = [completeness(rows)]
    if stated[0].verdict != CONFIRMED:
        return stated
    native, *others = dict.fromkeys(rows.setting)
    stated += tested(rows, [Hypothesis(f"{native} beats {name}", native, name, SHOWN)
                            for name in others])  # fmt: skip
    if {"own", "own and 2 anchors"} <= set(others):
        stated += tested(rows, [Hypothesis("2 anchors beat own frames alone", "own and 2 anchors",
                                           "own", SHOWN)])  # fmt: skip
    for model in WANS:
        share = flops().loc["own and 2 anchors", f"{model}, 81 frames, 480p"]
        sentence = f"own frame and 2 anchors cost at most .56 of {model}'s native forward"
        stated.append(Claim.of_fact(sentence, "FLOPs over native", share, share < 0.56))
    return stated


def page(rows: pd.DataFrame) -> pd.DataFrame:
    """Means per policy, in the units of the metrics' names."""
    return in_units(rows.groupby("setting", sort=False)[[m for m in SHOWN if m in rows]].mean())


def strips(settings: Settings, n_columns: int = 6) -> Picture:
    """The first edit under every policy, beside source and true edit if known."""
    title = "{source_prompt}  ->  {prompt}"
    return settings.strip_of(edit_settings(settings), n_columns=n_columns, title=title)
