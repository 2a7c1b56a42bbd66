"""Curves show their tables: counts, medians and the right answer are read back from the axes."""

import pytest
import torch
from matplotlib.figure import Figure

from vala_research import InputError
from vala_research.experiments.vala.anchors import (
    counted,
    effective_anchors,
    effective_anchors_curve,
    keyframe_excess_strip,
)
from vala_research.methods.anchors import AnchorSettings

COUNTED = [{"clip": c, "n_anchors": k, "dirichlet": a0, "n_effective": k - c}
           for c in range(2) for k in (4, 8) for a0 in (0.01, 1.0)]  # fmt: skip
EXCESS = [{"clip": c, "method": m, "excess": e}
          for m, values in {"vala": (0.01, 0.02, 0.3), "uniform": (0.5, 0.1, 0.2)}.items()
          for c, e in enumerate(values)]  # fmt: skip


def test_effective_anchors_counts_directions_whatever_the_prior():
    """Three well separated directions are three anchors; at most two when two are allowed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.eye(8)[[0] * 5 + [3] * 5 + [6] * 5] + 0.01 * torch.randn(15, 8, generator=generator)
    rows = effective_anchors([x[:, None]], priors=(0.01, 1.0), n_anchors=(2, 6))
    assert [row["dirichlet"] for row in rows] == [0.01, 1.0] * 2
    assert [row["n_effective"] for row in rows] == [2, 2, 3, 3]
    one = effective_anchors([x[:, None]], (0.1,), (6,), AnchorSettings(max_sweeps=1))
    assert set(one[0]) == {"clip", "n_anchors", "dirichlet", "n_effective"}


def test_curve_draws_means_over_clips_and_the_right_answer():
    pytest.importorskip("seaborn")
    ax = Figure().add_subplot()
    effective_anchors_curve(COUNTED, ax, n_shots=3)
    drawn = [list(line.get_ydata()) for line in ax.lines if len(line.get_ydata()) == 2]
    assert [3.5, 3.5] in drawn and [7.5, 7.5] in drawn and [3, 3] in drawn
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["4", "8", "shots"]
    with pytest.raises(InputError, match="no rows"):
        effective_anchors_curve([], ax)


def test_strip_shows_every_clip_and_the_medians():
    pytest.importorskip("seaborn")
    ax = Figure().add_subplot()
    keyframe_excess_strip(EXCESS, ax)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["vala", "uniform"]
    *dots, medians = (c.get_offsets()[:, 0].tolist() for c in ax.collections)
    assert sorted(dots[0]) == pytest.approx([1, 2, 30]) and medians == pytest.approx([2, 20])
    with pytest.raises(InputError, match="no rows"):
        keyframe_excess_strip([], ax)


def test_panels_share_one_legend_and_the_first_knows_the_shots():
    pytest.importorskip("seaborn")
    first, second, last = counted({"frames": COUNTED, "sites": COUNTED}, EXCESS, n_shots=3).axes
    assert [ax.get_title() for ax in (first, second, last)] == ["frames", "sites", "key frames"]
    assert first.get_legend() and not second.get_legend()
    assert len(first.lines) == len(second.lines) + 1
