"""Seams are where windows change, and a jump planted there is seen there alone."""

import numpy as np
import pandas as pd
import pytest
from tiny_models import tiny_motion_adapter

from vala_research.evaluation.cases import Material
from vala_research.evaluation.metrics import warp_error
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.fldm import long_clips
from vala_research.experiments.fldm.long_clips import (
    Settings,
    claims,
    edit_settings,
    figure,
    run,
    table,
)
from vala_research.experiments.fldm.seams import SeamError, pair_errors, seam_excess, seams
from vala_research.experiments.fldm.settings import FUSED, IMAGE, VIDEO
from vala_research.sprites.render import render
from vala_research.sprites.scene import WORLD, random_scene, split_generator


def test_seams_by_hand():
    assert seams(16, 16, 4) == [] and seams(16, None, 4) == []
    # 0..15 and 12..27: frame 12 is the first seen twice, frame 16 the first seen once again.
    assert seams(28, 16, 4) == [11, 12, 13, 14, 15]
    # 0..15, 8..23, 16..31: evenly spread.
    assert seams(32, 16, 4) == list(range(7, 24))
    assert seams(32, 16, 0) == [15]
    assert all(0 <= t < 127 for t in seams(128, 16, 4))


@pytest.fixture(scope="module")
def material() -> Material:
    clip = render(random_scene(split_generator("test", 3), world=WORLD), 20, 32)
    return Material(clip.frames, clip.flow, clip.flow_valid, clip.frames)


def test_errors_of_pairs_add_up(material):
    errors = pair_errors(material.frames, material)
    weights = material.flow_valid.flatten(1).sum(1).double().numpy()
    mean = float((np.array(errors) * weights).sum() / weights.sum())
    expected = warp_error(material.frames, material.flow, material.flow_valid)
    assert len(errors) == 19 and mean == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("jump, is_seam", [(4, True), (10, True), (16, True), (18, False)])
def test_a_jump_is_seen_where_it_is(material, jump, is_seam):
    """Frames from `jump` on are darker: the pair (jump - 1, jump) alone is torn."""
    frames = material.frames.clone()
    frames[jump:] *= 0.5
    measure = SeamError(16, 4)
    calm, torn = measure(material.frames, material), measure(frames, material)
    hit, spared = ("seam_warp", "other_warp") if is_seam else ("other_warp", "seam_warp")
    assert torn[hit] > calm[hit] + 1e-3
    assert torn[spared] <= calm[spared] + 1e-6
    short = Material(*(x[:8] for x in (frames, material.flow, material.flow_valid)))
    few = measure(short.frames, Material(short.frames, short.flow[:7], short.flow_valid[:7]))
    assert np.isnan(few["seam_warp"]) and few["other_warp"] > 0  # one window: no seam


def planted(excess: float, gain: float = 0.5, lengths=(32,)) -> pd.DataFrame:
    """Edits of 8 clips; seams only where there are more frames than the 16 of a window."""
    rows = []
    for n in lengths:
        for i in range(8):
            base = 1 + 0.1 * i
            for k, (name, more) in enumerate(((IMAGE, 0.0), (VIDEO, excess), (FUSED, excess / 2))):
                wobble = 0.01 * (i * (k + 2) % 5)
                seam = 2 * base * np.exp(more + wobble) if n > 16 else np.nan
                rows.append(
                    {"setting": name, "kind": "several", "index": i, "frames": n, "window": 16,
                     "gain": 1.0, "psnr": 20 + base + gain * (name == FUSED) + wobble,
                     "success": 0.5, "warp_error": base, "seam_warp": seam, "other_warp": base,
                     "live": n * (1 + 0.1 * k)}
                )  # fmt: skip
    return pd.DataFrame(rows)


def verdicts(rows: pd.DataFrame) -> dict[tuple[str, str], str]:
    return {(claim.sentence, claim.measured): claim.verdict for claim in claims(rows)}


