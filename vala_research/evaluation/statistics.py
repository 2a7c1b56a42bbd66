"""Statistics of table rows: 95% bootstrap intervals, paired gains on a baseline, and their power.

Efron and Tibshirani 1993, An Introduction to the Bootstrap.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from vala_research import InputError

Values = Sequence | np.ndarray  # one number per clip
# Clips: with fewer no two-sided sign-flip test can reach p < .05. Then there is no interval and no
# verdict.
FEWEST = 6
MOST = 10**9  # clips that a power calculation considers


@dataclass(frozen=True)
class Summary:
    """A mean over n clips and the ends of its bootstrap interval, in the values' own unit."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Gain(Summary):
    """A mean paired difference; `p_value` of no difference (two-sided sign-flip test).

    detectable: the smallest true difference that would have been found, see
    `detectable_difference`; NaN of fewer than `FEWEST` clips.
    """

    p_value: float = 1.0
    detectable: float = math.nan


UNKNOWN = Gain(float("nan"), float("nan"), float("nan"), 0, float("nan"))  # of no clip


def summarise(values: Values, confidence: float = 0.95, seed: int = 0) -> Summary:
    """Mean of one value per clip with its bootstrap interval (BCa, 9999 resamples).

    Fewer than `FEWEST` clips have no interval: its ends are NaN. Values that are equal up to
    rounding have an interval of no width.
    """
    return _summarise(tuple(_finite(values).tolist()), confidence, seed)


@lru_cache(10_000)  # table, figure and claims of an experiment ask for the same numbers
def _summarise(numbers: tuple[float, ...], confidence: float, seed: int) -> Summary:
    from scipy.stats import bootstrap

    values = np.array(numbers)
    mean = float(values.mean())
    if len(values) < FEWEST:
        return Summary(mean, float("nan"), float("nan"), len(values))
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        return Summary(mean, mean, mean, len(values))
    interval = bootstrap(
        (values,), np.mean, confidence_level=confidence, rng=np.random.default_rng(seed)
    ).confidence_interval
    return Summary(mean, float(interval.low), float(interval.high), len(values))


def paired_gain(values: Values, baseline: Values, confidence: float = 0.95, seed: int = 0) -> Gain:
    """Mean over clips of value minus baseline on the same clip, with interval and p-value.

    Positive: larger than the baseline. The gain is established when `low` > 0.
    """
    values, baseline = _finite(values), _finite(baseline)
    if values.shape != baseline.shape:
        raise InputError(
            f"{len(values)} values and {len(baseline)} of the baseline: give one pair per clip."
        )
    return _paired_gain(tuple(values.tolist()), tuple(baseline.tolist()), confidence, seed)


@lru_cache(10_000)
def _paired_gain(
    values: tuple[float, ...], baseline: tuple[float, ...], confidence: float, seed: int
) -> Gain:
    from scipy.stats import permutation_test

    differences = np.subtract(values, baseline)
    gain = summarise(differences, confidence, seed)
    detectable = detectable_difference(differences) if gain.n >= FEWEST else math.nan
    if gain.n == 1:
        return Gain(gain.mean, gain.low, gain.high, 1, 1.0)
    test = permutation_test(
        (np.array(values), np.array(baseline)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        rng=np.random.default_rng(seed),
        vectorized=True,
    )
    return Gain(gain.mean, gain.low, gain.high, gain.n, float(test.pvalue), detectable)


def detectable_difference(differences: Values, power: float = 0.8, level: float = 0.05) -> float:
    """Find the smallest true mean difference that a test finds on this many clips.

    Of a two-sided paired t-test at `level`, which finds it with probability `power`. The clips'
    own differences say how much differences spread. In the unit of the differences.
    """
    differences = _finite(differences)
    n = len(differences)
    if n < 2:
        raise InputError("One difference has no spread: give two or more.")
    return float(_detectable_effect(n, power, level) * differences.std(ddof=1))


@cache
def _detectable_effect(n: int, power: float, level: float) -> float:
    """The same, in standard deviations of the differences."""
    from scipy.optimize import brentq

    return brentq(lambda effect: _power(effect, n, level) - power, 0, 50, xtol=1e-9)


def clips_needed(
    difference: float, spread: float, power: float = 0.8, level: float = 0.05
) -> int:
    """Count the clips on which a true mean difference is found with probability `power`.

    The test is that of `detectable_difference`. With fewer than `FEWEST` clips there is no verdict.
    spread: standard deviation of the paired differences over clips, in the unit of `difference`.
    """
    if not (difference and spread > 0 and math.isfinite(difference + spread)):
        raise InputError(
            f"difference is {difference}, spread {spread}: give a finite difference other than 0 "
            "and a positive spread."
        )
    effect = abs(difference) / spread
    numbers = range(FEWEST, MOST)
    return FEWEST + bisect_left(numbers, power, key=lambda n: _power(effect, n, level))


def _power(effect: float, n: int, level: float) -> float:
    """Probability that a two-sided paired t-test on n clips finds a mean of `effect` deviations."""
    from scipy.stats import f, ncf

    return float(ncf.sf(f.isf(level, 1, n - 1), 1, n - 1, n * effect**2))  # of t squared


def _finite(values: Values) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values):
        raise InputError(f"values have shape {values.shape}: give one number per clip.")
    if not np.isfinite(values).all():
        raise InputError("values hold NaN or infinity: leave those clips out and say so.")
    return values
