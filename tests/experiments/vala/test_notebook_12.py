"""Notebook 12 runs from its parameters alone, and its claims can fail."""

import json
import math

import pandas as pd
import pytest
import torch
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
from vala_research.methods.anchors import assign_anchors
from vala_research.sprites.render import render
from vala_research.sprites.scene import random_scene, split_generator

BEST = "VALA 2 site anchors"


def test_editing_quality_on_the_miniature(tmp_path, miniature):
    """The notebook itself asserts the claims, on clips of the test split."""
    out = tmp_path / "out"
    seconds = run("12_vala_editing_quality", tmp_path, size=32, output=str(out))
    assert seconds < 240  # 40 on an idle machine
    rows = pd.read_csv(out / "rows.csv")
    assert len(rows) == 4 and set(rows.kind) == {"several"}
    table = pd.read_csv(out / "vala_editing_quality.csv")
    assert {"warp_error", "psnr", "success", "inversion_psnr"} <= set(table.metric)
    assert table.set_index("setting").cost[BEST].max() == pytest.approx(1.305, abs=0.001)
    record = json.loads((out / "vala_editing_quality.json").read_text())
    assert record["parameters"]["steps"] == 3 and record["model"]["name"] == "miniature"


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
    assert len(claims(rows)) == 1 and figure(rows).axes
    assert set(pd.read_csv(tmp_path / "o" / "rows.csv").setting) == {"own", BEST}


def test_all_policies_of_the_comparison_are_distinct():
    made = edit_settings(Settings(n_anchors=3, n_tokens=64, steps=7))
    assert len(made) == 13 and len({repr(s) for s in made.values()}) == 13
    assert all(s.num_inference_steps == 7 for s in made.values())
    assert made["VALA 3 site anchors"].attention.n_anchors == 3
    shown = edit_settings(Settings.preset("smoke", n_anchors=3))
    assert list(shown) == [
        "own", "extended", "uniform 3 key frames", "VALA 3 site anchors"
    ]  # fmt: skip
    with pytest.raises(InputError, match="Unknown policy 'none': choose one of own; first"):
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
    """Edits that lose, and success that falls for sure, are refused; E_warp is reported."""
    right = claims(planted(0.5, 2.0, 0.9))
    assert_claims(right)
    assert [claim.verdict for claim in right] == ["confirmed"] * 3
    for wrong in ((0.5, -1.0, 0.9), (0.5, 2.0, 0.5)):
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(claims(planted(*wrong)))
    raised = claims(planted(1.5, 2.0, 0.9))[0]
    assert raised.verdict == "contradicted" and not raised.is_asserted
    for few in (planted(0.5, 2.0, 0.9, 5), planted(1.5, -1.0, 0.5, 2)):
        assert {claim.verdict for claim in claims(few)} == {"not established"}
        assert_claims(claims(few))
        ends = table(few.assign(cost=1.0))[["low", "high", "gain_low", "gain_high"]]
        assert ends.isna().to_numpy().all()
        drawn = figure(few.assign(cost=1.0))
        assert "no intervals below 6 clips" in drawn.get_supxlabel()
    unsure = planted(0.5, 2.0, 0.9)
    unsure.loc[unsure.setting == BEST, "success"] += [0.1, -0.1] * 4
    assert claims(unsure)[2].verdict == "not established"  # neither a loss nor its absence
    without = planted(0.5, 2.0, 0.9).replace(BEST, "VALA 2 key frames")
    assert claims(without) == []


def test_frames_that_agree_are_seen_in_jitter():
    """Reported, not asserted; an edit that lost its object has no jitter and is left out."""
    for change, verdict in (
        (-1.0, "confirmed"), (1.0, "contradicted"), (math.nan, "not established"),
    ):  # fmt: skip
        rows = planted(0.5, 2.0, 0.9)
        rows["jitter"] = 5.0 + rows["index"] + change * (rows.setting == BEST)
        claim = claims(rows)[-1]
        assert claim.measured == "jitter, reduction" and claim.verdict == verdict
        assert not claim.is_asserted


FIELD = ("own", "extended", "uniform 2 key frames", BEST, f"{BEST}, contrastive",
         f"{BEST}, refined")  # fmt: skip


def known(gains: dict[str, float], motion: str = "usual", n_clips: int = 8) -> pd.DataFrame:
    """Rows of the field: this much less jitter and more PSNR than 5, by name."""
    return pd.DataFrame(
        dict(setting=name, kind="shape", index=i, motion=motion, warp_error=1.0 + 0.1 * i, gain=2.0,
             success=1.0, psnr=20 + i + gains.get(name, 0), jitter=5 + i - gains.get(name, 0),
             cost=1.0)
        for name in FIELD for i in range(n_clips)
    )  # fmt: skip


def verdicts(rows: pd.DataFrame) -> dict[tuple[str, str], str]:
    return {(c.sentence, c.measured): c.verdict for c in claims(rows)[3:]}


