"""Notebooks 20 to 23 run from their parameters alone; their experiments take one's own clips."""

import json

import pandas as pd
import pytest
from planted_rows import METRICS
from test_notebooks import run
from tiny_models import tiny_checkpoint, tiny_motion_adapter

from vala_research.data.clips import write_clip
from vala_research.evaluation.provenance import file_hash
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.fldm import alpha, fusion, latent_compatibility, schedules
from vala_research.experiments.fldm.settings import IMAGE, VIDEO
from vala_research.sprites.render import render
from vala_research.sprites.scene import random_scene, split_generator

FEW = dict(n_frames=2, size=32)  # what is tested does not depend on them


@pytest.fixture(scope="module")
def motion(miniature) -> None:
    """The miniature with its motion modules; skips while they are not there."""
    from conftest import _weights

    _weights("motion")


def test_fusion_on_the_miniature(tmp_path, motion):
    out = tmp_path / "out"
    seconds = run("20_fldm_fusion", tmp_path, **FEW, n_clips=1, steps=2, output=str(out))
    assert seconds < 240  # 20 on an idle machine
    rows = pd.read_csv(out / "rows.csv")
    assert set(rows.setting) == {"image only", "video only", "fused"} and {*METRICS} <= set(rows)
    claims = pd.read_csv(out / "fldm_fusion_claims.csv")
    gains = claims[~claims.is_asserted]
    assert len(gains) == 17 and set(gains.verdict) == {"not established"}
    table = pd.read_csv(out / "fldm_fusion.csv").set_index(["setting", "metric"])
    mean = rows[rows.setting == "fused"].psnr.mean()
    assert table.loc[("fused", "psnr")]["mean"] == pytest.approx(mean)
    assert json.loads((out / "fldm_fusion.json").read_text())["parameters"]["steps"] == 2


def test_ratios_on_the_miniature(tmp_path, motion):
    """The ends are asserted inside to be the single models."""
    out = tmp_path / "out"
    seconds = run("21_fldm_alpha", tmp_path, **FEW, steps=1, output=str(out))
    assert seconds < 240  # 20 on an idle machine
    table = pd.read_csv(out / "fldm_alpha.csv")
    assert set(table.setting) == {IMAGE, VIDEO, "a = 0", "a = 0.5", "a = 1"}
    assert len(pd.read_csv(out / "fldm_alpha_claims.csv")) == 10 + 3


def test_schedules_on_the_miniature(tmp_path, motion):
    out = tmp_path / "out"
    seconds = run("22_fldm_schedules", tmp_path, **FEW, output=str(out))
    assert seconds < 240  # 20 on an idle machine
    table = pd.read_csv(out / "fldm_schedules.csv")
    assert len(table) == 2 * 4 and set(table.kind) == {"shape", "colour"}
    winners = pd.read_csv(out / "fldm_schedules_winners.csv").set_index(["kind", "metric"])
    best = table[table.kind == "shape"].set_index("setting").psnr
    assert winners.loc[("shape", "PSNR")].value == pytest.approx(best.max())
    sentences = pd.read_csv(out / "fldm_schedules_claims.csv").sentence
    assert sentences.str.contains("a schedule for each kind").sum() == 3


def test_latent_compatibility_on_the_miniature(tmp_path, motion):
    out = tmp_path / "out"
    seconds = run("23_fldm_latent_compatibility", tmp_path, **FEW, steps=1, output=str(out))
    assert seconds < 240  # 30 on an idle machine
    for name in ("fldm_latent_compatibility", "fldm_foreign_spaces"):
        record = json.loads((out / f"{name}.json").read_text())
        assert record["outputs"]["csv"] == file_hash(out / f"{name}.csv")
        assert record["parameters"]["angles"] == [0, 90]
    sentences = set(pd.read_csv(out / "fldm_foreign_spaces.csv").sentence)
    assert "rotated by 90 is worse than the same space" in sentences
    assert len(pd.read_csv(out / "rows.csv")) == 2 * 5
    cosines = pd.read_csv(out / "cosines.csv")
    assert set(cosines.source) == {"same space", "rotated by 90", "another clip"}


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> dict[str, str]:
    """Another checkpoint and motion modules, and a folder of two clips with its edits.csv.

    A folder "few" in it has one kind of edit per clip.
    """
    folder = tmp_path_factory.mktemp("own")
    model = tiny_checkpoint(folder / "model")
    tiny_motion_adapter().save_pretrained(folder / "motion")
    (folder / "few").mkdir()
    lines = ["clip,source_prompt,prompt,kind"]
    for i in range(2):
        scene = random_scene(split_generator("validation", i))
        for clips in (folder, folder / "few"):
            write_clip(clips / f"{i}.mp4", render(scene, 3, 32).frames, 8.0)
        lines += [f"{i}.mp4,a red circle,a star,shape", f"{i}.mp4,a red circle,a cat,colour"]
    (folder / "edits.csv").write_text("\n".join(lines) + "\n")
    (folder / "few" / "edits.csv").write_text("\n".join([*lines[:2], lines[-1]]) + "\n")
    return dict(clips=str(folder), model=str(model), motion=str(folder / "motion"))


@pytest.mark.parametrize(
    ("experiment", "fewer"),
    [
        (fusion, {}),
        (alpha, {"ratios": "0,0.5,1"}),
        (schedules, {"taus": "0,0.5", "schedules": "decay_image,cosine"}),
        (latent_compatibility, {"angles": (0, 90)}),
    ],
    ids=["fusion", "alpha", "schedules", "latent_compatibility"],
)
def test_ones_own_clips_and_models(experiment, fewer, own, tmp_path):
    """There is no true edit; the claims of fact hold, and rows are what was written.

    The best schedule of a kind is chosen on other clips than it is judged on, so it takes two.
    """
    if experiment is not schedules:
        own = own | {"clips": f"{own['clips']}/few"}
    settings = experiment.Settings.preset("smoke", **own, n_frames=2, size=32, steps=2, **fewer)
    rows = experiment.run(settings, tmp_path)
    written = pd.read_csv(tmp_path / "rows.csv")
    assert set(written.kind) == {"shape", "colour"} and not {"gain", "success"} & set(written)
    assert len(experiment.table(rows)) and experiment.figure(rows).axes
    assert_claims(experiment.claims(rows))
