"""Notebook 12 runs from its parameters alone, and its claims can fail."""

import json

import pandas as pd
import pytest
from test_notebooks import run
from tiny_models import tiny_checkpoint

from vala_research import InputError
from vala_research.data.clips import write_clip
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.vala.editing_quality import (
    Settings,
    claims,
    edit_settings,
    figure,
    table,
)
from vala_research.experiments.vala.editing_quality import run as compared
from vala_research.sprites.render import render
from vala_research.sprites.scene import random_scene, split_generator

BEST = "VALA 2 site anchors"


def test_editing_quality_on_the_miniature(tmp_path, miniature):
    """The notebook itself asserts the claims, on clips of the test split."""
    out = tmp_path / "out"
    seconds = run("12_vala_editing_quality", tmp_path, output=str(out))
    assert seconds < 240  # 40 on an idle machine
    rows = pd.read_csv(out / "rows.csv")
    assert len(rows) == 2 * 4 and set(rows.kind) == {"several"}
    table = pd.read_csv(out / "vala_editing_quality.csv")
    assert {"warp_error", "psnr", "success", "inversion_psnr"} <= set(table.metric)
    assert table.set_index("setting").cost[BEST].max() == pytest.approx(1.305, abs=0.001)
    record = json.loads((out / "vala_editing_quality.json").read_text())
    assert record["parameters"]["steps"] == 5 and record["model"]["name"] == "miniature"


def test_editing_quality_of_ones_own_clips(tmp_path):
    """A folder with its edits.csv and another checkpoint; nobody knows the true edit."""
    model = tiny_checkpoint(tmp_path / "model")
    clips = tmp_path / "clips"
    clips.mkdir()
    scene = random_scene(split_generator("validation", 0))
    write_clip(clips / "mine.mp4", render(scene, 3, 32).frames, 8.0)
    (clips / "edits.csv").write_text("clip,source_prompt,prompt\nmine.mp4,a red circle,a star\n")
    settings = Settings.preset(
        "smoke", clips=str(clips), model=str(model), n_frames=3, size=32, steps=2,
        policies_shown=f"own,{BEST}",
    )  # fmt: skip
    rows = compared(settings, tmp_path / "o")
    assert set(rows.setting) == {"own", BEST} and "gain" not in rows
    assert len(claims(rows)) == 2 and figure(rows).axes
    assert set(pd.read_csv(tmp_path / "o" / "rows.csv").setting) == {"own", BEST}


def test_all_policies_of_the_comparison_are_distinct():
    made = edit_settings(Settings(n_anchors=3, n_tokens=64, steps=7))
    assert len(made) == 11 and len({repr(s) for s in made.values()}) == 11
    assert all(s.num_inference_steps == 7 for s in made.values())
    assert made["VALA 3 site anchors"].attention.n_anchors == 3
    shown = edit_settings(Settings.preset("smoke", n_anchors=3))
    assert list(shown) == [
        "own", "extended", "uniform 3 key frames", "VALA 3 site anchors"
    ]  # fmt: skip
    with pytest.raises(InputError, match="Unknown policy 'none': choose one of own, first"):
        edit_settings(Settings(policies_shown="own,none"))


def planted(warp: float, gain: float, success: float, n_clips: int = 8) -> pd.DataFrame:
    """Values of editing frame by frame are 1, 2 and 0.9."""
    values = {"own": (1.0, 2.0, 0.9), BEST: (warp, gain, success)}
    return pd.DataFrame(
        dict(setting=name, kind="shape", index=i, warp_error=w + 0.01 * i, gain=g,
             success=s - 0.001 * i * (name == "own"))
        for name, (w, g, s) in values.items() for i in range(n_clips)
    )  # fmt: skip


def test_the_claims_can_fail():
    """Anchors that raise E_warp, edits that lose, or success that falls for sure are refused."""
    right = claims(planted(0.5, 2.0, 0.9))
    assert_claims(right)
    assert [claim.verdict for claim in right] == ["confirmed"] * 4
    for wrong in ((1.5, 2.0, 0.9), (0.5, -1.0, 0.9), (0.5, 2.0, 0.5)):
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(claims(planted(*wrong)))
    assert claims(planted(1.5, 2.0, 0.9))[0].verdict == "contradicted"
    for few in (planted(0.5, 2.0, 0.9, 5), planted(1.5, -1.0, 0.5, 2)):
        assert {claim.verdict for claim in claims(few)} == {"not established"}
        assert_claims(claims(few))
        ends = table(few.assign(cost=1.0))[["low", "high", "gain_low", "gain_high"]]
        assert ends.isna().to_numpy().all()
        drawn = figure(few.assign(cost=1.0))
        assert "no intervals below 6 clips" in drawn.get_supxlabel()
    unsure = planted(0.5, 2.0, 0.9)
    unsure.loc[unsure.setting == BEST, "success"] += [0.1, -0.1] * 4
    assert claims(unsure)[3].verdict == "not established"  # neither a loss nor its absence
    without = planted(0.5, 2.0, 0.9).replace(BEST, "VALA 2 key frames")
    assert claims(without) == []
