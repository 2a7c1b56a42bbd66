"""Experiment 20: the settings are what they say, and the claims follow planted rows."""

import pytest
import torch
from planted_rows import METRICS, failed, plain, planted_rows
from tiny_models import tiny_motion_adapter

from vala_research import InputError
from vala_research.evaluation.benchmark import run_edits
from vala_research.evaluation.cases import edit_cases
from vala_research.evaluation.comparison_figures import within_clips
from vala_research.evaluation.comparison_tables import per_clip
from vala_research.evaluation.statistics import paired_gain
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.fldm import alpha, fusion, schedules
from vala_research.experiments.fldm.settings import FUSED, IMAGE, VIDEO
from vala_research.methods.fusion import KINDS
from vala_research.sprites.scene import WORLD

# --- settings -----------------------------------------------------------------------------------


def every(experiment) -> dict:
    """All edit settings of the sprites preset."""
    return experiment.edit_settings(experiment.Settings.preset("sprites"))


def test_the_ends_are_the_single_models_and_every_setting_is_another():
    """a = 0 and 1 weigh one source alone; the image model looks at its own frame, as published."""
    fusions, alphas, by_schedule = every(fusion), every(alpha), every(schedules)
    for settings in (fusions, alphas, by_schedule):
        assert len({repr(s) for s in settings.values()}) == len(settings)
        plans = [s.fusion for s in settings.values() if s.fusion]
        assert all(p.attentions[0] == "own" for p in plans)
    assert len(alphas) == 2 + 7 and len(by_schedule) == 8
    for a, weights in ((0, [0.0, 1.0]), (1, [1.0, 0.0]), (0.5, [0.5, 0.5])):
        schedule = alphas[f"a = {a:g}"].fusion.schedule
        assert [schedule.weights(i, 4) for i in range(4)] == [weights] * 4
    alone = fusions[VIDEO].fusion.schedule
    assert {alone.weights(i, 5) is None for i in range(5)} == {True}
    assert fusions[IMAGE].fusion is None and fusions[IMAGE].attention == "own"
    released = fusions[FUSED].fusion
    assert released.attentions == ("own", "own") and released.schedule.initial == (0.7, 0.3)
    assert fusions["fused, anchors"].fusion.attentions == ("own", "anchors")
    for kind in KINDS:
        names = [schedules.schedule_name(kind, t) for t in (0.0, 0.5)]
        starts = [by_schedule[name].fusion.schedule for name in names]
        assert [s.first_step(8) for s in starts] == [0, 4]
        assert all(s.weights(s.first_step(8), 8) == [0.7, 0.3] for s in starts)


@pytest.mark.parametrize("preset", ["smoke", "sprites", "paper"])
def test_every_fusion_weighs_on_the_simplex(preset):
    """Also: all schedules of experiment 22 begin at tau with one weight."""
    for experiment in (fusion, alpha, schedules):
        chosen = experiment.Settings.preset(preset)
        for name, setting in experiment.edit_settings(chosen).items():
            if setting.fusion is None:
                continue
            schedule = setting.fusion.schedule
            weights = [schedule.weights(step, chosen.steps) for step in range(chosen.steps)]
            mixing = [w for w in weights if w is not None]
            assert len(mixing) == chosen.steps - round(schedule.tau * chosen.steps), name
            assert all(min(w) >= 0 and abs(sum(w) - 1) < 1e-9 for w in mixing), name
            if experiment is schedules:
                assert mixing[0] == [0.7, 0.3], name


def test_settings_take_what_every_edit_shares():
    chosen = fusion.Settings.preset("sprites", motion="somewhere", steps=7)
    settings = fusion.edit_settings(chosen)
    assert all(s.num_inference_steps == 7 for s in settings.values())
    assert {s.fusion.motion for s in settings.values() if s.fusion} == {"somewhere"}
    assert list(fusion.edit_settings(fusion.Settings.preset("smoke"))) == [IMAGE, VIDEO, FUSED]
    with pytest.raises(InputError, match="'melted': choose one of image only"):
        fusion.edit_settings(fusion.Settings.preset("smoke", shown="fused;melted"))


def test_the_ends_are_the_single_models_in_pictures_too(tiny, tmp_path):
    """Edits by a random network: a = 0 is the image model's, a = 1 the video model's, to the bit;
    an image model from noise starts from the noise of its clip."""
    tiny_motion_adapter().save_pretrained(tmp_path)
    common = dict(steps=2, guidance=2.0, motion=str(tmp_path))
    settings = alpha.edit_settings(alpha.Settings.preset("smoke", **common))
    every = fusion.edit_settings(fusion.Settings.preset("sprites", parts=(), **common))
    settings |= dict.fromkeys(("noise", "again"), every["fused, image from noise"])
    kept = {}
    cases = edit_cases(WORLD, "validation", 1, ("colour",))
    rows = []
    for row in run_edits(tiny, cases, settings, 3, 32, lambda f, m: kept.update(now=f) or {}):
        rows.append(row | {"frames": kept["now"]})
    frames = {row["setting"]: row["frames"] for row in rows}
    assert torch.equal(frames["a = 0"], frames[IMAGE])
    assert torch.equal(frames["a = 1"], frames[VIDEO])
    assert not torch.equal(frames["a = 0.5"], frames["a = 0"])
    assert not torch.equal(frames[IMAGE], frames[VIDEO])
    assert torch.equal(frames["noise"], frames["again"])


