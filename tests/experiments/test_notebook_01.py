"""The default edit's notebook runs, its claims can fail, its sheet shows what it says; 30 s."""

import json

import pandas as pd
import pytest
from test_notebooks import run

from vala_research import miniature_path
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments import default_edit
from vala_research.experiments.default_edit import BARE, DEFAULT, Settings


def test_notebook_of_the_default_edit(tmp_path, miniature):
    out = tmp_path / "out"
    run("01_default_edit", tmp_path, output=str(out), steps=3, size=32)
    table = pd.read_csv(out / "default_edit.csv")
    assert set(table.setting) == {DEFAULT, BARE} and {"path_error", "psnr"} <= set(table.metric)
    assert json.loads((out / "default_edit.json").read_text())["parameters"]["steps"] == 3


def test_the_default_is_what_the_checkpoint_says(miniature, checkpoint):
    values = json.loads(open(f"{miniature_path()}/edit_defaults.json").read())
    s = default_edit.edit_settings(Settings.preset("sprites"))[DEFAULT]
    assert s.num_inference_steps == values["num_inference_steps"]
    assert s.control_scale == values["control"]["scale"] and s.motion and s.adapter
    other = default_edit.edit_settings(Settings.preset("sprites", model=str(checkpoint)))[DEFAULT]
    assert not (other.motion or other.adapter or other.controlnet)
    assert (other.num_inference_steps, other.guidance_scale) == (50, 7.5)


RIGHT = {"presence": 1.0, "success": 1.0, "path_error": 1.0, "jitter": 0.5, "psnr": 22.0}


def rows(**wrong) -> pd.DataFrame:
    """Ten right clips of two kinds; `wrong`: values of the default edit for one kind."""
    lines = []
    for kind in ("several", "colour"):
        for index in range(10):
            lines.append(RIGHT | {"setting": BARE, "kind": kind, "index": index, "psnr": 15.0})
            default = RIGHT | {"setting": DEFAULT, "kind": kind, "index": index}
            lines.append(default | (wrong if kind == "several" else {}))
    return pd.DataFrame(lines)


def test_right_rows_confirm_every_claim():
    claims = default_edit.claims(rows())
    assert {c.verdict for c in claims} == {"confirmed"} and len(claims) == 5 + 2
    assert_claims(claims)
    page = default_edit.page(rows())
    assert page.loc[(DEFAULT, "colour"), "frames with the object, %"] == 100


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"presence": 0.98}, "is there"), ({"success": 0.8}, "attributes"),
        ({"psnr": 19.9}, "20 dB"),
    ],
)  # fmt: skip
def test_claims_can_fail(wrong, words):
    with pytest.raises(AssertionError, match=words):
        assert_claims(default_edit.claims(rows(**wrong)))


@pytest.mark.parametrize(
    "wrong, words", [({"path_error": 1.6}, "of its path"), ({"jitter": 1.1}, "tremble")]
)
def test_what_misses_its_place_is_reported(wrong, words):
    claims = default_edit.claims(rows(**wrong))
    (missed,) = (claim for claim in claims if claim.verdict == "contradicted")
    assert words in missed.sentence
    assert_claims(claims)


def test_a_kind_that_loses_is_reported():
    *_, several, colour = default_edit.claims(rows(psnr=14.0))
    assert (several.verdict, several.value) == ("contradicted", -1.0)
    assert colour.verdict == "confirmed" and not several.is_asserted
