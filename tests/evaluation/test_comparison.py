"""Comparisons are paired, resumable and honest about direction; every clip is edited alike."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from diffusers import ControlNetModel
from fresh_processes import FRESH

from vala_research import InputError, VideoEditPipeline, write_clip
from vala_research.diffusion.attending import policy_of_clip
from vala_research.diffusion.attention import AnchorAttention, KeyframeAttention, Keyframes
from vala_research.evaluation import benchmark, comparison, edit_rows, verdicts
from vala_research.evaluation.cases import edit_cases, folder_cases
from vala_research.evaluation.comparison import Run, compare
from vala_research.evaluation.comparison_figures import gains_figure, within_clips
from vala_research.evaluation.comparison_tables import PLACEMENT, comparison_table, per_clip
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.verdicts import Hypothesis
from vala_research.methods.anchors import AnchorSettings
from vala_research.sprites.scene import WORLD

SHORT = dict(num_inference_steps=2)
SETTINGS = {
    "own": EditSetting("own", **SHORT),
    "random": EditSetting(Keyframes("random", 2), **SHORT),
    "site": EditSetting(AnchorSettings(n_anchors=2), **SHORT),
}


def cases(n: int) -> list:
    return edit_cases(WORLD, "validation", n, ("colour", "shape"))


def test_rows_are_kept_and_a_second_run_does_only_what_is_missing(
    checkpoint, tmp_path, monkeypatch
):
    out = tmp_path / "rows.csv"
    run = Run(checkpoint, n_frames=3, size=32, n_processes=1)
    own = {"own": SETTINGS["own"]}
    one = compare(cases(1), own, out, run)
    assert len(one) == 2 and list(one.kind) == ["colour", "shape"]
    edited = []
    run_edits = benchmark.run_edits

    def counted(pipe, clip_cases, settings, *args, **kwargs):
        edited.extend((name, c.kind, c.index) for c in clip_cases for name in settings)
        return run_edits(pipe, clip_cases, settings, *args, **kwargs)

    monkeypatch.setattr(comparison, "run_edits", counted)
    rows = compare(cases(2), SETTINGS, out, run)
    assert len(rows) == 3 * 2 * 2 and len(edited) == 10  # own on the first clip was there
    assert ("own", "colour", 0) not in edited and ("own", "colour", 1) in edited
    again = compare(cases(2), SETTINGS, out, run)
    assert len(edited) == 10
    pd.testing.assert_frame_equal(again, rows)
    assert set(rows.setting) == set(pd.read_csv(out).setting)


def test_the_true_edits_own_flow_follows_an_outline_that_the_sources_flow_leaves():
    """The true edit of a shape is not to blame for its new outline; that of a colour keeps the old.

    A clip that keeps the old outline pays for it under the flow of the new one, on the whole.
    """
    kept = []
    for case in edit_cases(WORLD, "validation", 4, ("colour", "shape")):
        material = case.material(4, 64)
        right = edit_rows.edit_row(material.truth, case, material)
        assert right["warp_error_truth"] < 2e-3 and right["success"] == right["presence"] == 1
        assert right["path_error"] == right["size_error"] == right["jitter"] == 0
        if case.kind == "colour":
            assert right["warp_error_truth"] == right["warp_error"]
        else:
            assert right["warp_error"] > 2 * right["warp_error_truth"]
            kept.append(edit_rows.edit_row(material.frames, case, material))
    assert sum(k["warp_error_truth"] for k in kept) > 2 * sum(k["warp_error"] for k in kept)
    one = cases(1)[0].material(3, 32)
    bare = type(one)(one.frames, one.flow, one.flow_valid, one.truth)
    assert "warp_error_truth" not in edit_rows.edit_row(one.truth, cases(1)[0], bare)
    unknown = edit_rows.edit_row(one.truth, cases(1)[0], replace(bare, truth=None))
    assert not {"presence", "path_error", "size_error", "jitter"} & set(unknown)


def test_several_processes_make_the_same_rows(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "get_context", lambda kind: FRESH)
    own = {"own": SETTINGS["own"]}
    run = Run(checkpoint, n_frames=2, size=32, n_processes=1)
    alone = compare(cases(2), own, tmp_path / "a.csv", run)
    both = compare(cases(2), own, tmp_path / "b.csv", replace(run, n_processes=2))
    numbers = ["psnr", "source_psnr", "warp_error", "success"]
    pd.testing.assert_frame_equal(alone[numbers], both[numbers], rtol=1e-4)


def test_the_policy_of_a_clip_is_found_on_its_latents():
    z = torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert policy_of_clip("own", z) == "own"
    draw = lambda seed: policy_of_clip(Keyframes("random", 2), z, torch.manual_seed(seed)).keyframes  # noqa: E731
    drawn = [draw(seed) for seed in range(8)]
    assert len(set(drawn)) > 1 and all(len(set(d)) == 2 for d in drawn)
    assert drawn[3] == draw(3)
    everything = policy_of_clip(Keyframes("uniform", 9), z)
    assert isinstance(everything, KeyframeAttention) and everything.keyframes == (0, 1, 2, 3, 4)
    for how in ("anchors", AnchorSettings(granularity="token")):
        found = policy_of_clip(how, z)
        assert isinstance(found, AnchorAttention) and found.grid == (4, 4)
    assert found.anchors.granularity == "token"


def made_rows() -> pd.DataFrame:
    """Two settings, 12 clips of two edits; b's E_warp is .1 lower on every clip."""
    rows = []
    for index in range(12):
        for kind, shift in (("colour", 0.0), ("shape", 0.5)):
            level = 1 + 0.3 * index + shift
            rows.append(dict(setting="a", kind=kind, index=index, warp_error=level, psnr=20.0))
            rows.append(
                dict(setting="b", kind=kind, index=index, warp_error=level - 0.1, psnr=19.0)
            )
    return pd.DataFrame(rows)


