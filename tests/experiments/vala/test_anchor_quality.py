"""Numbers about the assignment: their definitions hold, and a wrong answer is told apart."""

import pytest
import torch

from vala_research.experiments.vala.anchor_quality import (
    effective_anchors,
    keyframe_excess,
    n_scenes,
    scene_counts,
    sprite_clip,
)
from vala_research.experiments.vala.assignment_cost import assignment_speed, latent_tokens
from vala_research.methods.anchors import (
    KEYFRAME_METHODS,
    AnchorSettings,
    propagation_distortion,
)


def test_excess_is_over_the_best_set(pipe):
    clips = [latent_tokens(pipe, sprite_clip(i, "validation", 8).frames) for i in range(3)]
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
    clips = [sprite_clip(i, "validation") for i in range(5)]
    rows = scene_counts([pipe.encode(clip.frames) for clip in clips], map(n_scenes, clips))
    assert [row["scenes"] for row in rows] == [1, 2, 3, 4, 5]
    assert sum(row["found"] == row["scenes"] for row in rows) >= 4


def test_effective_anchors_counts_directions_whatever_the_prior():
    """Three well separated directions are three anchors; at most two when two are allowed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.eye(8)[[0] * 5 + [3] * 5 + [6] * 5] + 0.01 * torch.randn(15, 8, generator=generator)
    rows = effective_anchors([x[:, None]], priors=(0.01, 1.0), n_anchors=(2, 6))
    assert [row["dirichlet"] for row in rows] == [0.01, 1.0] * 2
    assert [row["n_effective"] for row in rows] == [2, 2, 3, 3]
    one = effective_anchors([x[:, None]], (0.1,), (6,), AnchorSettings(max_sweeps=1))
    assert set(one[0]) == {"clip", "n_anchors", "dirichlet", "n_effective"}


def test_speed_is_beside_an_equal_clustering():
    """Three tight planted directions: both find them, and one anchor alone is far worse."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    x = centres[torch.randint(3, (4, 100), generator=generator)]
    x = x + 0.02 * torch.randn(x.shape, generator=generator)
    row = assignment_speed(x, 3, 2, repeats=1, stride=1)
    assert row["gap"] == pytest.approx(row["kmeans_gap"], rel=1e-3)
    assert row["distortion"] == pytest.approx(row["kmeans_distortion"], rel=0.05)
    assert row["ratio"] == row["kmeans_seconds"] / row["seconds"]
    assert assignment_speed(x, 1, 2, repeats=1, stride=1)["gap"] > 10 * row["gap"]
