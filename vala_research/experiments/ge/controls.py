"""Notebook 38: ControlNets of outlines, poses and depths, and what a temporal adapter adds to them.

GE-Adapter (arXiv 2501.04606), Table 3.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
from matplotlib.figure import Figure

from vala_research import InputError, miniature_path
from vala_research.diffusion.inversion import METHODS
from vala_research.evaluation.comparison_tables import METRICS, gain_of
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import Picture, drawn
from vala_research.evaluation.statistics import Gain
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import CLIP, POINT, PUBLISHED, LaterClipsPreset
from vala_research.experiments.ge import adapter_gains
from vala_research.experiments.ge.adapter_variants import perceptual_measure

NONE = "none"  # no ControlNet
CONDITIONS = ("canny", "pose", "depth")
# ControlNets for Stable Diffusion 1.5; the paper's are those for SDXL.
OF_STABLE_DIFFUSION = (
    "lllyasviel/control_v11p_sd15_canny", "lllyasviel/control_v11p_sd15_openpose",
    "lllyasviel/control_v11f1p_sd15_depth",
)  # fmt: skip
HELD = {  # what a ControlNet of the layout should hold: metric, its name, sign
    "shape": ("frames with the right shape, %", 100, 1),
    "path_error": (METRICS["path_error"].axis, 1, -1),
    "size_error": (METRICS["size_error"].axis, 100, -1),
    "psnr": (METRICS["psnr"].axis, 1, 1),
}


@dataclass(frozen=True, kw_only=True)
class Settings(LaterClipsPreset):
    """Parameters of notebook 38."""

    PRESETS = {
        "smoke": dict(kinds=("colour",), n_clips=1, n_frames=3, steps=2),
        "sprites": POINT | dict(parts=(), n_clips=8, first_clip=112,
                                kinds=("colour", "background", "pattern")),
        "paper": PUBLISHED | dict(conditions=CONDITIONS, controlnets=OF_STABLE_DIFFUSION,
                                  clip_model=CLIP, n_processes=0),
    }  # fmt: skip

    CHOICES: ClassVar[dict[str, Collection]] = LaterClipsPreset.CHOICES | {
        "parts": ("motion",), "conditions": CONDITIONS, "inversion": tuple(METHODS),
    }  # fmt: skip

    conditions: Sequence[str] = ("depth",)  # what ControlNets see
    controlnets: Sequence[str] = ()  # of each, a folder or hub id; (): the miniature's, of depths
    control_scale: float = 1.0
    inversion: str = "noise"  # or how the clip is inverted, such as "ddim"
    attention: str = "own"  # attention policy of the edits
    adapter: str = "miniature"  # or a folder that vala train wrote

    def nets(self) -> dict[str, str]:
        """Condition -> where its ControlNet lies. Raises InputError."""
        given = self.controlnets
        if not given and self.model == "miniature":
            given = [miniature_path("depth_controlnet")] * (tuple(self.conditions) == ("depth",))
        if len(given) != len(self.conditions):
            raise InputError(
                f"There are {len(self.conditions)} conditions and {len(given)} controlnets: give "
                "one for each. The miniature has one of its own, for depth."
            )
        return dict(zip(self.conditions, given, strict=True))


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """"condition, without" and "condition, with" the adapter; "none" has no ControlNet."""
    common = settings.sampling | {"inversion": settings.inversion}
    controls: dict[str, dict] = {NONE: {}} | {
        name: {"control": name, "controlnet": net, "control_scale": settings.control_scale}
        for name, net in settings.nets().items()
    }
    return {
        f"{name}, {side}": EditSetting(settings.attention, adapter=adapter, **common, **control)
        for name, control in controls.items()
        for side, adapter in (("without", ""), ("with", settings.adapter))
    }


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Edit under every condition without and with the adapter; rows of `comparison.compare`."""
    return settings.compare(edit_settings(settings), output, measure=perceptual_measure)


def controlled(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of edits with a ControlNet."""
    return rows[~rows.setting.str.startswith(f"{NONE}, ")]


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Gains by the adapter under each condition and on their mean, as `adapter_gains.table`."""
    return adapter_gains.table(controlled(rows))


def held(rows: pd.DataFrame) -> pd.DataFrame:
    """What each ControlNet alone gains on none: one row per condition and metric."""
    lines = []
    for condition, metric, gain in _gains_on_none(rows):
        axis, factor, _ = HELD[metric]
        means = rows.groupby("setting")[metric].mean() * factor
        lines.append({
            "condition": condition, "metric": axis, "none": means[f"{NONE}, without"],
            "with ControlNet": means[f"{condition}, without"], "gain": factor * gain.mean,
            "low": factor * gain.low, "high": factor * gain.high, "p": gain.p_value, "n": gain.n,
        })  # fmt: skip
    return pd.DataFrame(lines)


def _gains_on_none(rows: pd.DataFrame) -> Iterator[tuple[str, str, Gain]]:
    """Condition, metric of `HELD` that is known, and its gain on none; all without the adapter."""
    known = [metric for metric in HELD if metric in rows and rows[metric].notna().any()]
    names = [n for n in controlled(rows).setting.unique() if n.endswith(", without")]
    for name in names:
        for metric in known:
            gain = gain_of(rows, metric, name, f"{NONE}, without", HELD[metric][2])
            yield name.partition(",")[0], metric, gain


@drawn(claim="the adapter improves PSNR")
def figure(rows: pd.DataFrame) -> Figure:
    """Gains by the adapter under each condition and on their mean."""
    return adapter_gains.figure(controlled(rows))


def strips(settings: Settings, n_columns: int = 6) -> Picture:
    """The first edit under every condition, beside source, depth, and true edit if known."""
    return settings.strip_of(edit_settings(settings), settings.conditions, n_columns)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Each ControlNet holds the object's shape and place; then the claims of `adapter_gains`.

    Asserted: the path error does not rise by it. All else about ControlNets is reported.
    """
    stated = []
    for condition, metric, gain in _gains_on_none(rows):
        axis, _, sign = HELD[metric]
        verb = "raises" if sign > 0 else "lowers"
        stated.append(Claim.of_gain(f"the ControlNet of {condition} {verb}: {axis}", axis, gain))
        if metric == "path_error":
            kept = f"the ControlNet of {condition} does not raise the path error"
            stated.append(Claim.of_limit(kept, axis, gain))
    return [*stated, *adapter_gains.claims(controlled(rows))]
