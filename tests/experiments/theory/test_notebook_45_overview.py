"""Notebook 45 shows every verdict as it is, and its claims can fail."""

import json

import pandas as pd
import pytest
from notebook_runs import run

from theory.verdict import Counterexample, Verdict
from vala_research import InputError
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.theory import overview

FALSE = Verdict(
    statement="C.99", claim="x <= 1", verdict="false", corrected="x <= 2", measured=1.9, bound=2.0,
    hypotheses={"x is real": True}, counterexample=Counterexample("x = 1.9", 1.9, 1.0),
    least_tightness=0.9,
)  # fmt: skip


def rows(*changes: dict) -> pd.DataFrame:
    return pd.DataFrame([FALSE.as_row() | change for change in changes])


def test_the_notebook(tmp_path):
    some = ["C.2", "C.5", "C.11", "C.13"]
    parameters, table = run("45_theory_overview", tmp_path, only=some)
    assert parameters["only"] == some and list(table.statement) == some
    assert table.reproduced.all()
    assert set(table.verdict) == {"false", "holds", "holds with hypothesis"}
    assert len(overview.figure(table).axes) == 1  # from a csv, too


def test_a_saved_table(tmp_path):
    """What the command line wrote is taken as it is: nothing is checked."""
    saved = tmp_path / "table.json"
    saved.write_text(json.dumps([FALSE.as_row()]))
    settings = overview.Settings.preset("smoke", saved=str(saved))
    table = overview.run(settings, tmp_path / "out", lambda only, left_out: pytest.fail("checked"))
    assert settings.inputs == [str(saved)] and list(table.statement) == ["C.99"]
    assert table.hypotheses[0] == "x is real" and list(overview.table(table).index) == ["C.99"]


def test_the_smoke_preset_leaves_out_the_slowest(tmp_path):
    asked = {}

    def checks(only, left_out):
        asked[only] = left_out
        return [FALSE.as_row()]

    for preset in ("smoke", "paper"):
        overview.run(overview.Settings.preset(preset, only=(preset,)), tmp_path, checks)
    assert len(asked["smoke",]) == 6 and asked["paper",] == ()


def test_its_claims_can_fail():
    assert_claims(overview.claims(rows({})))
    for wrong in ({"reproduced": False}, {"counterexample": None}, {"tightness": 1.01}):
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(overview.claims(rows({}, wrong)))


def test_the_picture():
    picture = overview.figure(rows({}, {"statement": "C.98", "reproduced": False}))
    words = [t.get_text() for t in picture.axes[0].texts]
    assert "C.99" in words and "false" in words and "not reproduced" in words and "0.95" in words
    assert any(w.startswith("x = 1.9:") for w in words)
    with pytest.raises(InputError, match="no verdicts"):
        overview.figure(rows())
    with pytest.raises(InputError, match="Unknown verdicts"):
        overview.figure(rows({"verdict": "true"}))
