"""Numbers about the assignment: their definitions hold, and a wrong answer is told apart."""

import pytest
import torch

from vala_research.experiments.vala.anchors import (
    keyframe_excess,
    object_purity,
    scene_counts,
    sprite_clips,
)
from vala_research.experiments.vala.assignment_cost import assignment_speed, latent_tokens
from vala_research.methods.anchors import (
    KEYFRAME_METHODS,
    AnchorSettings,
    assign_anchors,
    unit_tokens,
)
from vala_research.methods.keyframes import set_cost, token_costs
from vala_research.sprites.scene import WORLD


def test_excess_is_over_the_best_set(pipe):
    clips = [latent_tokens(pipe, clip.frames) for clip in sprite_clips(3, WORLD, "validation", 8)]
    rows = keyframe_excess(clips, 2, generator=torch.Generator().manual_seed(0))
    assert [(r["clip"], r["method"]) for r in rows] == [
        (i, m) for i in range(3) for m in KEYFRAME_METHODS
    ]
    by = {(r["clip"], r["method"]): r for r in rows}
    for i, x in enumerate(clips):
        cost = token_costs(unit_tokens(x)).flatten(0, 1)
        distortion = set_cost(cost, torch.ones_like(cost[:, 0]), [0, 1])
        assert by[i, "first"]["distortion"] == pytest.approx(distortion)
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


def test_purity_of_a_planted_object():
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., 1:3, 1:3] = 1
    flat = mask.flatten(1)
    signal = torch.stack([flat, 1 - flat], -1)
    found = object_purity(assign_anchors(signal, AnchorSettings(n_anchors=2)), mask)
    assert found["purity"] == pytest.approx(1, abs=1e-3) and found["base"] == pytest.approx(0.75)
    assert found["information"] == pytest.approx(1, abs=0.01)
    assert sorted(found["share"]) == pytest.approx([0, 1], abs=1e-3)
    blind = object_purity(assign_anchors(signal, AnchorSettings(n_anchors=1)), mask)
    assert blind["information"] == pytest.approx(0, abs=1e-6) and blind["purity"] == 0.75
