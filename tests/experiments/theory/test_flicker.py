"""Clips that flicker between two pictures have no temporal loss, and much of the repaired one."""

import pandas as pd
import pytest
import torch

from vala_research import InputError
from vala_research.evaluation.cases import Case
from vala_research.experiments.theory.temporal_loss import (
    KINDS,
    flicker_kinds,
    flicker_rows,
    sprite_flicker,
)
from vala_research.sprites.scene import WORLD


def test_the_kinds_of_a_clip():
    clip, other = torch.rand(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    kinds = flicker_kinds(clip, other)
    assert tuple(kinds) == KINDS and kinds["moving"] is clip
    assert torch.equal(kinds["one change"], torch.cat([clip[:2], other[2:]]))
    alternating = torch.stack([clip[0], other[0], clip[0], other[0], clip[0]])
    assert torch.equal(kinds["flicker"], alternating)
    for wrong in (other[:4], other[..., :2]):
        with pytest.raises(InputError, match="two of one shape"):
            flicker_kinds(clip, wrong)
    with pytest.raises(InputError, match="at least 3 frames"):
        flicker_kinds(clip[:2], other[:2])


def test_flicker_has_no_loss_and_a_moving_clip_has(pipe):
    """With any weights: equal pictures and noise give equal features, so equal similarities."""
    clips = sprite_flicker(2, WORLD, 4, 32)
    found = pd.DataFrame(flicker_rows(pipe, clips, flicker_weight=0.5))
    assert len(found) == 2 * 3 * found.site.nunique()
    by_kind = found.set_index("kind")
    assert by_kind.loc["flicker", "loss"].max() < 1e-10 < by_kind.loc["moving", "loss"].min()
    lack = 0.5 * (1 - found.similarity)
    assert (found.repaired - found.loss - lack).abs().max() < 1e-12
    assert by_kind.loc["flicker", "repaired"].max() > 1e-6


def test_a_clip_that_does_not_change_has_neither(pipe):
    frames = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).expand(
        4, -1, -1, -1
    )
    rows = flicker_rows(pipe, [{"still": Case(frames, "a clip", "")}])
    assert all(row["loss"] < 1e-10 and row["repaired"] < 1e-5 for row in rows)
