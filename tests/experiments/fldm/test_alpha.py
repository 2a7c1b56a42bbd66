"""Experiment 21: slopes over the ratio, ends that are the single models, and claims that fail."""

import math

import pytest
from planted_rows import failed, plain, planted_rows

from vala_research.experiments.fldm import alpha
from vala_research.experiments.fldm.settings import IMAGE, VIDEO

SLOPES = dict(warp_error=(5, -2), success=(2, -1), clip_t=(1, 1), psnr=(1, 1))


def curve(ratios=(0, 0.25, 0.5, 1)) -> dict[str, dict]:
    """Levels that are straight lines over a, and the single models at their ends."""
    lines = {a: plain(**{m: at + slope * a for m, (at, slope) in SLOPES.items()}) for a in ratios}
    return {IMAGE: lines[0], VIDEO: lines[1]} | {f"a = {a:g}": line for a, line in lines.items()}


def test_the_trend_over_the_ratio_is_the_slope_of_each_clip():
    """E_warp falls by 2 and success by 1 from a = 0 to a = 1: steadier, and less of the text."""
    rows = planted_rows(curve(), noise=0.05)
    trends = {c.measured: c for c in alpha.claims(rows) if "share grows" in c.sentence}
    assert trends["E_warp"].value == pytest.approx(2, abs=0.1) and trends["E_warp"].low > 1.9
    assert trends["success"].value == pytest.approx(1, abs=0.1)
    assert [trends[m].verdict for m in ("E_warp", "success", "CLIP-T", "CLIP-F")] == [
        "confirmed", "confirmed", "contradicted", "not established",
    ]  # fmt: skip


def test_a_mixture_between_the_ends_beats_neither():
    """Until it is made better than both."""
    levels = curve()
    mixtures = [c for c in alpha.claims(planted_rows(levels)) if "a mixture" in c.sentence]
    assert len(mixtures) == 6 and "confirmed" not in {c.verdict for c in mixtures}
    levels["a = 0.5"] = levels["a = 0.5"] | dict(psnr=9.0)
    claims = alpha.claims(planted_rows(levels, noise=0.01))
    best = {c.measured: c.verdict for c in claims if "a mixture" in c.sentence}
    assert best["PSNR"] == "confirmed" and best["success"] != "confirmed"


@pytest.mark.parametrize(
    ("setting", "off", "sentence"),
    [
        ("a = 0", 0.1, "a = 0 is the image only edit"),
        ("a = 1", -1.0, "a = 1 is the video only edit"),
        ("a = 0.5", 0.5, "every mixture differs from the video model"),
    ],
)
def test_asserted_claims_can_fail(setting, off, sentence):
    """An end that is not its model in one metric, or a mixture that is the video model."""
    levels = curve()
    assert not failed(alpha.claims(planted_rows(levels, n=3)))
    levels[setting] = levels[setting] | dict(psnr=levels[setting]["psnr"] + off)
    assert failed(alpha.claims(planted_rows(levels, n=3))) == [sentence]


def test_a_jitter_that_too_few_clips_have_is_not_judged():
    rows = planted_rows(curve(), n=3)
    rows.loc[(rows["index"] > 0) & (rows.setting == "a = 0.5"), "jitter"] = math.nan
    assert "jitter" not in {claim.measured for claim in alpha.claims(rows)}
    assert not failed(alpha.claims(rows.assign(jitter=math.nan)))


def test_curves_over_the_ratio_end_at_the_single_models():
    levels = {f"a = {a / 10:g}": plain(psnr=a / 10) for a in range(11)}
    levels |= {IMAGE: plain(psnr=0.0), VIDEO: plain(psnr=1.0)}
    rows = planted_rows(levels, noise=0.01)
    fig = alpha.figure(rows)
    psnr = fig.axes[0]
    assert psnr.get_title() == "PSNR to the true edit, dB" and len(fig.axes) == 8
    line = next(x for x in psnr.lines if x.get_label() == "constant a, tau 0")
    assert list(line.get_xdata()) == pytest.approx([i / 10 for i in range(11)])
    ends = {x.get_label(): x.get_xdata()[0] for x in psnr.lines if x.get_linestyle() == "None"}
    assert ends == {IMAGE: 0, VIDEO: 1}
    assert len(alpha.figure(rows.drop(columns="jitter")).axes) == 6
    unknown = alpha.figure(rows.drop(columns=["gain", "success"]))
    assert unknown.axes[0].get_title() == "PSNR to the source, dB"
