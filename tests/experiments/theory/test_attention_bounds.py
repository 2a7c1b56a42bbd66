"""The picture of attention's bounds shows what its rows say, infinite ratios included."""

import math

import pytest

from vala_research import InputError
from vala_research.experiments.theory.attention_figures import (
    approach,
    attention_bounds,
    layer_ratios,
)

TOKENS = [{"n_unshared": n, "distance": float(n), "bias": b} for n in (1, 2, 3) for b in (0, 1)]


def row(pair: str, share: float, paper: float, difference: float = 2.0) -> dict:
    return {"pair": pair, "share": share, "difference": difference, "row": 1.0, "paper": paper,
            "F": 4.0, "R": 2.0}  # fmt: skip


def test_ratios_of_rows():
    ratios = layer_ratios(
        [row("step", 1.0, 8.0), row("step", 0.0, 0.0), row("step", 0.0, 0.0, 0.0)]
    )
    assert ratios["paper"] == [0.25, math.inf]  # what is 0 on both sides says nothing
    assert ratios["F"] == [0.5, 0.5, 0.0] and ratios["R"] == [0.5] * 3


def test_the_picture_and_its_numbers():
    rows = [row("words", 1.0, 8.0)]
    for share in (1.0, 0.1, 0.0):
        rows += [row(pair, share, 8.0 * share) for pair in ("frame", "step")]
    near = {(r["share"], r["bound"]): r["median"] for r in approach(rows)}
    assert near[1.0, "paper"] == 0.25 and near[0.1, "paper"] == 2.5
    assert near[0.0, "paper"] == math.inf and near[0.0, "F"] == 0.5
    random = {"paper": [0.1, 10.0], "F": [0.5, 1.0], "R": [0.2, 0.9]}
    picture, table = attention_bounds(random, {"F": 1.0, "R": 1.0}, rows, TOKENS, 2)
    assert len(picture.axes) == 4
    shares = [r for r in table if r["panel"] == "ratios" and r["source"] == "random"]
    for bound in random:
        assert sum(r["share"] for r in shares if r["bound"] == bound) == pytest.approx(1)
    assert {r["panel"] for r in table} == {"ratios", "ascent", "approach", "tokens"}
    words = " ".join(t.get_text() for ax in picture.axes for t in ax.texts)
    assert "broken: 50%" in words and "broken: 40%" in words and "∞" in words
    with pytest.raises(InputError, match="no rows"):
        attention_bounds(random, {}, [], TOKENS, 2)
