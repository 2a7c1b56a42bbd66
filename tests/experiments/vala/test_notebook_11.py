"""Notebook 11 runs from its parameters alone, and its claims can fail."""

import json

import pandas as pd
import pytest
from test_notebooks import run

from vala_research import InputError
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.vala.inversion_fidelity import Settings, claims, table


def test_inversion_fidelity(tmp_path, miniature):
    """The notebook itself asserts the claims."""
    out = tmp_path / "out"
    parameters = {"n_frames": 2, "methods": ["ddim", "exact, quick"], "attentions": ["own"]}
    run("11_vala_inversion_fidelity", tmp_path, output=str(out), **parameters)
    record = json.loads((out / "vala_inversion_fidelity.json").read_text())
    assert record["parameters"]["methods"] == parameters["methods"]
    assert {p.suffix for p in out.iterdir()} == {".pdf", ".png", ".csv", ".tex", ".json"}


def planted(n_clips: int = 6, **changed) -> pd.DataFrame:
    """Sprite clips, all methods, 25 steps; changed: columns that get one value."""
    right = {
        "ddim": {"to_vae": 40.0}, "exact, quick": {"to_vae": 61.0, "evaluations": 50},
        "ddim, guided": {"to_vae": 20.0}, "null text, guided": {"to_vae": 30.0},
    }  # fmt: skip
    rows = []
    for i in range(n_clips):
        for attention in ("own", "anchors, site"):
            for method, values in right.items():
                row = {"clip": f"sprite {i}", "method": method, "attention": attention, "steps": 25,
                       "evaluations": 25, "backward": 0, "to_source": 20.0}  # fmt: skip
                rows.append(row | values)
    return pd.DataFrame(rows).assign(**changed)


def test_the_claims_can_fail():
    """A method that is unfaithful or dear, anchors that lose 1 dB, idle null text are refused."""
    right = planted()
    assert_claims(claims(right))
    assert len(claims(right)) == 2 * 2 + 1 + 2
    for method, attention, wrong in (
        ("exact, quick", "own", {"to_vae": 59.0}),
        ("exact, quick", "own", {"evaluations": 75}),
        ("ddim", "anchors, site", {"to_vae": 38.9}),
        ("null text, guided", "own", {"to_vae": 20.0}),
    ):
        rows = right.copy()
        where = (rows.method == method) & (rows.attention == attention)
        rows.loc[where, list(wrong)] = list(wrong.values())
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(claims(rows))


def test_one_clip_gets_no_verdict():
    """Neither a good nor a bad inversion is judged by fewer than six clips."""
    for rows in (planted(5), planted(1, to_vae=0.0)):
        few = claims(rows)
        assert few and {claim.verdict for claim in few} == {"not established"}
        assert_claims(few)


def test_exact_inversion_is_judged_on_known_clips_only():
    rows = planted(clip="a_dog_runs.mp4", to_vae=30.0)
    assert not any("exact" in claim.sentence for claim in claims(rows))


def test_means_are_over_clips():
    rows = planted(2)
    rows.loc[rows["clip"] == "sprite 1", "to_vae"] -= 2
    quick = table(rows).set_index(["method", "attention"]).loc["exact, quick", "own"]
    assert (quick.to_vae, quick.worst_to_vae, quick.n_clips) == (60.0, 59.0, 2)


def test_unknown_methods_are_refused():
    with pytest.raises(InputError, match="choose one of ddim"):
        Settings(methods=("guess",))
