"""VALA's key frames in TokenFlow: the notebook runs, and its claims follow the rows; 40 s."""

from dataclasses import replace

import pandas as pd
import pytest
from test_notebooks import run

from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.vala import key_frames_in_token_flow as experiment
from vala_research.experiments.vala.key_frames_in_token_flow import (
    ANEW,
    ONCE,
    RANDOM,
    VALA,
    Settings,
)


def test_notebook_of_the_key_frames(tmp_path, miniature):
    out = tmp_path / "out"
    run("14_vala_key_frames_in_token_flow", tmp_path, size=32, output=str(out))
    table = pd.read_csv(out / "vala_key_frames_in_token_flow.csv")
    assert set(table.setting) == set(experiment.edit_settings(Settings.preset("sprites")))
    costs = table.drop_duplicates("setting").set_index("setting").cost
    assert costs[VALA] == costs[RANDOM] and costs["frame by frame"] == 1


def test_only_the_choice_of_key_frames_differs():
    settings = experiment.edit_settings(Settings.preset("sprites"))
    ours, once, random = (settings[name].attention for name in (VALA, ONCE, RANDOM))
    assert (ours.keyframes, once.keyframes) == ("vala", "random")
    assert ours.batch == once.batch == 8 and once.mixing == "nearest" and not once.redraws
    assert random == replace(once, redraws=None)
    assert settings[ANEW].attention == replace(ours, redraws=True)


def rows(gain: float) -> pd.DataFrame:
    """Ten clips; gain: PSNR by VALA's key frames, give or take."""
    lines = []
    for index in range(10):
        for name in (RANDOM, ONCE, "uniform key frames", "released", VALA, ANEW):
            more = gain * (1 + index / 10) * {VALA: 1, RANDOM: 0.5, ANEW: 2}.get(name, 0)
            line = {"setting": name, "motion": "usual", "kind": "several", "index": index}
            lines.append(line | {"psnr": 20 + index + more, "warp_error": 1.0 - more, "cost": 1.0})
    return pd.DataFrame(lines)


def test_claims_follow_the_rows():
    for gain, verdict in ((1.0, "confirmed"), (-1.0, "contradicted")):
        claims = experiment.claims(rows(gain))
        assert {c.verdict for c in claims[:-1]} == {verdict}
        assert_claims(claims)
    with pytest.raises(AssertionError, match="change the edit"):
        assert_claims(experiment.claims(rows(0.0)))
