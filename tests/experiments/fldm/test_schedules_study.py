"""Experiment 22: winners by kind of edit, what a choice per kind pays, and claims that fail."""

import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from planted_rows import failed, plain, planted_rows

from vala_research import InputError
from vala_research.evaluation.comparison_tables import per_clip
from vala_research.evaluation.statistics import paired_gain
from vala_research.experiments.fldm import schedules
from vala_research.methods.fusion import KINDS

SCHEDULES = {schedules.schedule_name(k, t): plain() for k in KINDS for t in (0.0, 0.5)}


def schedule_rows(noise: float, differs: bool) -> pd.DataFrame:
    """Shapes are best edited by one schedule, colours by another; or by the same."""
    best = {
        "shape": "constant, tau 0",
        "colour": "cosine, tau 0.5" if differs else "constant, tau 0",
    }
    rows = planted_rows(SCHEDULES, n=12, noise=noise)
    for kind, name in best.items():
        rows.loc[(rows.kind == kind) & (rows.setting == name), "psnr"] += 1
        rows.loc[(rows.kind == kind) & (rows.setting == name), "warp_error"] -= 1
    return rows


def test_winners_by_kind_and_whether_they_pay():
    rows = schedule_rows(0.1, differs=True)
    winners = schedules.winners(rows, ("psnr", "warp_error")).set_index(["metric", "kind"])
    for metric in ("PSNR", "E_warp"):
        assert winners.loc[(metric, "shape")].best == "constant, tau 0"
        assert winners.loc[(metric, "colour")].best == "cosine, tau 0.5"
        assert winners.loc[(metric, "colour")].gain == pytest.approx(1, abs=0.15)
    one = paired_gain(*(
        per_clip(rows[rows.kind == "shape"], "psnr")[name].to_numpy()
        for name in ("constant, tau 0", "decay_image, tau 0.5")
    ))  # fmt: skip
    p = winners.loc[("PSNR", "shape")].p
    assert p == pytest.approx(7 * one.p_value) and p < 0.05
    claims = {(c.sentence, c.measured): c for c in schedules.claims(rows)}
    best = claims["shape: constant, tau 0 beats the released schedule", "PSNR"]
    assert best.verdict == "confirmed" and best.p == p
    pays = "a schedule for each kind of edit beats one for all"
    assert {claims[pays, m].verdict for m in ("PSNR", "E_warp")} == {"confirmed"}
    # One kind of two is served by one for all.
    assert claims[pays, "PSNR"].value == pytest.approx(0.5, abs=0.1)
    same = schedules.claims(schedule_rows(0.1, differs=False))
    same = next(c for c in same if c.sentence == pays and c.measured == "PSNR")
    assert same.verdict == "not established" and same.value == 0
    with pytest.raises(InputError, match="No rows of 'missing'"):
        schedules.winners(rows, ("psnr",), "missing")


def test_one_clip_leaves_none_to_choose_on():
    with pytest.raises(InputError, match="two or more"):
        schedules.claims(planted_rows(SCHEDULES, n=1))


def test_a_winner_by_chance_is_not_established():
    """Noise alone: the best of eight gains something, and p is corrected for the eight."""
    claims = schedules.claims(planted_rows(SCHEDULES, noise=0.05))
    best = [c for c in claims if "beats the released schedule" in c.sentence]
    assert len(best) == 2 and all(c.value >= 0 for c in best)
    assert {c.verdict for c in best} == {"not established"}


def test_asserted_claims_can_fail():
    """Lost rows, a row made twice, and schedules that make no difference."""
    rows = schedule_rows(0.1, differs=True)
    assert not failed(schedules.claims(rows))
    with pytest.raises(InputError, match="NaN"):
        schedules.claims(rows.iloc[1:])
    twice = pd.concat([rows, rows.iloc[:1]])
    assert failed(schedules.claims(twice)) == ["every setting makes every edit"]
    alike = rows.assign(psnr=20.0)
    assert failed(schedules.claims(alike)) == ["the schedule changes every edit"]


def test_maps_frame_the_best_and_star_what_is_established():
    rows = schedule_rows(0.1, differs=True)
    fig = schedules.figure(rows, ("psnr", "warp_error"))
    assert len(fig.axes) == 4
    frames = [[p for p in ax.patches if isinstance(p, Rectangle)] for ax in fig.axes]
    places = [(round(f[0].get_x() + 0.48), round(f[0].get_y() + 0.48)) for f in frames]
    assert places == [(0, 0), (1, 3)] * 2  # constant at tau 0; cosine at tau .5; E_warp too
    stars = [[t.get_text() for t in ax.texts if "*" in t.get_text()] for ax in fig.axes]
    assert [len(s) for s in stars] == [1] * 4
    even = schedules.figure(planted_rows(SCHEDULES, noise=0.01), ("psnr",))
    assert not [t for ax in even.axes for t in ax.texts if "*" in t.get_text()]
