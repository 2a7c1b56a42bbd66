"""Statistics of table rows: 95% bootstrap intervals, and paired gains on a baseline.

Efron and Tibshirani 1993, An Introduction to the Bootstrap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vala_research import InputError

Values = Sequence | np.ndarray  # one number per clip
# Clips: with fewer no two-sided sign-flip test can reach p < .05. Then there is no interval and no
# verdict.
FEWEST = 6


@dataclass(frozen=True)
class Summary:
    """A mean over n clips and the ends of its bootstrap interval, in the values' own unit."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Gain(Summary):
    """A mean paired difference; `p_value` of no difference (two-sided sign-flip test)."""

    p_value: float = 1.0


UNKNOWN = Gain(float("nan"), float("nan"), float("nan"), 0, float("nan"))  # of no clip


def summarise(values: Values, confidence: float = 0.95, seed: int = 0) -> Summary:
    """Mean of one value per clip with its bootstrap interval (BCa, 9999 resamples).

    Fewer than `FEWEST` clips have no interval: its ends are NaN. Equal values have an interval of
    no width.
    """
    from scipy.stats import bootstrap

    values = _finite(values)
    mean = float(values.mean())
    if len(values) < FEWEST:
        return Summary(mean, float("nan"), float("nan"), len(values))
    if np.ptp(values) == 0:
        return Summary(mean, mean, mean, len(values))
    interval = bootstrap(
        (values,), np.mean, confidence_level=confidence, rng=np.random.default_rng(seed)
    ).confidence_interval
    return Summary(mean, float(interval.low), float(interval.high), len(values))


def paired_gain(values: Values, baseline: Values, confidence: float = 0.95, seed: int = 0) -> Gain:
    """Mean over clips of value minus baseline on the same clip, with interval and p-value.

    Positive: larger than the baseline. The gain is established when `low` > 0.
    """
    from scipy.stats import permutation_test

    values, baseline = _finite(values), _finite(baseline)
    if values.shape != baseline.shape:
        raise InputError(
            f"{len(values)} values and {len(baseline)} of the baseline: give one pair per clip."
        )
    gain = summarise(values - baseline, confidence, seed)
    if gain.n == 1:
        return Gain(gain.mean, gain.low, gain.high, 1, 1.0)
    test = permutation_test(
        (values, baseline),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        rng=np.random.default_rng(seed),
        vectorized=True,
    )
    return Gain(gain.mean, gain.low, gain.high, gain.n, float(test.pvalue))


def _finite(values: Values) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise InputError(f"values have shape {values.shape}: give one number per clip.")
    if not np.isfinite(values).all():
        raise InputError("values hold NaN or infinity: leave those clips out and say so.")
    return values
