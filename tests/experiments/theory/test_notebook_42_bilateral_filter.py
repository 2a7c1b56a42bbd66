"""Pairs of images that a filter parts; notebook 42 shows them, and its claims can fail."""

import pandas as pd
import pytest
import torch
from notebook_runs import run

from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.theory.bilateral_filter import (
    CLIP,
    RANDOM,
    WORST,
    claims,
    distance_rows,
    figure,
    random_pairs,
    table,
    worst_pairs,
)


def test_pairs_of_images():
    x, xbar = random_pairs(6, 50, torch.Generator().manual_seed(0))
    rows = distance_rows("random", x, xbar)
    assert 0 < rows[0]["before"] <= 1.5 and any(r["after"] > r["before"] for r in rows)
    for row in distance_rows("worst", *worst_pairs(6, 5)):
        assert row["after"] == pytest.approx(row["bound"], rel=1e-12)


def planted(pairs: list[dict], reproduced: bool = True) -> pd.DataFrame:
    verdicts = [{"part": "verdict", "statement": "C.7", "verdict": "false", "measured": 1.0,
                 "bound": 1.0, "tightness": 1.0, "reproduced": sound}
                for sound in (True, True, reproduced)]  # fmt: skip
    return pd.DataFrame([*({"part": "distance"} | pair for pair in pairs), *verdicts])


def test_its_claims_can_fail():
    good = distance_rows(WORST, *worst_pairs(6, 3))
    good += [dict(kind=RANDOM, before=1.0, after=1.1, bound=1.4)]
    assert_claims(claims(planted(good)))
    for wrong in (
        planted(good, reproduced=False),
        planted([*good, dict(kind=RANDOM, before=1.0, after=1.5, bound=1.4)]),
        planted([dict(r, after=r["before"]) for r in good]),
        planted([*good[:-1], dict(kind=RANDOM, before=1.0, after=0.9, bound=1.4)]),
    ):
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(claims(wrong))


def test_the_notebook(tmp_path, miniature):
    parameters, rows = run("42_theory_bilateral_filter", tmp_path, seed=3, n_random=100)
    assert parameters["seed"] == 3
    pairs, largest = (rows[rows.part == part] for part in ("distance", "stretch"))
    assert set(pairs.kind) == {RANDOM, CLIP, WORST} < set(table(rows).index)
    assert (pairs.after <= pairs.bound * (1 + 1e-9)).all() and (pairs.after > pairs.before).any()
    assert (largest.stretch > 1.5).all() and len(largest) == 6
    assert len(figure(rows).axes) == 2
