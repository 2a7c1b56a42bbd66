"""A clip that flickers has no temporal loss, and much of the repaired one; notebook 40 shows it."""

import pandas as pd
import pytest
import torch
from notebook_runs import run

from vala_research import InputError
from vala_research.evaluation.cases import Case
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.theory.steady_flicker import (
    flicker_kinds,
    setting_claims,
    setting_rows,
    setting_table,
    sprite_flicker,
)
from vala_research.experiments.theory.temporal_loss import (
    KINDS,
    claims,
    figure,
    flicker_rows,
    table,
)


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


def test_flicker_has_no_loss_and_a_moving_clip_has(tiny):
    """With any weights: equal pictures and noise give equal features, so equal similarities."""
    clips = sprite_flicker(2, n_frames=4, size=32)
    measured = pd.DataFrame(flicker_rows(tiny, clips, flicker_weight=0.5))
    assert len(measured) == 2 * 3 * measured.site.nunique()
    by_kind = measured.set_index("kind")
    assert by_kind.loc["flicker", "loss"].max() < 1e-10 < by_kind.loc["moving", "loss"].min()
    lack = 0.5 * (1 - measured.similarity)
    assert (measured.repaired - measured.loss - lack).abs().max() < 1e-12
    assert by_kind.loc["flicker", "repaired"].max() > 1e-6


def test_where_flicker_costs_nothing_and_where_it_costs(tiny):
    """Any weights: 0 if frames see themselves or shared tokens; not with the previous frame."""
    clips = sprite_flicker(1, n_frames=4, size=32)
    rows = pd.DataFrame(setting_rows(tiny, clips, times=(501,)))
    loss = rows[rows.kind == "flicker"].set_index(["attention", "noise"]).loss
    for attention in ("own", "first", "extended"):
        assert loss[attention, "shared"] < 1e-10
    assert loss["sparse_causal", "shared"] > 1e-9 and loss["own", "own"] > 1e-6
    assert len(setting_table(rows)) == 5


def planted_settings(own=0.0, causal=1e-3, noisy=0.2) -> pd.DataFrame:
    settings = {("own", "shared", 1): own, ("first", "shared", 1): 0.0,
                ("sparse_causal", "shared", 1): causal, ("own", "own", 501): noisy}  # fmt: skip
    return pd.DataFrame([
        {"clip": 0, "attention": a, "noise": n, "t": t, "kind": kind, "loss": loss}
        for (a, n, t), flicker in settings.items()
        for kind, loss in (("moving", 0.1), ("flicker", flicker))
    ])  # fmt: skip


def test_claims_of_the_settings_can_fail(capsys):
    assert_claims(setting_claims(planted_settings()))
    assert capsys.readouterr().out.count("confirmed: ") == 3
    for wrong in (dict(own=1e-3), dict(causal=0.0), dict(noisy=0.05)):
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(setting_claims(planted_settings(**wrong)))


def test_a_clip_that_does_not_change_has_neither(tiny):
    frames = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).expand(
        4, -1, -1, -1
    )
    rows = flicker_rows(tiny, [{"still": Case(frames, "a clip", "")}])
    assert all(row["loss"] < 1e-10 and row["repaired"] < 1e-5 for row in rows)


def planted(moving=1e-4, change=0.2, repaired=0.5, attacked=5.9, pattern=6.0, ratio=600.0,
            product=0.8) -> pd.DataFrame:  # fmt: skip
    losses = {"moving": (moving, 0.01), "one change": (change, change + 0.1),
              "flicker": (0.0, repaired)}  # fmt: skip
    rows = [
        {"part": "flicker", "clip": 0, "kind": kind, "site": "up", "loss": a, "repaired": b,
         "similarity": 0.5} for kind, (a, b) in losses.items()
    ]  # fmt: skip
    constants = {"n_frames": 3, "attacked": attacked, "pattern": pattern, "constant": 6.0}
    return pd.DataFrame([
        *rows, {"part": "gradient", "s": 0.6, "product": product},
        {"part": "curvature"} | constants,
        {"part": "curvature"} | constants | {"attacked": float("nan"), "pattern": 6.0},
        {"part": "lipschitz", "M": 0.1, "ratio": ratio, "paper": 160.0, "ours": 600.0},
    ])  # fmt: skip


def test_its_claims_can_fail(capsys):
    assert_claims(claims(planted()))
    assert capsys.readouterr().out.count("confirmed: ") == 7
    for wrong in (dict(moving=0.0), dict(change=-0.1), dict(repaired=0.2), dict(attacked=6.1),
                  dict(pattern=5.0), dict(ratio=601.0), dict(ratio=160.0),
                  dict(product=0.9)):  # fmt: skip
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(claims(planted(**wrong)))


def test_the_notebook(tmp_path, miniature):
    """It runs from its parameters, and its csv redraws its figure."""
    small = dict(n_clips=2, n_frames=4, attacked=[3], norms=[0.1, 1.0], times=[501])
    parameters, rows = run("40_theory_temporal_loss", tmp_path, **small)
    assert parameters["attacked"] == [3]
    flicker = rows[rows.part == "flicker"]
    assert len(flicker) == 2 * 3 * flicker.site.nunique()
    assert set(flicker.kind) == set(table(rows).index) == set(KINDS)
    sizes = rows.groupby("part").size().drop("flicker").to_dict()
    assert sizes == {"gradient": 900, "lipschitz": 2, "curvature": 9, "setting": 2 * 2 * 5}
    assert len(figure(rows, 4).axes) == 3 + 3 * 4 + 2
