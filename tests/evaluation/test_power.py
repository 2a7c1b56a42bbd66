"""How small a difference so many clips find, and how many clips it takes. Costs about 2 s."""

import math

import numpy as np
import pytest

from vala_research import InputError
from vala_research.evaluation.statistics import (
    FEWEST,
    clips_needed,
    detectable_difference,
    paired_gain,
)


@pytest.mark.parametrize(
    ("effect", "n"), [(0.2, 199), (0.3, 90), (0.5, 34), (0.8, 15), (1.0, 10), (-0.5, 34)]
)
def test_the_published_numbers_of_pairs(effect, n):
    """Paired t-test, two-sided 5%, power 80%: G*Power 3 and Cohen 1988 print these."""
    assert clips_needed(effect, 1.0) == clips_needed(10 * effect, 10.0) == n


def test_other_powers_and_levels():
    assert clips_needed(0.5, 1, power=0.9) == 44 and clips_needed(0.5, 1, level=0.01) == 51
    assert clips_needed(0.01, 1) == pytest.approx((2.8016 / 0.01) ** 2, rel=1e-3)  # normal theory
    assert clips_needed(100, 1) == FEWEST  # fewer have no verdict


def test_what_is_detectable_is_found_in_four_of_five_experiments():
    differences = np.random.default_rng(0).normal(3, 2, 34)
    found = detectable_difference(differences)
    assert found == pytest.approx(0.495 * differences.std(ddof=1), rel=1e-3)
    assert clips_needed(found * 1.0001, differences.std(ddof=1)) == 34
    assert detectable_difference(differences + 5) == pytest.approx(found)  # the mean is no spread

    # Simulated: 20,000 experiments; the share's deviation is .0028. 2.0345: t of 33 at 2.5%.
    drawn = np.random.default_rng(1).normal(0.49503, 1, (20_000, 34))
    t = drawn.mean(1) / drawn.std(1, ddof=1) * math.sqrt(34)
    assert (abs(t) > 2.0345).mean() == pytest.approx(0.8, abs=0.012)


def test_a_gain_tells_it():
    clips = np.random.default_rng(0).normal(20, 5, 24)
    noise = np.random.default_rng(1).normal(0, 1, 24)
    gain = paired_gain(clips + noise, clips)
    assert gain.detectable == pytest.approx(detectable_difference(noise))
    assert paired_gain(clips + 1, clips).detectable == pytest.approx(0, abs=1e-9)
    assert math.isnan(paired_gain(clips[: FEWEST - 1] + 1, clips[: FEWEST - 1]).detectable)


def test_bad_input():
    for wrong in ((0, 1), (1, 0), (math.nan, 1), (1, math.inf)):
        with pytest.raises(InputError, match="give a finite difference other than 0"):
            clips_needed(*wrong)
    with pytest.raises(InputError, match="give two or more"):
        detectable_difference([1.0])
