"""Claims and their verdicts: a sentence, what was measured, an interval, and what follows.

A verdict is read from the numbers, never written down beforehand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import nan

import numpy as np
import pandas as pd

from vala_research import InputError
from vala_research.evaluation.comparison_tables import METRICS, gain_of
from vala_research.evaluation.statistics import FEWEST, Gain, paired_gain

CONFIRMED, CONTRADICTED, OPEN = "confirmed", "contradicted", "not established"


@dataclass(frozen=True)
class Claim:
    """A sentence and what the rows say of it.

    sentence: what is claimed. measured: the quantity, with its unit. value: its mean over n clips;
    low, high: the 95% interval; p: of no difference (NaN where a fact has none).
    is_asserted: a notebook fails when this claim is not confirmed.
    """

    sentence: str
    measured: str
    value: float
    low: float = nan
    high: float = nan
    p: float = nan
    n: int = 0
    verdict: str = OPEN
    is_asserted: bool = False

    @classmethod
    def of_gain(
        cls, sentence: str, measured: str, gain: Gain, is_asserted: bool = False
    ) -> Claim:
        """The claim that a paired gain is positive, judged by its interval and its exact test."""
        return cls(
            sentence, measured, gain.mean, gain.low, gain.high, gain.p_value, gain.n,
            verdict(gain), is_asserted,
        )  # fmt: skip

    @classmethod
    def of_fact(
        cls, sentence: str, measured: str, value: float, holds: bool | np.bool_, n: int = 0,
        n_clips: int | None = None,
    ) -> Claim:  # fmt: skip
        """A claim that is plainly true or false of the rows, such as a count or an order.

        n_clips: for a claim about clips in general, in place of n: fewer than `FEWEST` clips judge
        nothing.
        """
        is_open = n_clips is not None and n_clips < FEWEST
        judged = OPEN if is_open else CONFIRMED if holds else CONTRADICTED
        n = n if n_clips is None else int(n_clips)
        return cls(sentence, measured, float(value), n=n, verdict=judged, is_asserted=not is_open)

    @classmethod
    def of_limit(cls, sentence: str, measured: str, gain: Gain, limit: float = 0.0) -> Claim:
        """The claim that a paired gain is not below a limit: that there is no loss.

        Confirmed if the whole interval is at the limit or above, contradicted (a notebook then
        fails) if it is below. An interval on both sides, or none, establishes neither.
        """
        judged = CONFIRMED if gain.low >= limit else CONTRADICTED if gain.high < limit else OPEN
        return cls(
            sentence, measured, gain.mean, gain.low, gain.high, gain.p_value, gain.n,
            OPEN if gain.n < FEWEST else judged, gain.n >= FEWEST and judged != OPEN,
        )  # fmt: skip


@dataclass(frozen=True)
class Hypothesis:
    """That the setting `better` beats the setting `than` in each of these metrics."""

    sentence: str
    better: str
    than: str
    metrics: Sequence[str]


def verdict(gain: Gain) -> str:
    """Verdict on "the gain is positive": by the ends of its 95% interval and the exact test.

    Both must agree: where few clips differ at all, a bootstrap interval is too narrow.
    """
    if gain.n < FEWEST or gain.p_value >= 0.05 or not (gain.low > 0 or gain.high < 0):
        return OPEN
    return CONFIRMED if gain.low > 0 else CONTRADICTED


def tested(rows: pd.DataFrame, hypotheses: Iterable[Hypothesis]) -> list[Claim]:
    """One claim per hypothesis and metric: the paired gain over clips, positive is better.

    Metrics that the rows lack are left out. Intervals are not corrected for their number. A metric
    that no clip has under both settings is not established.
    """
    claims = []
    for hypothesis in hypotheses:
        for metric in (m for m in hypothesis.metrics if m in rows):
            check_settings(dict.fromkeys(rows.setting), (hypothesis.better, hypothesis.than))
            sign = METRICS[metric].sign
            gain = gain_of(rows, metric, hypothesis.better, hypothesis.than, sign)
            claims.append(Claim.of_gain(hypothesis.sentence, METRICS[metric].name, gain))
    return claims


def completeness(rows: pd.DataFrame) -> Claim:
    """Claim that every setting makes every edit of every clip."""
    counts = rows.groupby(["kind", "index", "setting"]).size().unstack(fill_value=0)
    missing = int(counts.rsub(counts.max(axis=1), axis=0).to_numpy().sum())
    return Claim.of_fact("every setting makes every edit", "missing rows", missing, missing == 0)


def n_clips_of(rows: pd.DataFrame, column: str = "clip") -> int | None:
    """The number of clips that the rows are about; None: they do not name them."""
    return int(rows[column].nunique()) if column in rows else None


def claims_table(claims: Iterable[Claim]) -> pd.DataFrame:
    """One row per claim."""
    return pd.DataFrame([asdict(claim) for claim in claims])


def stated(claims: Iterable[Claim], part: str = "") -> str:
    """A claim and its verdict in one line, for the title of a figure; "" of no claims.

    part: of the claim's sentence, followed by ", " and what was measured. Where no claim has it, as
    in a run of few metrics, the first one is stated.
    """
    lines = {f"{c.sentence}, {c.measured}": c for c in claims}
    if not lines:
        return ""
    first = next(iter(lines.values()))
    found = next((claim for line, claim in lines.items() if part in line), first)
    quantity = found.measured.removeprefix("gain in ").partition(",")[0]
    measured = "" if quantity in found.sentence else f" ({found.measured.rstrip(',')})"
    return f"{found.sentence[0].upper()}{found.sentence[1:]}{measured}: {found.verdict}"


def assert_claims(claims: Iterable[Claim]) -> None:
    """Print every claim with its verdict; raise AssertionError if an asserted one fails."""
    claims = list(claims)
    for claim in claims:
        has_interval = not np.isnan(claim.low)
        interval = f" [{claim.low:.4g}, {claim.high:.4g}]" if has_interval else ""
        count = f", n = {claim.n}" if claim.n else ""
        number = f"{claim.measured} {claim.value:.4g}{interval}{count}"
        print(f"{claim.verdict}: {claim.sentence} ({number})")
    failed = [c.sentence for c in claims if c.is_asserted and c.verdict != CONFIRMED]
    assert not failed, f"not confirmed by the rows: {'; '.join(failed)}"


def held_out_gain(
    values: pd.DataFrame, candidates: Sequence[str], baselines: Sequence[str]
) -> Gain:
    """Gain of the best candidate on the best baseline, both chosen without the measured clip.

    So choosing the largest of many means earns nothing by itself. values: one row per clip, one
    column per setting, larger is better. Raises InputError for one clip.
    """
    check_settings(values, [*candidates, *baselines])
    if len(values) < 2:
        raise InputError("One clip leaves none to choose a setting on: give two or more.")
    others = (values.sum() - values) / (len(values) - 1)

    def best_of(names: Sequence[str]) -> np.ndarray:
        best = others[list(names)].to_numpy().argmax(1)
        return values[list(names)].to_numpy()[np.arange(len(values)), best]

    return paired_gain(best_of(candidates), best_of(baselines))


def check_settings(values: Collection, names: Iterable[str]) -> None:
    """Refuse names of settings that are not in `values`, such as a table by clip."""
    if missing := [name for name in names if name not in values]:
        raise InputError(f"No rows of {missing[0]!r}: choose one of {', '.join(map(str, values))}.")
