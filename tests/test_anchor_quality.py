"""Numbers about the assignment: their definitions hold, and a wrong answer is told apart."""

import pytest
import torch

from vala_research.evaluation.anchor_quality import (
    keyframe_excess,
    latent_tokens,
    scene_counts,
    sprite_clips,
)
from vala_research.methods.anchors import KEYFRAME_METHODS, propagation_distortion
from vala_research.miniature.configuration import WORLD


def test_excess_is_over_the_best_set(pipe):
    clips = [latent_tokens(pipe, clip.frames) for clip in sprite_clips(3, WORLD, "validation", 8)]
    rows = keyframe_excess(clips, 2, generator=torch.Generator().manual_seed(0))
    assert [(r["clip"], r["method"]) for r in rows] == [
        (i, m) for i in range(3) for m in KEYFRAME_METHODS
    ]
    by = {(r["clip"], r["method"]): r for r in rows}
    for i, x in enumerate(clips):
        assert by[i, "first"]["distortion"] == pytest.approx(propagation_distortion(x, [0, 1]))
        best = by[i, "optimal"]
        assert best["excess"] == 0
        assert all(by[i, m]["excess"] >= 0 for m in KEYFRAME_METHODS)
        ratio = by[i, "first"]["distortion"] / best["distortion"]
        assert by[i, "first"]["excess"] == pytest.approx(ratio - 1)
    assert by[2, "first"]["excess"] > 0.1  # two cuts, and both key frames in the first shot


def test_identical_frames_have_no_excess():
    x = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0)).expand(6, -1, -1)
    assert all(row["excess"] == 0 for row in keyframe_excess([x], 2, ("vala", "first")))


def test_shots_are_counted(pipe):
    rows = scene_counts(5, pipe, WORLD, "validation")
    assert [row["scenes"] for row in rows] == [1, 2, 3, 4, 5]
    assert sum(row["found"] == row["scenes"] for row in rows) >= 4
