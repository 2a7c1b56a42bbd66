"""Claims and their verdicts: paired gains on the same clips, with intervals and tests.

A verdict is read from the numbers, never written down beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vala_research import InputError
from vala_research.evaluation.comparison import METRICS, per_clip
from vala_research.evaluation.statistics import Gain, paired_gain


def held_out_gain(
    values: pd.DataFrame, candidates: Sequence[str], baselines: Sequence[str]
) -> Gain:
    """What the best candidate gains on the best baseline, each chosen without the clip it is
    measured on, so that choosing the largest of many means earns nothing by itself.

    values: one row a clip, one column a setting, larger is better. Raises InputError for one clip.
    """
    check_settings(values, [*candidates, *baselines])
    if len(values) < 2:
        raise InputError("One clip leaves none to choose a setting on: give two or more.")
    others = (values.sum() - values) / (len(values) - 1)

    def chosen(names: Sequence[str]) -> np.ndarray:
        best = others[list(names)].to_numpy().argmax(1)
        return values[list(names)].to_numpy()[np.arange(len(values)), best]

    return paired_gain(chosen(candidates), chosen(baselines))


NAMES = {
    "psnr": "PSNR", "success": "success", "warp_error": "E_warp", "clip_t": "CLIP-T",
    "clip_f": "CLIP-F",
}  # fmt: skip


# --- claims and verdicts ------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """That `better` beats `than` in each of these metrics, on the same clips."""

    text: str
    better: str
    than: str
    metrics: Sequence[str]


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


def claims_table(rows: pd.DataFrame, claims: Iterable[Claim]) -> pd.DataFrame:
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


def check_settings(values: pd.DataFrame, names: Iterable[str]) -> None:
    if missing := [name for name in names if name not in values]:
        raise InputError(f"No rows of {missing[0]!r}: choose one of {', '.join(map(str, values))}.")
