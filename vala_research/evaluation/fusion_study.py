"""Fusions against their own sources: the settings, the claims, and what the rows say of them.

FLDM (arXiv 2310.16400): its claims, its ratio from 0 to 1, its schedules by kind of edit. A verdict
is read from differences on the same clips, never written down beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from vala_research import InputError
from vala_research.evaluation.benchmark import EditSetting
from vala_research.evaluation.comparison import METRICS, per_clip
from vala_research.evaluation.fusion_plans import Plan
from vala_research.evaluation.statistics import Gain, paired_gain
from vala_research.methods.fusion import KINDS, FusionSchedule

IMAGE, VIDEO, FUSED = "image only", "video only", "fused"
ALIGNMENT = ("success", "clip_t")  # with the text: what is read in the frames, CLIP-T
CONSISTENCY = ("warp_error", "clip_f")  # over time
NAMES = {
    "psnr": "PSNR", "success": "success", "warp_error": "E_warp", "clip_t": "CLIP-T",
    "clip_f": "CLIP-F",
}  # fmt: skip


# --- settings -----------------------------------------------------------------------------------


FRAMEWISE = ("own", "own")  # the image model frame by frame, as published


def single_models(motion: str = "miniature", **common) -> dict[str, EditSetting]:
    """Each source alone; common: arguments of every EditSetting."""
    never = Plan(attentions=FRAMEWISE, schedule=FusionSchedule(tau=1.0), motion=motion)
    return {IMAGE: EditSetting("own", **common), VIDEO: EditSetting(fusion=never, **common)}


def fusion_settings(motion: str = "miniature", **common) -> dict[str, EditSetting]:
    """The sources and their fusions: released numbers, equal shares, anchors, image from noise."""
    released = Plan(attentions=FRAMEWISE, motion=motion)
    plans = {
        FUSED: released,
        "fused, half and half": replace(released, schedule=constant(0.5)),
        "fused, image from noise": replace(released, image_start="noise"),
        "fused, anchors": replace(released, attentions=("own", "anchors")),
    }
    anchors = {"image only, anchors": EditSetting("anchors", **common)}
    fused = {name: EditSetting(fusion=plan, **common) for name, plan in plans.items()}
    return single_models(motion, **common) | anchors | fused


def alpha_settings(
    motion: str = "miniature", values: Sequence[float] | None = None, **common
) -> dict[str, EditSetting]:
    """The sources, and the video model's constant share a from 0 to 1 at every step."""
    values = [i / 10 for i in range(11)] if values is None else values
    fused = {
        f"a = {a:g}": EditSetting(fusion=Plan(attentions=FRAMEWISE, schedule=constant(a),
                                              motion=motion), **common)
        for a in values
    }  # fmt: skip
    return single_models(motion, **common) | fused


def constant(a: float) -> FusionSchedule:
    """The video model's share is a at every step."""
    return FusionSchedule("constant", (a, 1 - a), 0.0)


def schedule_name(kind: str, tau: float) -> str:
    return f"{kind}, tau {tau:g}"


def schedule_settings(
    motion: str = "miniature",
    taus: Sequence[float] = (0.0, 0.25, 0.5, 0.75),
    kinds: Sequence[str] = KINDS,
    initial: Sequence[float] = (0.7, 0.3),
    **common,
) -> dict[str, EditSetting]:
    """Every kind of schedule at every tau (a fraction of the steps), from the same weights."""
    schedules = {
        schedule_name(kind, tau): FusionSchedule(kind, initial, float(tau))
        for kind in kinds
        for tau in taus
    }
    return {
        name: EditSetting(
            fusion=Plan(attentions=FRAMEWISE, schedule=schedule, motion=motion), **common
        )
        for name, schedule in schedules.items()
    }


# --- claims and verdicts ------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """That `better` beats `than` in each of these metrics, on the same clips."""

    text: str
    better: str
    than: str
    metrics: Sequence[str]


COMPLEMENTARY = (
    Claim("the image model follows the text better than the video model", IMAGE, VIDEO, ALIGNMENT),
    Claim("the video model is steadier than the image model", VIDEO, IMAGE, CONSISTENCY),
    Claim("fused follows the text better than the video model", FUSED, VIDEO, ALIGNMENT),
    Claim("fused is steadier than the image model", FUSED, IMAGE, CONSISTENCY),
    Claim("fused follows the text better than the image model", FUSED, IMAGE, ALIGNMENT),
    Claim("fused is steadier than the video model", FUSED, VIDEO, CONSISTENCY),
    Claim("fused is a better edit than the image model", FUSED, IMAGE, ("psnr",)),
    Claim("fused is a better edit than the video model", FUSED, VIDEO, ("psnr",)),
)


FEWEST = 6  # clips: with fewer no two-sided sign-flip test can reach p < .05


def verdict(gain: Gain) -> str:
    """Of a claim that something is positive: by the ends of its 95% interval and the exact test.

    Both: where few clips differ at all, as attribute success does, a bootstrap is too sure.
    """
    if gain.n < FEWEST:
        return "too few clips"
    if gain.p_value >= 0.05 or gain.low <= 0 <= gain.high:
        return "not confirmed"
    return "confirmed" if gain.low > 0 else "contradicted"


def judged(claim: str, metric: str, gain: Gain) -> dict:
    """A row of a table of verdicts."""
    return {"claim": claim, "metric": NAMES.get(metric, metric), "gain": gain.mean,
            "low": gain.low, "high": gain.high, "p": gain.p_value, "n": gain.n,
            "verdict": verdict(gain)}  # fmt: skip


def claims_table(rows: pd.DataFrame, claims: Iterable[Claim] = COMPLEMENTARY) -> pd.DataFrame:
    """One row a claim and metric: the paired gain (positive is better), its interval, the verdict.

    Metrics that the rows do not have are left out; intervals are not corrected for their number.
    """
    table = []
    for claim in claims:
        for metric in (m for m in claim.metrics if m in rows):
            values = METRICS[metric] * per_clip(rows, metric)
            check_settings(values, (claim.better, claim.than))
            gain = paired_gain(values[claim.better].to_numpy(), values[claim.than].to_numpy())
            table.append(judged(claim.text, metric, gain))
    return pd.DataFrame(table)


def trend_table(rows: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Whether more of the video model is steadier and follows the text worse: slopes over a.

    The slope is of a line through each clip's values at "a = ..."; its interval is over clips.
    """
    table = []
    for metric in (m for m in metrics if m in rows):
        values = METRICS[metric] * ratios(per_clip(rows, metric))
        slopes = np.polyfit(values.columns.to_numpy(float), values.to_numpy().T, 1)[0]
        sign, text = (1, "gains") if metric in CONSISTENCY else (-1, "loses")
        gain = paired_gain(sign * slopes, np.zeros_like(slopes))
        table.append(
            judged(f"{NAMES[metric]} {text} as the video model's share grows", metric, gain)
        )
    return pd.DataFrame(table)


def ratios(values: pd.DataFrame) -> pd.DataFrame:
    """The columns "a = ..." of a table by clip, named by their numbers."""
    names = [name for name in values if str(name).startswith("a = ")]
    return values[names].rename(columns=lambda name: float(name.removeprefix("a = ")))


def check_settings(values: pd.DataFrame, names: Iterable[str]) -> None:
    if missing := [name for name in names if name not in values]:
        raise InputError(f"No rows of {missing[0]!r}: choose one of {', '.join(map(str, values))}.")
