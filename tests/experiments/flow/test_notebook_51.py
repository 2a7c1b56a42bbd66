"""Notebook 51: anchors in a video transformer; planted rows, counted FLOPs, the notebook: 60 s."""

import pandas as pd
import pytest
from test_notebooks import run

from vala_research.evaluation.verdicts import CONFIRMED, OPEN, assert_claims
from vala_research.experiments.flow import anchors
from vala_research.experiments.flow.anchors import NATIVE, POLICIES, Settings, edit_settings, flops

ANCHORS = "own and 2 anchors"


def planted(gain: float = 1.0, drop: int = 0) -> pd.DataFrame:
    """Eight clips; all frames are better than anchors by about `gain` dB."""
    rows = [
        {"setting": name, "kind": "shape", "index": i, "clip": i, "success": 1.0, "jitter": 1.0,
         "warp_error": 0.005, "psnr": 20.0 + i % 3 + (gain + 0.1 * (i % 2)) * (name == NATIVE)}
        for name in (NATIVE, "own", ANCHORS) for i in range(8)
    ]  # fmt: skip
    return pd.DataFrame(rows[: len(rows) - drop])


def test_what_restrictions_cost_is_told():
    claims = {(c.sentence, c.measured): c for c in anchors.claims(planted())}
    assert claims[f"{NATIVE} beats {ANCHORS}", "PSNR"].verdict == CONFIRMED
    assert claims[f"{NATIVE} beats {ANCHORS}", "success"].verdict == OPEN
    assert_claims(claims.values())
    with pytest.raises(AssertionError, match="not confirmed"):
        assert_claims(anchors.claims(planted(drop=1)))


def test_savings_are_counted():
    """Arithmetic: linear layers and attention of 21 x 1560 tokens, width 1536 and 5120."""
    counted = flops()
    small, large = (counted[f"Wan {size}, 81 frames, 480p"] for size in ("1.3B", "14B"))
    assert small["native, TFLOP"] == pytest.approx(283, abs=1)
    assert large["native, TFLOP"] == pytest.approx(1678, abs=5)
    assert small[ANCHORS] == pytest.approx(0.40, abs=0.005)
    assert large[ANCHORS] == pytest.approx(0.55, abs=0.005)
    assert small["own"] < small["own and 1 anchor"] < small[ANCHORS] < small["own and 4 anchors"]
    assert small[NATIVE] == 1 and small["own and 2 key frames"] == pytest.approx(0.40, abs=0.005)


def test_the_figure_and_the_page_are_drawn_from_rows():
    assert len(anchors.figure(planted()).axes) == 4
    assert anchors.page(planted()).loc[NATIVE, "PSNR to the true edit, dB"] > 21


def test_settings_are_policies():
    assert list(edit_settings(Settings.preset("sprites"))) == list(POLICIES)


def test_notebook_of_anchors_in_a_transformer(tmp_path, miniature):
    out = tmp_path / "out"
    assert run("51_flow_anchors", tmp_path, size=32, output=str(out)) < 400  # 60 on an idle machine
    rows = pd.read_csv(out / "rows.csv")
    assert set(rows.setting) == {NATIVE, "own", ANCHORS} and rows.psnr.notna().all()
