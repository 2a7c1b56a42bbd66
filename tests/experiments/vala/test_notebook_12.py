"""Notebook 12 runs from its parameters alone, and its own claim can fail."""

import json

import pandas as pd
import pytest
from test_notebooks import NOTEBOOKS, run
from tiny_models import tiny_checkpoint

from vala_research.data.clips import write_clip
from vala_research.evaluation.comparison import comparison_table, per_clip
from vala_research.sprites.render import render
from vala_research.sprites.scene import random_scene, split_generator

NAME = "12_vala_editing_quality"


def test_editing_quality_on_the_miniature(tmp_path, miniature):
    """The claim is asserted inside, on clips of the test split."""
    out = tmp_path / "out"
    seconds = run(NAME, tmp_path, output=str(out))
    assert seconds < 240  # 40 on an idle machine
    rows = pd.read_csv(out / "rows.csv")
    assert len(rows) == 2 * 4 and set(rows.kind) == {"several"}
    table = pd.read_csv(out / "vala_editing_quality.csv")
    assert {"warp_error", "psnr", "success", "inversion_psnr"} <= set(table.metric)
    assert table.set_index("setting").cost["VALA 2 site anchors"].max() == pytest.approx(
        1.305, abs=0.001
    )
    record = json.loads((out / "vala_editing_quality.json").read_text())
    assert record["parameters"]["steps"] == 10 and record["model"]["name"] == "miniature"


def test_editing_quality_of_ones_own_clips(tmp_path):
    """A folder with its edits.csv and another checkpoint, by parameters alone; no true edit."""
    model = tiny_checkpoint(tmp_path / "model")
    clips = tmp_path / "clips"
    clips.mkdir()
    scene = random_scene(split_generator("validation", 0))
    write_clip(clips / "mine.mp4", render(scene, 3, 32).frames, 8.0)
    (clips / "edits.csv").write_text("clip,source_prompt,prompt\nmine.mp4,a red circle,a star\n")
    parameters = dict(
        clips=str(clips), model=str(model), n_frames=3, size=32, steps=2,
        policies_shown="own,VALA 2 site anchors", output=str(tmp_path / "o"),
    )  # fmt: skip
    try:
        run(NAME, tmp_path, **parameters)
    except Exception as error:  # random weights: the claim may fail, nothing else
        assert "assert warp.mean() < own.mean()" in str(error)
    rows = pd.read_csv(tmp_path / "o" / "rows.csv")
    assert set(rows.setting) == {"own", "VALA 2 site anchors"} and "gain" not in rows


def test_the_claim_can_fail():
    """Anchors that raise E_warp, edits that lose, or success that falls for sure are refused."""
    cells = json.loads((NOTEBOOKS / f"{NAME}.ipynb").read_text())["cells"]
    (claim,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))

    def attempt(warp: float, gain: float, success: float) -> None:
        values = {"own": (1.0, 2.0, 0.9), "VALA": (warp, gain, success)}
        rows = pd.DataFrame(
            dict(setting=name, kind="shape", index=i, warp_error=w + 0.01 * i, gain=g,
                 success=s - 0.001 * i * (name == "own"))
            for name, (w, g, s) in values.items() for i in range(8)
        )  # fmt: skip
        table = comparison_table(rows, "own")
        exec(claim, dict(rows=rows, table=table, best="VALA", per_clip=per_clip))

    attempt(0.5, 2.0, 0.9)
    for wrong in ((1.5, 2.0, 0.9), (0.5, -1.0, 0.9), (0.5, 2.0, 0.5)):
        with pytest.raises(AssertionError):
            attempt(*wrong)
