"""Verdicts follow the rows: paired, signed, and not earned by choosing the best of many."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Rectangle
from tiny_models import tiny_motion_adapter

from vala_research import InputError
from vala_research.evaluation import comparison_figures, verdicts
from vala_research.evaluation.benchmark import run_edits
from vala_research.evaluation.cases import edit_cases
from vala_research.evaluation.comparison import per_clip
from vala_research.experiments.fldm import alpha, fusion, schedules
from vala_research.experiments.fldm import fusion as figures
from vala_research.experiments.fldm import schedules as choice
from vala_research.experiments.fldm import settings as study
from vala_research.experiments.fldm.schedules import schedules_figure
from vala_research.methods.fusion import KINDS
from vala_research.sprites.scene import WORLD

METRICS = ("psnr", "success", "warp_error", "clip_t", "clip_f")


def made_rows(levels: dict[str, dict], n: int = 12, kinds=("shape", "colour"), noise=0.0):
    """Rows of settings with these means; clips differ by far more than settings do."""
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        dict(setting=name, kind=kind, index=i, gain=1.0)
        | {m: level + 3.0 * i + noise * draw.normal() for m, level in means.items()}
        for name, means in levels.items() for kind in kinds for i in range(n)
    )  # fmt: skip


def plain(**changes) -> dict:
    return dict.fromkeys(METRICS, 1.0) | changes


# --- settings -----------------------------------------------------------------------------------


def test_the_ends_are_the_single_models_and_every_setting_is_another():
    """a = 0 and 1 weigh one source alone; the image model looks at its own frame, as published."""
    fusions, alphas = fusion.fusion_settings(), alpha.alpha_settings()
    by_schedule = schedules.schedule_settings()
    for settings in (fusions, alphas, by_schedule):
        assert len({repr(s) for s in settings.values()}) == len(settings)
        plans = [s.fusion for s in settings.values() if s.fusion]
        assert all(p.attentions[0] == "own" for p in plans)
    assert len(alphas) == 13 and len(by_schedule) == 16
    for a, weights in ((0, [0.0, 1.0]), (1, [1.0, 0.0]), (0.5, [0.5, 0.5])):
        schedule = alphas[f"a = {a:g}"].fusion.schedule
        assert [schedule.weights(i, 4) for i in range(4)] == [weights] * 4
    alone = fusions[study.VIDEO].fusion.schedule
    assert {alone.weights(i, 5) is None for i in range(5)} == {True}
    assert fusions[study.IMAGE].fusion is None and fusions[study.IMAGE].attention == "own"
    released = fusions[study.FUSED].fusion
    assert released.attentions == ("own", "own") and released.schedule.initial == (0.7, 0.3)
    assert fusions["fused, anchors"].fusion.attentions == ("own", "anchors")
    for kind in KINDS:
        starts = [schedules[schedules.schedule_name(kind, t)].fusion.schedule for t in (0.0, 0.75)]
        assert [s.first_step(8) for s in starts] == [0, 6]
        assert all(s.weights(s.first_step(8), 8) == [0.7, 0.3] for s in starts)


def test_settings_take_what_every_edit_shares():
    made = fusion.fusion_settings("somewhere", num_inference_steps=7)
    assert all(s.num_inference_steps == 7 for s in made.values())
    assert {s.fusion.motion for s in made.values() if s.fusion} == {"somewhere"}


def test_the_ends_are_the_single_models_in_pictures_too(tiny, tmp_path):
    """Edits by a random network: a = 0 is the image model's, a = 1 the video model's, to the bit;
    an image model from noise starts from the noise of its clip."""
    tiny_motion_adapter().save_pretrained(tmp_path)
    common = dict(num_inference_steps=2, guidance_scale=2.0)
    settings = alpha.alpha_settings(str(tmp_path), (0, 0.5, 1), **common)
    noise = fusion.fusion_settings(str(tmp_path), **common)["fused, image from noise"]
    settings |= {"noise": noise, "again": noise}
    kept = {}
    cases = edit_cases(WORLD, "validation", 1, ("colour",))
    rows = []
    for row in run_edits(tiny, cases, settings, 3, 32, lambda f, m: kept.update(now=f) or {}):
        rows.append(row | {"frames": kept["now"]})
    frames = {row["setting"]: row["frames"] for row in rows}
    assert torch.equal(frames["a = 0"], frames[study.IMAGE])
    assert torch.equal(frames["a = 1"], frames[study.VIDEO])
    assert not torch.equal(frames["a = 0.5"], frames["a = 0"])
    assert not torch.equal(frames[study.IMAGE], frames[study.VIDEO])
    assert torch.equal(frames["noise"], frames["again"])


# --- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "n", "p", "word"),
    [
        (0.1, 0.2, 6, 0.03, "confirmed"),
        (-0.1, 0.2, 6, 0.03, "not confirmed"),
        (-0.2, -0.1, 6, 0.03, "contradicted"),
        (0.0, 0.0, 6, 1.0, "not confirmed"),
        (0.1, 0.2, 12, 0.06, "not confirmed"),
        (-0.2, -0.1, 12, 0.06, "not confirmed"),
        (0.1, 0.2, 5, 0.03, "too few clips"),
        (float("nan"), float("nan"), 1, 1.0, "too few clips"),
    ],
)
def test_a_verdict_is_read_from_the_interval_and_the_exact_test(low, high, n, p, word):
    """Five clips that agree have p = 2 / 2^5 > .05, whatever their interval says."""
    assert verdicts.verdict(study.Gain(0.15, low, high, n, p)) == word
    ones = np.arange(verdicts.FEWEST) + 1.0
    assert study.paired_gain(ones, 0 * ones).p_value < 0.05
    assert study.paired_gain(ones[1:], 0 * ones[1:]).p_value > 0.05


def test_few_clips_that_differ_do_not_confirm():
    """Four of twelve clips differ, all one way: the bootstrap is above zero, p is 2 / 2^4."""
    values = np.array([0.05, 0.1, 0.1, 0.2] + [0.0] * 8)
    gain = study.paired_gain(values, 0 * values)
    assert gain.low > 0 and gain.p_value == pytest.approx(0.125)
    assert verdicts.verdict(gain) == "not confirmed"


def test_claims_are_paired_and_mind_the_direction():
    """E_warp falls by .1 under a spread of 30 between clips: confirmed; and the other way round."""
    levels = {
        study.IMAGE: plain(warp_error=1.1, success=1.2),
        study.VIDEO: plain(),
        study.FUSED: plain(psnr=0.5),
    }
    table = verdicts.claims_table(made_rows(levels), fusion.COMPLEMENTARY)
    table = table.set_index(["claim", "metric"])
    steadier = table.loc["fused is steadier than the image model"]
    assert steadier.loc["E_warp"].gain == pytest.approx(0.1)
    assert steadier.loc["E_warp"].verdict == "confirmed" and steadier.loc["E_warp"].n == 12
    assert steadier.loc["CLIP-F"].verdict == "not confirmed"
    follows = table.loc["the image model follows the text better than the video model"]
    assert follows.loc["success"].verdict == "confirmed"
    worse = table.loc["fused is a better edit than the image model"].iloc[0]
    assert worse.verdict == "contradicted" and worse.gain == pytest.approx(-0.5)
    swapped = levels | {study.IMAGE: levels[study.FUSED], study.FUSED: levels[study.IMAGE]}
    table = verdicts.claims_table(made_rows(swapped), fusion.COMPLEMENTARY)
    table = table.set_index(["claim", "metric"])
    assert table.loc[("fused is steadier than the image model", "E_warp")].verdict == "contradicted"


def test_metrics_that_are_missing_are_left_out_and_settings_are_not():
    levels = {name: plain() for name in (study.IMAGE, study.VIDEO, study.FUSED)}
    rows = made_rows(levels).drop(columns=["success", "clip_t", "clip_f"])
    assert set(verdicts.claims_table(rows, fusion.COMPLEMENTARY).metric) == {"E_warp", "PSNR"}
    with pytest.raises(InputError, match="No rows of 'fused'"):
        verdicts.claims_table(rows[rows.setting != study.FUSED], fusion.COMPLEMENTARY)


def test_the_trend_over_the_ratio_is_the_slope_of_each_clip():
    """E_warp falls by 2 and success by 1 from a = 0 to a = 1: steadier, and less of the text."""
    levels = {f"a = {a:g}": plain(warp_error=5 - 2 * a, success=2 - a, clip_t=1 + a)
              for a in (0, 0.25, 0.5, 1)}  # fmt: skip
    rows = made_rows(levels | {study.IMAGE: plain(warp_error=90)}, noise=0.05)
    table = alpha.trend_table(rows, METRICS).set_index("metric")
    assert table.loc["E_warp"].gain == pytest.approx(2, abs=0.1) and table.loc["E_warp"].low > 1.9
    assert table.loc["success"].gain == pytest.approx(1, abs=0.1)
    assert list(table.loc[["E_warp", "success", "CLIP-T", "CLIP-F"]].verdict) == [
        "confirmed", "confirmed", "contradicted", "not confirmed",
    ]  # fmt: skip


def test_choosing_the_best_of_many_earns_nothing_by_itself():
    """Forty settings of pure noise: the best mean looks .6 better, the held-out choice does not."""
    draw = np.random.default_rng(1)
    names = [f"s{i}" for i in range(40)]
    values = pd.DataFrame(draw.normal(size=(16, 41)), columns=[*names, "base"])
    naive = (values[names].mean().max() - values.base.mean()).item()
    honest = verdicts.held_out_gain(values, names, ["base"])
    assert naive > 0.4 and abs(honest.mean) < 0.3 * naive + 0.3
    assert honest.low < 0
    values["s7"] += 3  # one that is better is found
    assert verdicts.held_out_gain(values, names, ["base"]).low > 1.5


def test_held_out_choices_need_other_clips_and_known_settings():
    values = pd.DataFrame({"a": [1.0], "b": [2.0]})
    with pytest.raises(InputError, match="two or more"):
        verdicts.held_out_gain(values, ["a"], ["b"])
    with pytest.raises(InputError, match="No rows of 'c'"):
        verdicts.held_out_gain(values, ["c"], ["b"])
    rows = made_rows({"a": plain(), "b": plain()}, n=1)
    with pytest.raises(InputError, match="two or more"):
        choice.per_kind_table(rows, ("psnr",))


SCHEDULES = {schedules.schedule_name(k, t): plain() for k in KINDS for t in (0.0, 0.5)}


def schedule_rows(noise: float, differs: bool) -> pd.DataFrame:
    """Shapes are best edited by one schedule, colours by another; or by the same."""
    best = {
        "shape": "constant, tau 0",
        "colour": "cosine, tau 0.5" if differs else "constant, tau 0",
    }
    rows = made_rows(SCHEDULES, n=12, noise=noise)
    for kind, name in best.items():
        rows.loc[(rows.kind == kind) & (rows.setting == name), "psnr"] += 1
        rows.loc[(rows.kind == kind) & (rows.setting == name), "warp_error"] -= 1
    return rows


def test_winners_by_kind_and_whether_they_pay():
    rows = schedule_rows(0.1, differs=True)
    winners = choice.winners_table(rows, ("psnr", "warp_error")).set_index(["metric", "kind"])
    for metric in ("PSNR", "E_warp"):
        assert winners.loc[(metric, "shape")].best == "constant, tau 0"
        assert winners.loc[(metric, "colour")].best == "cosine, tau 0.5"
        assert winners.loc[(metric, "colour")].gain == pytest.approx(1, abs=0.15)
    one = study.paired_gain(*(
        per_clip(rows[rows.kind == "shape"], "psnr")[name].to_numpy()
        for name in ("constant, tau 0", "decay_image, tau 0.5")
    ))  # fmt: skip
    p = winners.loc[("PSNR", "shape")].p
    assert p == pytest.approx(7 * one.p_value) and p < 0.05
    pays = choice.per_kind_table(rows, ("psnr", "warp_error"))
    assert list(pays.verdict) == ["confirmed"] * 2
    assert pays.gain[0] == pytest.approx(0.5, abs=0.1)  # one kind of two is served by one for all
    same = choice.per_kind_table(schedule_rows(0.1, differs=False), ("psnr",))
    assert same.verdict[0] == "not confirmed" and same.gain[0] == 0
    with pytest.raises(InputError, match="No rows of 'missing'"):
        choice.winners_table(rows, ("psnr",), "missing")


# --- pictures -----------------------------------------------------------------------------------


def test_intervals_within_clips_leave_the_clips_own_level_out():
    """Two settings 1 apart on clips 30 apart: the interval is of the difference, not the clips."""
    rows = made_rows({"a": plain(), "b": plain(psnr=2.0)}, noise=0.1)
    table = comparison_figures.within_clips(rows, ("psnr",)).set_index("setting")
    assert table["mean"].b - table["mean"].a == pytest.approx(1, abs=0.1)
    for row in table.itertuples():
        assert row.low < row.mean < row.high and row.high - row.low < 0.3
    # Two settings: Morey's correction makes the interval's width the difference's, over sqrt 2.
    gain = study.paired_gain(*(per_clip(rows, "psnr")[n].to_numpy() for n in "ba"))
    width = table.high.b - table.low.b
    assert width == pytest.approx((gain.high - gain.low) / 2**0.5, rel=0.02)


def test_the_front_holds_what_nothing_beats():
    points = [(0, 0), (1, 1), (2, 0), (1, 0.5), (0, 2), (1, 1)]
    assert figures.pareto_front(points) == [1, 2, 4, 5]
    assert figures.pareto_front([(0, 0)]) == [0]


def test_the_pareto_plot_points_right_and_up():
    """E_warp falls to the right; every setting has its cross at its mean."""
    names = list(fusion.fusion_settings())
    levels = {n: plain(warp_error=1 + 0.1 * i, success=0.1 * i) for i, n in enumerate(names)}
    rows = made_rows(levels, noise=0.01)
    fig = figures.pareto_figure(rows)
    left, right = fig.axes
    assert left.xaxis_inverted() and not right.xaxis_inverted()
    assert "falls to the right" in left.get_xlabel() and right.get_xlabel() == "CLIP-F"
    found = {line.get_label(): line for line in left.lines if not line.get_label().startswith("_")}
    assert set(found) == set(names)
    mean = 1000 * per_clip(rows, "warp_error")["fused"].mean()
    assert found["fused"].get_xdata()[0] == pytest.approx(mean)
    styles = {(x.get_color(), x.get_marker(), x.get_markerfacecolor()) for x in found.values()}
    assert len(styles) == len(names)
    alone = figures.pareto_figure(rows.drop(columns=["success", "gain"]))
    assert len(alone.axes) == 1


def test_curves_over_the_ratio_end_at_the_single_models():
    levels = {f"a = {a / 10:g}": plain(psnr=a / 10) for a in range(11)}
    levels |= {study.IMAGE: plain(psnr=0.0), study.VIDEO: plain(psnr=1.0)}
    rows = made_rows(levels, noise=0.01)
    fig = alpha.alpha_figure(rows)
    psnr = fig.axes[0]
    assert psnr.get_title() == "PSNR to the true edit, dB" and len(fig.axes) == 6
    curve = next(x for x in psnr.lines if x.get_label() == "constant a, tau 0")
    assert list(curve.get_xdata()) == pytest.approx([i / 10 for i in range(11)])
    ends = {x.get_label(): x.get_xdata()[0] for x in psnr.lines if x.get_linestyle() == "None"}
    assert ends == {study.IMAGE: 0, study.VIDEO: 1}
    unknown = alpha.alpha_figure(rows.drop(columns=["gain", "success"]))
    assert unknown.axes[0].get_title() == "PSNR to the source, dB"


def test_maps_frame_the_best_and_star_what_is_established():
    rows = schedule_rows(0.1, differs=True)
    fig = schedules_figure(rows, KINDS, (0.0, 0.5), ("psnr", "warp_error"))
    assert len(fig.axes) == 4
    frames = [[p for p in ax.patches if isinstance(p, Rectangle)] for ax in fig.axes]
    places = [(round(f[0].get_x() + 0.48), round(f[0].get_y() + 0.48)) for f in frames]
    assert places == [(0, 0), (1, 3)] * 2  # constant at tau 0; cosine at tau .5; E_warp too
    stars = [[t.get_text() for t in ax.texts if "*" in t.get_text()] for ax in fig.axes]
    assert [len(s) for s in stars] == [1] * 4
    even = schedules_figure(made_rows(SCHEDULES, noise=0.01), KINDS, (0.0, 0.5), ("psnr",))
    assert not [t for ax in even.axes for t in ax.texts if "*" in t.get_text()]