def test_gains_are_paired_by_clip_and_positive_when_better():
    """Between clips E_warp varies by 1; the paired difference of .1 is exact all the same."""
    rows = made_rows()
    assert per_clip(rows, "warp_error").loc[0, "a"] == pytest.approx(1.25)
    table = comparison_table(rows, "a").set_index(["metric", "setting"])
    warp, psnr = table.loc[("warp_error", "b")], table.loc[("psnr", "b")]
    assert warp.gain == pytest.approx(0.1) and warp.gain_low == pytest.approx(0.1)
    assert warp.p < 0.01 and warp.n == 12
    assert psnr.gain == pytest.approx(-1) and psnr.gain_high < 0
    assert warp.low < warp["mean"] < warp.high
    with pytest.raises(InputError, match="No rows of 'c'"):
        comparison_table(rows, "c")


def lost_rows() -> pd.DataFrame:
    """Under b the path is half a pixel better on easy edits, and the hard ones lose the object."""
    paths = {("a", "easy"): 1.0, ("a", "hard"): 5.0, ("b", "easy"): 0.5, ("b", "hard"): math.nan}
    return pd.DataFrame(
        dict(setting=s, kind=k, index=i, path_error=path + i, jitter=math.nan,
             psnr=20.0 + (s == "b"), presence=float(path == path))
        for (s, k), path in paths.items() for i in range(8)
    )  # fmt: skip


def test_a_lost_object_gains_nothing():
    """Its edit counts under neither setting: else b, which loses the hard edits, gained 2.5."""
    rows = lost_rows()
    table = comparison_table(rows, "a").set_index(["metric", "setting"])
    path = table.loc[("path_error", "b")]
    assert path.gain == pytest.approx(0.5) and path.n_gain == path.n == 8
    assert table.loc[("path_error", "a"), "mean"] == pytest.approx(3 + 3.5)
    assert table.loc[("presence", "b"), "gain"] == pytest.approx(-0.5)
    assert "jitter" not in table.index  # no edit has one
    (claim,) = verdicts.tested(rows, [Hypothesis("b is nearer", "b", "a", ["path_error"])])
    assert claim.value == pytest.approx(0.5) and claim.verdict == "confirmed"
    means = within_clips(rows, PLACEMENT).set_index(["metric", "setting"])["mean"]
    assert means["path_error", "a"] - means["path_error", "b"] == pytest.approx(0.5)
    assert set(means.index.get_level_values(0)) == {
        "path_error", "presence"
    }  # fmt: skip


