"""Notebook 10 runs from its parameters alone, and its own assertions can fail."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from test_notebooks import NOTEBOOKS, run

from vala_research import write_clip
from vala_research.sprites.render import render
from vala_research.sprites.scene import random_scene, split_generator

NAME = "10_vala_anchors"
FILES = {f"vala_anchors{part}.{kind}" for part in ("", "_counted")
         for kind in ("csv", "json", "pdf", "png")}  # fmt: skip
pytest.importorskip("seaborn")
pytest.importorskip("ipywidgets")


def rows(path: Path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_anchors_on_the_miniature(tmp_path, miniature):
    """The claims are asserted inside, on sprite clips whose shots are known."""
    out = tmp_path / "out"
    seconds = run(NAME, tmp_path, output=str(out))
    assert seconds < 240  # 40 on an idle machine
    assert {path.name for path in out.iterdir()} == FILES
    numbers = rows(out / "vala_anchors_counted.csv")
    panels = {row["panel"] for row in numbers}
    assert panels == {"a descriptor a frame", "a descriptor a site", "key frames", "shots"}
    assert sum(row["panel"] == "key frames" for row in numbers) == 10 * 7
    assert json.loads((out / "vala_anchors.json").read_text())["parameters"]["n_anchors"] == 6
    cells = json.loads((tmp_path / "run.ipynb").read_text())["cells"]
    assert "widget-view" in json.dumps(cells[-1]["outputs"])  # the explorer


def test_anchors_of_a_folder_of_clips(tmp_path, miniature):
    """Clips from disk, whose shots nobody knows; token anchors."""
    clips, out = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    for i in range(3):
        frames = render(random_scene(split_generator("test", i), n_cuts=1), 7, 64).frames
        write_clip(clips / f"{i}.mp4", frames, 8.0)
    parameters = dict(clips=str(clips), n_clips=2, shown=1, n_frames=6, n_keyframes=2, n_anchors=3,
                      granularity="token", refinement_steps=2, seed=3,
                      output=str(out))  # fmt: skip
    run(NAME, tmp_path, **parameters)
    record = json.loads((out / "vala_anchors.json").read_text())
    assert sorted(record["inputs"]) == [str(clips / "0.mp4"), str(clips / "1.mp4")]
    assert record["parameters"]["granularity"] == "token" and record["seed"] == 3
    shown = rows(out / "vala_anchors.csv")
    assert {row["frame"] for row in shown} == set("012345")
    assert len({row["frame"] for row in shown if row["is_key"] == "True"}) == 2
    numbers = rows(out / "vala_anchors_counted.csv")
    assert not any(row["panel"] == "shots" for row in numbers)
    assert {row["clip"] for row in numbers if row["panel"] == "key frames"} == {"0", "1"}


def test_the_claims_can_fail():
    """A miscounted clip in five, or key frames no better than uniform ones, are refused."""
    cells = json.loads((NOTEBOOKS / f"{NAME}.ipynb").read_text())["cells"]
    (claim,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))

    def judged(n_wrong: int, vala: float, uniform: float, n_clips: int = 10) -> None:
        counts = [{"scenes": 3, "found": 2 if i < n_wrong else 3} for i in range(n_clips)]
        table = {"excess": {"mean": pd.Series({"vala": vala, "uniform": uniform})}}
        exec(claim, {"counts": counts, "table": table, "excess": [{"clip": n_clips - 1}]})

    judged(1, 0.05, 0.1)
    judged(2, 0.1, 0.1, n_clips=9)  # too few to say
    for wrong in ((2, 0.05, 0.1), (0, 0.1, 0.1)):
        with pytest.raises(AssertionError):
            judged(*wrong)