# --- claims -------------------------------------------------------------------------------------


LEVELS = {
    IMAGE: plain(warp_error=1.1, success=1.2, jitter=3.0),
    VIDEO: plain(),
    FUSED: plain(psnr=0.5),
}


def test_claims_are_paired_and_mind_the_direction():
    """E_warp falls by .1 under a spread of 30 between clips: confirmed; and the other way round."""
    claims = {(c.sentence, c.measured): c for c in fusion.claims(planted_rows(LEVELS))}
    steadier = claims["fused is steadier than the image model", "E_warp"]
    assert steadier.value == pytest.approx(0.1)
    assert steadier.verdict == "confirmed" and steadier.n == 12
    jitter = claims["fused is steadier than the image model", "jitter"]
    assert jitter.value == pytest.approx(2) and jitter.verdict == "confirmed"
    steadier = claims["fused is steadier than the image model", "CLIP-F"]
    assert steadier.verdict == "not established"
    sentence = "the image model follows the text better than the video model"
    assert claims[sentence, "success"].verdict == "confirmed"
    worse = claims["fused is a better edit than the image model", "PSNR"]
    assert worse.verdict == "contradicted" and worse.value == pytest.approx(-0.5)
    swapped = LEVELS | {IMAGE: LEVELS[FUSED], FUSED: LEVELS[IMAGE]}
    claims = {(c.sentence, c.measured): c for c in fusion.claims(planted_rows(swapped))}
    steadier = claims["fused is steadier than the image model", "E_warp"]
    assert steadier.verdict == "contradicted"


def test_asserted_claims_can_fail():
    """Lost rows, and a fusion that is one of its sources."""
    levels = {name: plain(psnr=20.0 + i) for i, name in enumerate(LEVELS)}
    rows = planted_rows(levels, n=3)
    assert_claims(fusion.claims(rows))
    wrong = {"every setting makes every edit": rows.iloc[1:]}
    copied = planted_rows(levels | {FUSED: levels[IMAGE]}, n=3)
    wrong["every fused edit differs from both sources"] = copied
    for sentence, rows in wrong.items():
        assert failed(fusion.claims(rows)) == [sentence]
        with pytest.raises(AssertionError, match=sentence):
            assert_claims(fusion.claims(rows))


def test_metrics_that_are_missing_are_left_out_and_settings_are_not():
    rows = planted_rows(LEVELS).drop(columns=["success", "clip_t", "clip_f", "jitter"])
    gains = [c for c in fusion.claims(rows) if not c.is_asserted]
    assert {c.measured for c in gains} == {"E_warp", "PSNR"}
    with pytest.raises(InputError, match="No rows of 'fused'"):
        fusion.claims(rows[rows.setting != FUSED])


# --- pictures -----------------------------------------------------------------------------------


def test_intervals_within_clips_leave_the_clips_own_level_out():
    """Two settings 1 apart on clips 30 apart: the interval is of the difference, not the clips."""
    rows = planted_rows({"a": plain(), "b": plain(psnr=2.0)}, noise=0.1)
    table = within_clips(rows, ("psnr",)).set_index("setting")
    assert table["mean"].b - table["mean"].a == pytest.approx(1, abs=0.1)
    for row in table.itertuples():
        assert row.low < row.mean < row.high and row.high - row.low < 0.3
    # Two settings: Morey's correction makes the interval's width the difference's, over sqrt 2.
    gain = paired_gain(*(per_clip(rows, "psnr")[n].to_numpy() for n in "ba"))
    width = table.high.b - table.low.b
    assert width == pytest.approx((gain.high - gain.low) / 2**0.5, rel=0.02)


def test_the_front_holds_what_nothing_beats():
    points = [(0, 0), (1, 1), (2, 0), (1, 0.5), (0, 2), (1, 1)]
    assert fusion.pareto_front(points) == [1, 2, 4, 5]
    assert fusion.pareto_front([(0, 0)]) == [0]


def test_the_pareto_plot_points_right_and_up():
    """Jitter and E_warp fall to the right; every setting has its cross at its mean."""
    names = list(every(fusion))
    levels = {n: plain(warp_error=1 + 0.1 * i, success=0.1 * i) for i, n in enumerate(names)}
    rows = planted_rows(levels, noise=0.01)
    fig = fusion.figure(rows)
    left, right = fig.axes
    assert left.xaxis_inverted() and right.xaxis_inverted() and "jitter" in left.get_xlabel()
    assert "falls to the right" in right.get_xlabel()
    points = {x.get_label(): x for x in right.lines if not x.get_label().startswith("_")}
    assert set(points) == set(names)
    mean = 1000 * per_clip(rows, "warp_error")["fused"].mean()
    assert points["fused"].get_xdata()[0] == pytest.approx(mean)
    styles = {(x.get_color(), x.get_marker(), x.get_markerfacecolor()) for x in points.values()}
    assert len(styles) == len(names)
    clip = fusion.figure(rows.drop(columns=["jitter"])).axes[1]
    assert not clip.xaxis_inverted() and clip.get_xlabel() == "CLIP-F"
    alone = fusion.figure(rows.drop(columns=["success", "gain", "jitter"]))
    assert len(alone.axes) == 1
    assert set(fusion.table(rows).metric) == set(METRICS)
