"""The search's notebook runs, and its claims follow the rows; 25 s."""

import pandas as pd
import pytest
from test_notebooks import run

from vala_research import InputError
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments import default_search
from vala_research.experiments.default_search import START, Settings
from vala_research.experiments.search_settings import TUNED


def test_notebook_of_the_search(tmp_path, miniature):
    out = tmp_path / "out"
    run("02_default_search", tmp_path, output=str(out))
    table = pd.read_csv(out / "default_search.csv")
    assert set(table.setting) == {START, "steps 2", "no parts"}
    # Three steps: one branch in the inversion, two in the edit.
    assert table.set_index("setting").evaluations.to_dict()[START] == 3 + 2 * 3


def test_every_setting_differs_from_the_start_alone(miniature):
    settings = default_search.edit_settings(Settings.preset("sprites"))
    assert len(set(map(repr, settings.values()))) == len(settings) > 25
    start = vars(settings[START])
    for name in ("steps 10", "guidance 3", "no adapter", "ControlNet x 2", "strength 0.6"):
        changed = [k for k, v in vars(settings[name]).items() if v != start[k]]
        assert len(changed) == 1, name


def test_a_wrong_name_is_refused(miniature):
    with pytest.raises(InputError, match="setting"):
        default_search.edit_settings(Settings.preset("sprites", shown=("steps 11",)))


def test_each_clip_is_learnt_by_an_adapter_of_its_own(checkpoint, tmp_path, monkeypatch):
    """Also where runs of other clips share the folder; the second time nothing is learnt."""
    (name, _), *_ = TUNED.items()
    monkeypatch.setitem(TUNED, name, 1)
    few = dict(model=str(checkpoint), shown=(name,), clip_model="", kinds="colour,background",
               n_frames=3, size=32, steps=2)  # fmt: skip
    for first_clip in (0, 1, 0):
        settings = Settings.preset("smoke", **few, first_clip=first_clip)
        made = default_search.run(settings, tmp_path)
        assert list(made.setting) == [START] * 2 + [name] * 2
        assert set(made["index"]) == {first_clip}
    assert len(list((tmp_path / "tuned").iterdir())) == 2


def rows(**gains: float) -> pd.DataFrame:
    """Ten clips; gains: PSNR over the start, by setting."""
    lines = []
    for index in range(10):
        for name, gain in {START: 0.0, **gains}.items():
            psnr = 20 + index + gain * (1 + index / 10)
            lines.append({"setting": name, "kind": "several", "index": index, "psnr": psnr,
                          "jitter": 1.0, "evaluations": 45})  # fmt: skip
    return pd.DataFrame(lines)


def test_a_better_setting_is_named_and_corrected_for_the_search():
    better, worse, _ = default_search.claims(rows(other=1.0, third=-1.0))
    assert better.sentence.startswith("other") and better.verdict == "confirmed"
    assert better.p == pytest.approx(2 * 2 / 2**10, rel=0.01)
    assert worse.verdict == "contradicted"


def test_a_setting_that_changes_nothing_fails():
    with pytest.raises(AssertionError, match="differs"):
        assert_claims(default_search.claims(rows(other=0.0)))
