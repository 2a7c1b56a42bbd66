"""Notebooks of attention and of all verdicts run from their parameters; their claims can fail."""

import json
from pathlib import Path

import pandas as pd
import papermill
import pytest

from theory.verdict import Counterexample, Verdict
from vala_research import InputError
from vala_research.experiments.theory.overview import verdict_figure

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"
FALSE = Verdict(
    "C.99", "x <= 1", "false", "x <= 2", 1.9, 2.0, hypotheses={"x is real": True},
    counterexample=Counterexample("x = 1.9", 1.9, 1.0), least_tightness=0.9,
)  # fmt: skip


def run(notebook: str, name: str, folder: Path, **parameters) -> tuple[dict, pd.DataFrame]:
    """What the notebook recorded of its figure, and its table."""
    out = folder / "out"
    papermill.execute_notebook(
        NOTEBOOKS / f"{notebook}.ipynb", folder / "run.ipynb",
        {**parameters, "output": str(out)}, cwd=NOTEBOOKS, progress_bar=False,
        kernel_name="python3",
    )  # fmt: skip
    kinds = ("pdf", "png", "csv", "json")
    assert {p.name for p in out.iterdir()} == {f"{name}.{kind}" for kind in kinds}
    return json.loads((out / f"{name}.json").read_text()), pd.read_csv(out / f"{name}.csv")


def claim_of(notebook: str) -> str:
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    (claim,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))
    return claim


def test_attention(tmp_path, miniature):
    """Bounds hold at every head, pair and random point; all of it is in the table."""
    small = dict(kinds=["colour"], timesteps=[501], shares=[1.0, 0.001, 0.0], n_random=4000)
    record, table = run("44_theory_attention", "theory_attention", tmp_path, **small)
    assert record["parameters"]["shares"] == [1.0, 0.001, 0.0]
    layers = table[table.panel == "layers"]
    assert len(layers) == 6 * 2 * (2 + 2 * 3)  # layers, heads, pairs
    assert set(layers.pair) == {"words", "edit", "frame", "step"}


def test_attentions_claim_can_fail():
    """A bound that is broken, not attained, or a paper's that holds throughout do not pass."""
    names = ("F", "R")
    good = {name: [0.5, 1.0] for name in names} | {"paper": [2.0]}
    tokens = [{"n_unshared": n, "bias": False, "distance": float(n > 4)} for n in (4, 5)]
    bad_tokens = [{"n_unshared": 4, "bias": False, "distance": 1.0}]

    def check(random=good, layers=good, best=1.0, tokens=tokens, verdict=FALSE) -> None:
        exec(claim_of("44_theory_attention"), {
            "layer_ratios": lambda rows: layers, "rows": [], "random": random, "width": 4,
            "verdicts": {name: verdict for name in names}, "tokens": tokens,
            "best": dict.fromkeys(names, best),
        })  # fmt: skip

    check()
    lost = Verdict("C.99", "x", "holds", "x", 1.1, 1.0)  # its bound is broken
    for wrong in (dict(random=good | {"F": [1.1]}), dict(layers=good | {"R": [1.01]}),
                  dict(best=0.9), dict(layers=good | {"paper": [0.9]}), dict(tokens=bad_tokens),
                  dict(verdict=lost)):  # fmt: skip
        with pytest.raises(AssertionError):
            check(**wrong)


def test_overview(tmp_path):
    some = ["C.2", "C.5", "C.11", "C.13"]
    record, table = run("45_theory_overview", "theory_overview", tmp_path, only=some)
    assert record["parameters"]["only"] == some and list(table.statement) == some
    assert table.reproduced.all() and set(table.verdict) == {"false", "holds"}


def test_overview_of_a_saved_table(tmp_path):
    """What the command line wrote is drawn as it is."""
    (tmp_path / "table.json").write_text(json.dumps([FALSE.as_row()]))
    saved = str(tmp_path / "table.json")
    record, table = run("45_theory_overview", "theory_overview", tmp_path, saved=saved)
    assert record["parameters"]["saved"] == saved and list(table.statement) == ["C.99"]


def test_overviews_claim_can_fail():
    def check(**change) -> None:
        row = FALSE.as_row() | change
        exec(claim_of("45_theory_overview"), {"rows": [row], "saved": "", "names": ["C.99"]})

    check()
    for wrong in ({"reproduced": False}, {"counterexample": None}, {"tightness": 1.01}):
        with pytest.raises(AssertionError):
            check(**wrong)


def test_the_picture_of_verdicts():
    rows = [FALSE.as_row(), FALSE.as_row() | {"statement": "C.98", "reproduced": False}]
    picture = verdict_figure(rows)
    words = [t.get_text() for t in picture.axes[0].texts]
    assert "C.99" in words and "false" in words and "not reproduced" in words and "0.95" in words
    assert any(w.startswith("x = 1.9:") for w in words)
    with pytest.raises(InputError, match="no verdicts"):
        verdict_figure([])
    with pytest.raises(InputError, match="Unknown verdicts"):
        verdict_figure([FALSE.as_row() | {"verdict": "true"}])
