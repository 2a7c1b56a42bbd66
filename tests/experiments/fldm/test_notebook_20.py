"""Notebooks 20, 21 and 22 run from their parameters alone, and their own claims can fail."""

import json

import pandas as pd
import pytest
from test_notebooks import NOTEBOOKS, run
from tiny_models import tiny_checkpoint, tiny_motion_adapter

from vala_research.data.clips import write_clip
from vala_research.evaluation.comparison import per_clip
from vala_research.evaluation.verdicts import claims_table
from vala_research.experiments.fldm.fusion import COMPLEMENTARY, fusion_settings
from vala_research.experiments.fldm.schedules import schedule_settings
from vala_research.experiments.fldm.settings import IMAGE, VIDEO
from vala_research.sprites.render import render
from vala_research.sprites.scene import random_scene, split_generator

METRICS = {"psnr", "success", "warp_error", "clip_t", "clip_f"}


def claim(name: str) -> str:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    (found,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))
    return found


def test_fusion_on_the_miniature(tmp_path, miniature):
    out = tmp_path / "out"
    seconds = run("20_fldm_fusion", tmp_path, output=str(out))
    assert seconds < 240  # 20 on an idle machine
    rows = pd.read_csv(out / "rows.csv")
    assert set(rows.setting) == {"image only", "video only", "fused"} and METRICS <= set(rows)
    claims = pd.read_csv(out / "fldm_fusion_claims.csv")
    assert len(claims) == 14 and set(claims.verdict) == {"too few clips"}
    table = pd.read_csv(out / "fldm_fusion.csv").set_index(["setting", "metric"])
    mean = rows[rows.setting == "fused"].psnr.mean()
    assert table.loc[("fused", "psnr")]["mean"] == pytest.approx(mean)
    assert json.loads((out / "fldm_fusion.json").read_text())["parameters"]["steps"] == 6


def test_ratios_on_the_miniature(tmp_path, miniature):
    """The ends are asserted inside to be the single models."""
    out = tmp_path / "out"
    seconds = run("21_fldm_alpha", tmp_path, output=str(out))
    assert seconds < 240  # 20 on an idle machine
    table = pd.read_csv(out / "fldm_alpha.csv")
    assert set(table.setting) == {IMAGE, VIDEO, "a = 0", "a = 0.5", "a = 1"}
    assert len(pd.read_csv(out / "fldm_alpha_verdicts.csv")) == 10


def test_schedules_on_the_miniature(tmp_path, miniature):
    out = tmp_path / "out"
    seconds = run("22_fldm_schedules", tmp_path, output=str(out))
    assert seconds < 240  # 20 on an idle machine
    table = pd.read_csv(out / "fldm_schedules.csv")
    assert len(table) == 2 * 4 and set(table.kind) == {"shape", "colour"}
    winners = pd.read_csv(out / "fldm_schedules_winners.csv").set_index(["kind", "metric"])
    best = table[table.kind == "shape"].set_index("setting").psnr
    assert winners.loc[("shape", "PSNR")].value == pytest.approx(best.max())
    assert len(pd.read_csv(out / "fldm_schedules_per_kind.csv")) == 3


@pytest.mark.parametrize(
    ("name", "fewer"),
    [
        ("20_fldm_fusion", {}),
        ("21_fldm_alpha", {"ratios": "0,0.5,1"}),
        ("22_fldm_schedules", {"taus": "0,0.5", "schedules": "decay_image,cosine"}),
    ],
)
def test_ones_own_clips_and_models(name, fewer, tmp_path):
    """A folder with its edits.csv, another checkpoint and motion modules; no true edit."""
    model = tiny_checkpoint(tmp_path / "model")
    tiny_motion_adapter().save_pretrained(tmp_path / "motion")
    clips = tmp_path / "clips"
    clips.mkdir()
    lines = ["clip,source_prompt,prompt,kind"]
    for i in range(2):
        scene = random_scene(split_generator("validation", i))
        write_clip(clips / f"{i}.mp4", render(scene, 3, 32).frames, 8.0)
        lines += [f"{i}.mp4,a red circle,a star,shape", f"{i}.mp4,a red circle,a cat,colour"]
    (clips / "edits.csv").write_text("\n".join(lines) + "\n")
    run(name, tmp_path, clips=str(clips), model=str(model), motion=str(tmp_path / "motion"),
        n_frames=2, size=32, steps=2, output=str(tmp_path / "o"), **fewer)  # fmt: skip
    rows = pd.read_csv(tmp_path / "o" / "rows.csv")
    assert set(rows.kind) == {"shape", "colour"} and not {"gain", "success"} & set(rows)