def test_an_excess_is_relative_to_what_knows_no_windows():
    """The pairs at seams move twice as much for every setting: that alone is no seam."""
    assert abs(seam_excess(planted(0.0), VIDEO).mean()) < 0.03
    assert seam_excess(planted(0.7), VIDEO).mean() == pytest.approx(0.7, abs=0.03)
    assert len(seam_excess(planted(0.7).assign(seam_warp=np.nan), VIDEO)) == 0
    seen = verdicts(planted(0.7))
    assert seen["32 frames: seams show: video only", "log ratio"] == "confirmed"
    assert seen["32 frames: fused beats the image model", "PSNR"] == "confirmed"
    wrong = verdicts(planted(-0.7, gain=-0.5))
    assert wrong["32 frames: seams show: video only", "log ratio"] == "contradicted"
    assert wrong["32 frames: fused beats the image model", "PSNR"] == "contradicted"


@pytest.mark.parametrize(
    "length, name, column, wrong, sentence",
    [
        (20, VIDEO, "psnr", np.nan, "every model edits every clip"),
        (20, VIDEO, "seam_warp", np.nan, "there are seams where there are windows"),
        (4, VIDEO, "seam_warp", 0.1, "there are seams where there are windows"),
        (20, IMAGE, "live", 40.0, "live memory per frame does not grow"),
        (4, FUSED, "live", 9.0, "holds what the larger of its two models holds"),
    ],
)
def test_the_facts_can_fail(length, name, column, wrong, sentence):
    """One wrong value, of one clip, is enough."""
    rows = planted(0.1, lengths=(4, 20))
    assert_claims(claims(rows))
    is_wrong = (rows.frames == length) & (rows.setting == name) & (rows["index"] == 0)
    rows.loc[is_wrong, column] = wrong
    with pytest.raises(AssertionError, match=sentence):
        assert_claims(claims(rows))


def test_rows_and_figure(tmp_path, checkpoint, monkeypatch):
    """Random networks, one step, planted costs; the figure is redrawn from the csv."""
    names, lengths = (IMAGE, VIDEO, FUSED), (4, 18)
    known = [
        {"setting": s, "frames": n, "tflop": 1.0 * n, "live": 2.0 * n}
        for n in lengths
        for s in names
    ]
    monkeypatch.setattr(long_clips, "costs", lambda settings: pd.DataFrame(known))
    tiny_motion_adapter().save_pretrained(tmp_path / "motion")
    settings = Settings.preset(
        "smoke", model=str(checkpoint), motion=str(tmp_path / "motion"), lengths=lengths,
        kinds="colour", size=16, steps=1,
    )  # fmt: skip
    rows = run(settings, tmp_path)
    assert list(rows.frames) == [4] * 3 + [18] * 3
    assert rows.seam_warp.notna().tolist() == [False] * 3 + [True] * 3
    assert {p.parent.name for p in tmp_path.glob("*/rows.csv")} == {
        "frames_4_overlap_2", "frames_18_overlap_2",
    }  # fmt: skip
    kept = pd.read_csv(tmp_path / "rows.csv")
    pd.testing.assert_frame_equal(kept, rows, check_dtype=False)
    assert table(kept).tflop.tolist() == [4.0] * 3 + [18.0] * 3

    picture = figure(pd.concat([kept, planted(0.5)]))
    titles = [ax.get_title() for ax in picture.axes]
    assert titles[0] == "PSNR to the true edit, dB" and "seams" in titles[3]
    assert picture.axes[4].get_lines()[0].get_ydata() == pytest.approx([2.0, 2.0, 1.0])


def test_settings_differ_in_their_sources_alone():
    edits = edit_settings(Settings.preset("smoke", motion="m", window=8, overlap=2, steps=3))
    assert edits[VIDEO].fusion.inverting() == edits[FUSED].fusion.inverting()
    assert edits[VIDEO].fusion.schedule.tau == 1.0 and edits[IMAGE].fusion is None
    assert (edits[FUSED].fusion.window, edits[FUSED].fusion.overlap) == (8, 2)
    assert [s.num_inference_steps for s in edits.values()] == [3, 3, 3]