def test_a_setting_that_loses_every_object_has_no_path_and_no_verdict():
    rows = lost_rows()
    rows.loc[rows.setting == "b", "path_error"] = math.nan
    table = comparison_table(rows, "a").set_index(["metric", "setting"])
    path = table.loc[("path_error", "b")]
    assert math.isnan(path["mean"]) and math.isnan(path.gain) and path.n == path.n_gain == 0
    (claim,) = verdicts.tested(rows, [Hypothesis("b is nearer", "b", "a", ["path_error"])])
    assert claim.verdict == "not established" and claim.n == 0
    alone = within_clips(rows, ["path_error"]).set_index("setting")
    assert alone["mean"].a == pytest.approx(3 + 3.5) and math.isnan(alone["mean"].b)
    assert alone[["low", "high"]].isna().all(axis=None)
    # The figure draws what has a gain.
    drawn = gains_figure(table.reset_index(), metrics=("path_error", "psnr", "presence"))
    assert [ax.get_title().split(",")[0] for ax in drawn.axes] == [
        "PSNR to the true edit", "frames with the object"
    ]  # fmt: skip


def test_clips_of_a_folder_are_edited_without_a_true_edit(checkpoint, tmp_path):
    frames = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    write_clip(tmp_path / "mine.mp4", frames, 8.0)
    (tmp_path / "edits.csv").write_text(
        "clip,source_prompt,prompt,kind\nmine.mp4,a red circle,a blue circle,colour\n"
        "mine.mp4,a red circle,a red star,shape\n"
    )
    found = folder_cases(tmp_path)
    assert [c.kind for c in found] == ["colour", "shape"] and {c.index for c in found} == {0}
    run = Run(checkpoint, n_frames=3, size=32, n_processes=1)
    rows = compare(found, {"own": SETTINGS["own"]}, tmp_path / "rows.csv", run)
    assert len(rows) == 2 and {"psnr", "warp_error", "inversion_psnr"} <= set(rows)
    assert not {"gain", "success", "source_psnr"} & set(rows)


def test_a_controlnet_sees_the_pictures_of_each_clip(checkpoint, tmp_path):
    """Depths of a folder, or of the sprite world; a clip without any is refused."""
    unet = VideoEditPipeline.from_pretrained(str(checkpoint)).unet
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8))
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    net.save_pretrained(tmp_path / "net")
    for name in ("mine", "flat", "steep"):
        write_clip(tmp_path / name, torch.rand(3, 3, 32, 32), 8.0)
    lines = ["mine,a red circle,a star,flat", "mine,a red circle,a star,steep"]
    (tmp_path / "edits.csv").write_text("clip,source_prompt,prompt,depth\n" + "\n".join(lines))
    settings = {
        picture: EditSetting("own", controlnet=str(tmp_path / "net"), control=picture, **SHORT)
        for picture in ("frames", "depth")
    }
    run, found = Run(checkpoint, n_frames=3, size=32, n_processes=1), folder_cases(tmp_path)
    assert [dict(case.pictures)["depth"].name for case in found] == ["flat", "steep"]
    rows = compare(found, settings, tmp_path / "rows.csv", run).set_index("setting").psnr
    assert rows["frames"].nunique() == 1 and rows["depth"].nunique() == 2
    sprites = compare(cases(1), settings, tmp_path / "sprites.csv", run)
    assert sprites.psnr.nunique() == 4
    bare = [replace(found[0], pictures=())]
    with pytest.raises(InputError, match="none are given"):
        compare(bare, {"depth": settings["depth"]}, tmp_path / "bare.csv", run)
    write_clip(tmp_path / "flat", torch.rand(2, 3, 32, 32), 8.0)
    with pytest.raises(InputError, match="holds 2 of the 3 frames"):
        found[0].material(3, 32)


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (None, "has no edits.csv"),
        ("clip,prompt\na.mp4,b\n", "no column source_prompt"),
        ("clip,source_prompt,prompt\n", "lists no edit"),
        ("clip,source_prompt,prompt\ngone.mp4,a,b\n", "names gone.mp4"),
        ("clip,source_prompt,prompt,depth\nedits.csv,a,b,far\n", "names far, which"),
        ("clip,source_prompt,prompt\ngone.mp4,a\n", "line 2 lacks its clip or its prompt"),
        (b"clip,source_prompt,prompt\na.mp4,a,caf\xe9\n", "no csv in UTF-8"),
    ],
)
def test_a_bad_folder_is_one_sentence(tmp_path, listing, message):
    if listing is not None:
        (tmp_path / "edits.csv").write_bytes(
            listing if isinstance(listing, bytes) else listing.encode()
        )
    with pytest.raises(InputError, match=message):
        folder_cases(tmp_path)
