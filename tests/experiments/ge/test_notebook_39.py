"""The blind study with simulated raters: the notebook runs, and its claims can fail; 6 s."""

import json

import pandas as pd
import pytest
from test_notebooks import run

from vala_research import InputError
from vala_research.evaluation.study.trials import Study
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.ge import user_study
from vala_research.experiments.ge.user_study import WITH, WITHOUT, Settings


def test_notebook_of_the_study(tmp_path):
    out = tmp_path / "out"
    run("39_ge_user_study", tmp_path, output=str(out))
    table = pd.read_csv(out / "ge_user_study.csv")
    assert len(table) == 4 * 4 and set(table.b) == {WITH} and set(table.a) == {WITHOUT}
    assert (out / "study" / "index.html").exists()
    assert len(Study.load(out / "study").pairs) == 4 * 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of one editor with its clips, and its settings."""
    settings = Settings.preset("smoke", editors=("TokenFlow",), n_raters=30, n_pairs=10)
    return user_study.make_study(settings, tmp_path_factory.mktemp("study")), settings


def answered(study, settings) -> pd.DataFrame:
    given = user_study.simulated(study, settings)
    return pd.DataFrame([r for g in given for r in user_study.answers.answer_rows(g, study)])


def test_the_claims_can_fail(made, monkeypatch):
    study, settings = made
    rows = answered(study, settings)
    assert_claims(user_study.claims(rows, settings))
    turned = rows.assign(choice=rows.choice.map({WITH: WITHOUT, WITHOUT: WITH, "same": "same"}))
    with pytest.raises(AssertionError, match="the overall preference is found"):
        assert_claims(user_study.claims(turned, settings))
    monkeypatch.setattr(user_study.answers, "IDENTICAL", "pair")  # then careful raters fail
    with pytest.raises((AssertionError, InputError)):
        assert_claims(user_study.claims(rows, settings))


def test_a_study_of_ones_own_is_reported(made, tmp_path):
    study, settings = made
    study.save(tmp_path)
    (tmp_path / "answers").mkdir()
    for i, given in enumerate(user_study.simulated(study, settings)):
        (tmp_path / "answers" / f"{i}.json").write_text(json.dumps(given))
    own = Settings.preset("paper", study=str(tmp_path), given=str(tmp_path / "answers"))
    rows = user_study.run(own, tmp_path / "out")
    claims = {c.sentence: c for c in user_study.claims(rows, own)}
    found = claims["consistency: with adapter is preferred to without"]
    assert found.verdict == "confirmed" and not found.is_asserted and len(claims) == 4
    with pytest.raises(InputError, match="There are no answers"):
        user_study.run(Settings.preset("paper"), tmp_path / "none")
