"""Seams are where windows change, and a jump planted there is seen there alone."""

import numpy as np
import pandas as pd
import pytest
import torch

from vala_research.evaluation.cases import Material, edit_cases
from vala_research.evaluation.metrics import warp_error
from vala_research.experiments.fldm.long_clips import (
    SeamError,
    compare_lengths,
    length_claims,
    length_figure,
    long_settings,
    pair_errors,
    seam_excess,
    seams,
)
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


def planted(excess: float, n: int = 8, gain: float = 0.5) -> pd.DataFrame:
    rows = []
    for i in range(n):
        base = 1 + 0.1 * i
        for k, (name, more) in enumerate(((IMAGE, 0.0), (VIDEO, excess), (FUSED, excess / 2))):
            wobble = 0.01 * (i * (k + 2) % 5)
            rows.append(
                {"setting": name, "kind": "several", "index": i, "frames": 32, "gain": 1.0,
                 "psnr": 20 + base + gain * (name == FUSED) + wobble, "success": 0.5,
                 "warp_error": base, "seam_warp": 2 * base * np.exp(more + wobble),
                 "other_warp": base}
            )  # fmt: skip
    return pd.DataFrame(rows)


def test_an_excess_is_relative_to_what_knows_no_windows():
    """The pairs at seams move twice as much for every setting: that alone is no seam."""
    assert abs(seam_excess(planted(0.0), VIDEO).mean()) < 0.03
    assert seam_excess(planted(0.7), VIDEO).mean() == pytest.approx(0.7, abs=0.03)
    assert len(seam_excess(planted(0.7).assign(seam_warp=np.nan), VIDEO)) == 0
    verdicts = length_claims(planted(0.7)).set_index(["claim", "metric"]).verdict
    assert verdicts["seams show: video only", "log ratio"] == "confirmed"
    assert verdicts["fused beats the image model", "PSNR"] == "confirmed"
    wrong = length_claims(planted(-0.7, gain=-0.5)).set_index(["claim", "metric"]).verdict
    assert wrong["seams show: video only", "log ratio"] == "contradicted"
    assert wrong["fused beats the image model", "PSNR"] == "contradicted"


def test_rows_and_figure(tmp_path, checkpoint):
    """A random checkpoint: the image model alone needs no motion modules."""
    settings = {IMAGE: long_settings(num_inference_steps=1)[IMAGE]}
    cases = {n: edit_cases(WORLD, "test", 1, ["colour"]) for n in (4, 18)}
    rows = compare_lengths(
        str(checkpoint), cases, settings, tmp_path, 16, 4, size=16, n_processes=1
    )
    assert list(rows.frames) == [4, 18] and rows.seam_warp.notna().tolist() == [False, True]
    assert {p.name for p in tmp_path.glob("*.csv")} == {
        "frames_4_overlap_4.csv", "frames_18_overlap_4.csv",
    }  # fmt: skip
    memory = [{"setting": IMAGE, "frames": n, "live": 2.0 * n} for n in (4, 18)]
    figure = length_figure(pd.concat([rows, planted(0.5)]), memory)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "PSNR to the true edit, dB" and "seams" in titles[3]
    lines = figure.axes[4].get_lines()
    assert lines[0].get_ydata() == pytest.approx([2.0, 2.0])


def test_settings_differ_in_their_sources_alone():
    found = long_settings("m", 8, 2, num_inference_steps=3)
    assert found[VIDEO].fusion.inverting() == found[FUSED].fusion.inverting()
    assert found[VIDEO].fusion.schedule.tau == 1.0 and found[IMAGE].fusion is None
    assert (found[FUSED].fusion.window, found[FUSED].fusion.overlap) == (8, 2)
    assert torch.equal(torch.tensor([s.num_inference_steps for s in found.values()]),
                       torch.tensor([3, 3, 3]))  # fmt: skip
