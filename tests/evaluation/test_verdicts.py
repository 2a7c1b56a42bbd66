"""Verdicts follow the numbers: by interval and exact test, and not earned by choosing of many."""

import numpy as np
import pandas as pd
import pytest

from vala_research import InputError
from vala_research.evaluation import verdicts
from vala_research.evaluation.statistics import Gain, paired_gain


def test_gains_that_are_equal_up_to_rounding_have_an_interval_of_no_width():
    values = np.arange(5.0, 14.0) / 7
    gain = paired_gain(values + 0.1, values)
    assert np.ptp((values + 0.1) - values) > 0 and gain.low == gain.high == gain.mean
    assert verdicts.verdict(gain) == "confirmed"


@pytest.mark.parametrize(
    ("low", "high", "n", "p", "word"),
    [
        (0.1, 0.2, 6, 0.03, "confirmed"),
        (-0.1, 0.2, 6, 0.03, "not established"),
        (-0.2, -0.1, 6, 0.03, "contradicted"),
        (0.0, 0.0, 6, 1.0, "not established"),
        (0.1, 0.2, 12, 0.06, "not established"),
        (-0.2, -0.1, 12, 0.06, "not established"),
        (0.1, 0.2, 5, 0.03, "not established"),
        (float("nan"), float("nan"), 1, 1.0, "not established"),
        (float("nan"), float("nan"), 9, 0.01, "not established"),
    ],
)
def test_a_verdict_is_read_from_the_interval_and_the_exact_test(low, high, n, p, word):
    """Five clips that agree have p = 2 / 2^5 > .05, whatever their interval says."""
    assert verdicts.verdict(Gain(0.15, low, high, n, p)) == word
    ones = np.arange(verdicts.FEWEST) + 1.0
    assert paired_gain(ones, 0 * ones).p_value < 0.05
    assert paired_gain(ones[1:], 0 * ones[1:]).p_value > 0.05


def test_few_clips_that_differ_do_not_confirm():
    """Four of twelve clips differ, all one way: the bootstrap is above zero, p is 2 / 2^4."""
    values = np.array([0.05, 0.1, 0.1, 0.2] + [0.0] * 8)
    gain = paired_gain(values, 0 * values)
    assert gain.low > 0 and gain.p_value == pytest.approx(0.125)
    assert verdicts.verdict(gain) == "not established"


def test_choosing_the_best_of_many_earns_nothing_by_itself():
    """Forty settings of pure noise: the best mean looks .6 better, the held-out choice does not."""
    draw = np.random.default_rng(1)
    names = [f"s{i}" for i in range(40)]
    values = pd.DataFrame(draw.normal(size=(16, 41)), columns=[*names, "base"])
    naive = (values[names].mean().max() - values.base.mean()).item()
    honest = verdicts.held_out_gain(values, names, ["base"])
    assert naive > 0.4 and abs(honest.mean) < 0.3 * naive + 0.3
    assert honest.low < 0
    values["s7"] += 3  # one that is better is found
    assert verdicts.held_out_gain(values, names, ["base"]).low > 1.5


def test_held_out_choices_need_other_clips_and_known_settings():
    values = pd.DataFrame({"a": [1.0], "b": [2.0]})
    with pytest.raises(InputError, match="two or more"):
        verdicts.held_out_gain(values, ["a"], ["b"])
    with pytest.raises(InputError, match="No rows of 'c'"):
        verdicts.held_out_gain(values, ["c"], ["b"])


def test_a_figure_states_a_claim_and_its_verdict():
    gain = paired_gain([2.0] * 8, [1.0] * 8)
    claims = [
        verdicts.Claim.of_fact("every setting makes every edit", "missing rows", 0, True),
        verdicts.Claim.of_gain("the adapter improves PSNR", "gain in PSNR", gain),
        verdicts.Claim.of_gain("fused is steadier", "jitter", gain),
    ]
    assert verdicts.stated(claims) == "Every setting makes every edit (missing rows): confirmed"
    assert verdicts.stated(claims, "improves PSNR") == "The adapter improves PSNR: confirmed"
    assert verdicts.stated(claims, "steadier, jitter") == "Fused is steadier (jitter): confirmed"
    assert verdicts.stated(claims, "unknown") == verdicts.stated(claims)
    assert verdicts.stated([]) == ""