def made(names, kinds=("shape",), n=3, **wrong) -> pd.DataFrame:
    """Rows in which every setting has another PSNR; wrong: of settings that have another one."""
    return pd.DataFrame(
        dict(setting=name, kind=kind, index=i, psnr=wrong.get(name, 20.0 + k) + i, success=0.5,
             warp_error=1e-3 * k, clip_t=90.0 + k, clip_f=99.0)
        for k, name in enumerate(names) for kind in kinds for i in range(n)
    )  # fmt: skip


def test_the_claim_of_fusion_can_fail():
    """A verdict that its interval does not bear, a fusion that is a source, lost rows."""
    settings = {k: v for k, v in fusion_settings(num_inference_steps=4).items() if "," not in k}
    rows = made(settings)
    claims = claims_table(rows, COMPLEMENTARY)
    names = dict(settings=settings, steps=4, cases=[0, 1, 2], rows=rows, claims=claims)
    exec(claim("20_fldm_fusion"), dict(names))
    flattering = names["claims"].assign(verdict="confirmed", low=-1.0)
    copied = made(settings, fused=20.0)  # that of the image model
    wrong = [{"claims": flattering}, {"rows": copied}, {"rows": rows.iloc[1:]}]
    for change in wrong:
        with pytest.raises(AssertionError):
            exec(claim("20_fldm_fusion"), names | change)


def test_the_claim_of_the_ratio_can_fail():
    """An end that is not its model, or a mixture that is."""
    ends = {IMAGE: 20.0, VIDEO: 25.0, "a = 0": 20.0, "a = 1": 25.0}
    settings = [*ends, "a = 0.5"]

    def attempt(**changes) -> None:
        rows = made(settings, **ends | changes)
        verdicts = pd.DataFrame([dict(claim="c", metric="PSNR", verdict="confirmed")])
        exec(claim("21_fldm_alpha"), dict(
            rows=rows, verdicts=verdicts, metrics=["psnr"], inner=["a = 0.5"], per_clip=per_clip,
            IMAGE=IMAGE, VIDEO=VIDEO,
        ))  # fmt: skip

    attempt()
    for wrong in ({"a = 0": 20.1}, {"a = 1": 24.0}, {"a = 0.5": 25.0}):
        with pytest.raises(AssertionError):
            attempt(**wrong)


def test_the_claim_of_the_schedules_can_fail():
    """Lost rows, schedules that make no difference, another weight to begin with."""
    settings = schedule_settings(taus=(0.0, 0.5), num_inference_steps=4)
    winners = pd.DataFrame([dict(kind="shape", metric="PSNR", best="x", gain=1.0, low=0.5, p=0.01)])
    pays = pd.DataFrame([dict(claim="c", metric="PSNR", verdict="confirmed")])
    rows = made(settings)
    names = dict(settings=settings, steps=4, cases=[0, 1, 2], rows=rows, winners=winners, pays=pays)
    exec(claim("22_fldm_schedules"), dict(names))
    other = schedule_settings(taus=(0.0, 0.5), initial=(0.5, 0.5), num_inference_steps=4)
    for change in (
        {"rows": rows.iloc[1:]}, {"rows": rows.assign(psnr=20.0)}, {"settings": other},
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            exec(claim("22_fldm_schedules"), names | change)
