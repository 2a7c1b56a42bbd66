"""Notebook 50: edits without an inversion; planted rows, and the notebook once, 25 s."""

import pandas as pd
import pytest
import torch
from test_notebooks import run

from vala_research.evaluation.cases import edit_cases
from vala_research.evaluation.verdicts import CONFIRMED, CONTRADICTED, OPEN, assert_claims
from vala_research.experiments.flow import editing
from vala_research.experiments.flow.editing import Settings, edit_settings, kept_background
from vala_research.sprites.scene import WORLD


def test_notebook_of_edits_without_inversion(tmp_path, miniature):
    out = tmp_path / "out"
    asked = dict(output=str(out), bases="image,wan", size=32)
    assert run("50_flow_editing", tmp_path, **asked) < 240  # 40 on an idle machine
    rows = pd.read_csv(out / "rows.csv")
    ways = ("inversion", "FlowEdit", "FlowAlign")
    assert set(rows.setting) == {f"{base}, {way}" for base in ("image", "wan") for way in ways}
    assert set(rows.evaluations) == {9} and rows.psnr.notna().all()


def planted(gain: float = 1.0, **changed) -> pd.DataFrame:
    """Eight clips; FlowEdit is better than inversion by about `gain` dB; changed: columns."""
    return pd.DataFrame(
        {"setting": name, "kind": "shape", "index": i, "clip": i, "evaluations": 45.0,
         "psnr": 20.0 + i % 3 + (gain + 0.1 * (i % 2)) * (name == "image, FlowEdit"),
         "success": 1.0, "jitter": 1.0} | changed
        for name in ("image, inversion", "image, FlowEdit") for i in range(8)
    )  # fmt: skip


@pytest.mark.parametrize(("gain", "verdict"), [(1.0, CONFIRMED), (-1.0, CONTRADICTED)])
def test_a_better_way_is_told_from_a_worse_one(gain, verdict):
    claims = {(c.sentence, c.measured): c for c in editing.claims(planted(gain))}
    assert claims["image, FlowEdit beats inversion", "PSNR"].verdict == verdict
    assert claims["image, FlowEdit beats inversion", "success"].verdict == OPEN
    assert_claims(claims.values())


def test_claims_of_fact_can_fail():
    unequal = planted()
    unequal.loc[unequal.setting == "image, FlowEdit", "evaluations"] = 60.0
    for wrong in (unequal, planted().iloc[:-1]):
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(editing.claims(wrong))


def test_the_figure_and_the_page_are_drawn_from_rows():
    assert len(editing.figure(planted()).axes) == 3
    assert editing.page(planted()).loc["image, FlowEdit", "PSNR to the true edit, dB"] > 21


def test_settings_name_base_policy_and_way():
    sprites, wan = (edit_settings(Settings.preset(name)) for name in ("sprites", "sprites_wan"))
    assert [*sprites, *wan] == [
        "image, inversion", "image, FlowEdit", "image, FlowAlign", "image, anchors, inversion",
        "image, anchors, FlowEdit", "motion, inversion", "motion, FlowEdit", "motion, FlowAlign",
        "wan, inversion", "wan, FlowEdit", "wan, FlowAlign", "wan, anchors, inversion",
        "wan, anchors, FlowEdit",
    ]  # fmt: skip
    calls = {s.n_sampling for n, s in edit_settings(Settings.preset("sprites")).items()
             if "inversion" not in n}  # fmt: skip
    assert calls == {3 * 15}


def test_the_background_is_what_the_true_edit_leaves():
    (case,) = edit_cases(WORLD, "validation", 1, ("shape",))
    material = case.material(2, 64)
    assert kept_background(material.truth, material)["background"] > 60
    outside = material.truth.clone()
    kept = (material.truth - material.frames).abs().amax(1, keepdim=True) < 1 / 255
    outside += 0.1 * kept
    assert kept_background(outside, material)["background"] == pytest.approx(20, abs=0.01)
    inside = material.truth + 0.1 * ~kept
    assert kept_background(inside, material)["background"] > 60
    (whole,) = edit_cases(WORLD, "validation", 1, ("background",))
    changed = whole.material(2, 64)
    assert torch.isnan(torch.tensor(kept_background(changed.truth, changed)["background"]))