def test_anchors_are_compared_with_the_field_and_with_plain_variational_bayes():
    """In jitter and PSNR; nothing of it is asserted."""
    good = {BEST: 1.0, f"{BEST}, contrastive": 1.5, f"{BEST}, refined": 1.0}
    found = verdicts(known(good))
    assert len(found) == 2 * 3 + 2 * 2
    for than in FIELD[:3]:
        assert found[f"{BEST} beat {than} in jitter", "jitter, reduction"] == "confirmed"
        assert found[f"{BEST} beat {than} in PSNR", "PSNR, gain"] == "confirmed"
    plain = "beats plain variational Bayes in"
    for what, verdict in (("The contrastive term", "confirmed"),
                          ("The refinement network alone", "not established")):  # fmt: skip
        assert found[f"{what} {plain} jitter", "jitter, reduction"] == verdict
        assert found[f"{what} {plain} PSNR", "PSNR, gain"] == verdict
    bad = claims(known({BEST: -1.0, f"{BEST}, contrastive": -2.0}))[3:]
    assert {c.verdict for c in bad[:8]} == {"contradicted"} and not any(c.is_asserted for c in bad)
    assert bad[0].value == pytest.approx(-1) and bad[6].value == pytest.approx(-1)

    # Where the true edit is unknown, E_warp alone is judged.
    bare = known(good).drop(columns=["jitter", "gain", "success"])
    measured = [c.measured for c in claims(bare)[1:]]
    assert measured == ["E_warp, reduction"] * 2


def test_each_motion_has_its_own_table_lines_and_claims():
    rows = pd.concat([known({BEST: 1.0}), known({BEST: -1.0}, "fast")], ignore_index=True)
    rows = rows[rows.setting.isin(["own", "extended", BEST])]
    found = verdicts(rows)
    assert found[f"{BEST} beat own in jitter (usual)", "jitter, reduction"] == "confirmed"
    assert found[f"{BEST} beat own in jitter (fast)", "jitter, reduction"] == "contradicted"
    assert len(found) == 2 * 2 * 2
    lines = table(rows).set_index(["motion", "setting", "metric"])
    assert lines.loc[("usual", BEST, "jitter"), "gain"] == pytest.approx(1)
    assert lines.loc[("fast", BEST, "jitter"), "gain"] == pytest.approx(-1)
    labels = [label.get_text() for label in figure(rows).axes[0].get_yticklabels()]
    assert len(labels) == 2 * 2 and labels[0] == "extended, usual  (1.00x)"
    one = figure(rows[rows.motion == "fast"]).axes[0].get_yticklabels()
    assert one[0].get_text() == "extended  (1.00x)"


def test_the_table_tells_the_smallest_gain_that_would_have_been_found():
    """Of 34 clips: .495 standard deviations of the paired differences."""
    rows = known({}, n_clips=34).drop(columns=["psnr", "success"])
    wobble = rows["index"].map(lambda i: (-1) ** i) * (rows.setting == BEST)
    lines = table(rows.assign(jitter=rows.jitter + wobble)).set_index(["setting", "metric"])
    assert lines.loc[(BEST, "jitter"), "detectable"] == pytest.approx(0.495 * 1.015, rel=2e-3)
    assert math.isnan(lines.loc[("own", "jitter"), "detectable"])


def test_refinement_without_the_contrastive_term_is_plain_variational_bayes():
    """The posterior is where the bound is largest; only the contrastive term moves it."""
    made = edit_settings(Settings(policies_shown=", ".join(FIELD)))
    assert tuple(made) == FIELD  # names with commas, in a text with commas
    assert tuple(edit_settings(Settings(policies_shown=list(FIELD)))) == FIELD
    x = 0.7 * torch.randn(4, 30, 5, generator=torch.Generator().manual_seed(0))
    x[:, ::2, 0] += 2
    x[:, 1::2, 1] += 2
    plain, contrastive, refined = (assign_anchors(x, made[name].attention) for name in FIELD[3:])
    assert torch.equal(plain.responsibilities, refined.responsibilities)
    assert not torch.allclose(plain.responsibilities, contrastive.responsibilities, atol=1e-4)
    assert made[FIELD[4]].attention.contrastive_weight == 0.1


def test_the_motions_of_the_clips_are_chosen():
    settings = Settings.preset("smoke", motions="usual, cut", n_clips=1)
    assert [case.motion for case in settings.cases()] == ["usual", "cut"]
    assert [case.motion for case in Settings.preset("smoke", n_clips=1).cases()] == ["usual"]
    with pytest.raises(InputError, match="Unknown motions 'slow': choose one of usual, fast, cut"):
        Settings.preset("smoke", motions="slow")
    with pytest.raises(InputError, match="motions is empty: give one or more of usual, fast, cut"):
        Settings.preset("smoke", motions=()).cases()
