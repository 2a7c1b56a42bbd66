"""Bounds of attention: the picture shows what its rows say; claims of notebook 44 can fail."""

import math

import pandas as pd
import pytest
from notebook_runs import run

from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.theory.attention import (
    approach,
    claims,
    figure,
    histogram,
    layer_ratios,
    random_ratios,
    table,
)

VERDICTS = [{"part": "verdict", "reproduced": True}, {"part": "verdict", "reproduced": True}]


def layer(pair: str, share: float, paper: float, difference: float = 2.0, row: float = 1.0) -> dict:
    return {"part": "layers", "pair": pair, "share": share, "difference": difference, "row": row,
            "paper": paper, "F": 4.0, "R": 2.0, "norm": 1.5}  # fmt: skip


def heads(paper: tuple, f: tuple, r: tuple) -> list[dict]:
    return [{"part": "random", "ratio_paper": a, "ratio_F": b, "ratio_R": c}
            for a, b, c in zip(paper, f, r, strict=True)]  # fmt: skip


def token(n: int, distance: float, bias: bool = False) -> dict:
    return {"part": "tokens", "width": 4, "n_unshared": n, "distance": distance, "bias": bias}


def test_ratios_of_rows():
    layers = [layer("step", 1.0, 8.0), layer("step", 0.0, 0.0), layer("step", 0.0, 0.0, 0.0)]
    ratios = {name: values.tolist() for name, values in layer_ratios(pd.DataFrame(layers)).items()}
    assert ratios["paper"] == [0.25, math.inf]  # two zeros say nothing
    assert ratios["F"] == [0.5, 0.5, 0.0] and ratios["R"] == [0.5] * 3


def test_the_picture_and_its_numbers():
    layers = [layer("words", 1.0, 8.0)]
    for share in (1.0, 0.1, 0.0):
        layers += [layer(pair, share, 8.0 * share) for pair in ("frame", "step")]
    quantiles = approach(pd.DataFrame(layers))
    near = quantiles.set_index(["share", "bound"])["median"]
    assert near[1.0, "paper"] == 0.25 and near[0.1, "paper"] == 2.5
    assert near[0.0, "paper"] == math.inf and near[0.0, "F"] == 0.5
    rows = pd.DataFrame([
        *layers, *heads((0.1, 10.0), (0.5, 1.0), (0.2, 0.9)),
        *({"part": "ascent", "name": name, "ratio": 1.0} for name in "FR"),
        *(token(n, float(n), b) for n in (1, 2, 3) for b in (False, True)),
    ])  # fmt: skip
    picture = figure(rows)
    assert len(picture.axes) == 4
    for ratios in random_ratios(rows).values():
        assert histogram(ratios).sum() == pytest.approx(1)
    words = " ".join(t.get_text() for ax in picture.axes for t in ax.texts)
    assert "broken: 50%" in words and "broken: 40%" in words and "∞" in words


def planted(random_f=1.0, layer_row=1.0, paper=1.0, random_paper=2.0, best=1.0, token_at_4=0.0,
            reproduced=True) -> pd.DataFrame:  # fmt: skip
    return pd.DataFrame([
        *VERDICTS, {"part": "verdict", "reproduced": reproduced},
        *heads((0.5, random_paper), (0.5, random_f), (0.5, 1.0)),
        layer("words", 1.0, paper), layer("step", 0.1, paper, row=2 * layer_row),
        *({"part": "ascent", "name": name, "ratio": best} for name in "FR"),
        token(4, token_at_4), token(5, 1.0), token(5, 0.0, True), token(6, 1.0, True),
    ])  # fmt: skip


def test_its_claims_can_fail():
    """A bound that breaks or is not attained, or a paper's bound that holds, does not pass."""
    assert_claims(claims(planted()))
    for wrong in (dict(random_f=1.1), dict(layer_row=1.01), dict(best=0.9), dict(best=1.1),
                  dict(paper=4.0), dict(random_paper=0.9), dict(token_at_4=1.0),
                  dict(reproduced=False)):  # fmt: skip
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(claims(planted(**wrong)))


def test_the_notebook(tmp_path, miniature):
    """Bounds hold at every head, pair and random point; all of it is in the rows."""
    small = dict(kinds=["colour"], timesteps=[501], shares=[1.0, 0.001, 0.0], n_random=4000)
    parameters, rows = run("44_theory_attention", tmp_path, **small)
    assert parameters["shares"] == [1.0, 0.001, 0.0]
    layers = rows[rows.part == "layers"]
    assert len(layers) == 6 * 2 * (2 + 2 * 3)  # layers, heads, pairs
    assert set(layers.pair) == {"words", "edit", "frame", "step"}
    assert len(table(rows)) == 2 + 2 * 3 and len(figure(rows).axes) == 4
