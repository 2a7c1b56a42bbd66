"""Notebook 10 runs from its parameters alone; its claims can fail; its curves show their rows."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from test_notebooks import run

from vala_research import InputError, write_clip
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.vala.anchor_figures import map_table
from vala_research.experiments.vala.anchors import (
    KEYFRAMES,
    PER_FRAME,
    PER_SITE,
    SHOTS,
    Settings,
    claims,
    effective_anchors_curve,
    figure,
    keyframe_excess_strip,
    pictured,
)
from vala_research.experiments.vala.anchors import run as measured
from vala_research.sprites.render import render
from vala_research.sprites.scene import random_scene, split_generator

NAME = "10_vala_anchors"
FILES = {f"vala_anchors{part}.{kind}" for part in ("", "_counted")
         for kind in ("csv", "json", "pdf", "png", "tex")}  # fmt: skip
FILES |= {"rows.csv", "vala_anchors_counted_claims.csv"}
pytest.importorskip("seaborn")
pytest.importorskip("ipywidgets")


def rows(path: Path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_anchors_on_the_miniature(tmp_path, miniature):
    """The notebook itself asserts the claims, on sprite clips whose shots are known."""
    out = tmp_path / "out"
    seconds = run(NAME, tmp_path, n_clips=6, output=str(out))
    assert seconds < 240  # 40 on an idle machine
    assert {path.name for path in out.iterdir()} == FILES
    numbers = rows(out / "vala_anchors_counted.csv")
    panels = {row["panel"] for row in numbers}
    assert panels == {PER_FRAME, PER_SITE, KEYFRAMES, SHOTS}
    assert sum(row["panel"] == "key frames" for row in numbers) == 6 * 7
    assert json.loads((out / "vala_anchors.json").read_text())["parameters"]["n_anchors"] == 6
    cells = json.loads((tmp_path / "run.ipynb").read_text())["cells"]
    assert "widget-view" in json.dumps(cells[-1]["outputs"])  # the explorer


def test_anchors_of_a_folder_of_clips(tmp_path, miniature):
    """Clips from disk, whose shots nobody knows; token anchors."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for i in range(3):
        frames = render(random_scene(split_generator("test", i), n_cuts=1), 7, 64).frames
        write_clip(clips / f"{i}.mp4", frames, 8.0)
    settings = Settings.preset(
        "smoke", clips=str(clips), n_clips=2, shown=1, n_frames=6, n_keyframes=2, n_anchors=3,
        granularity="token", refinement_steps=2, seed=3,
    )  # fmt: skip
    assert settings.inputs() == [clips / "0.mp4", clips / "1.mp4"]
    clip = pictured(settings)
    assert clip.anchors.granularity == "token" and clip.n_shots is None
    shown = map_table(clip.anchors)
    assert {row["frame"] for row in shown} == set(range(6))
    assert len({row["frame"] for row in shown if row["is_key"]}) == 2
    numbers = measured(settings, tmp_path / "out", clip)
    assert SHOTS not in set(numbers.panel)
    assert set(numbers["clip"][numbers.panel == KEYFRAMES]) == {0, 1}
    assert len(claims(numbers)) == 2


def planted(n_wrong: int, vala: float, uniform: float, n_clips: int = 10) -> pd.DataFrame:
    """Three shots per clip, of which `n_wrong` clips count two; the same excess on every clip."""
    rows = []
    for i in range(n_clips):
        found = 2 if i < n_wrong else 3
        rows.append({"panel": SHOTS, "clip": i, "scenes": 3, "found": found})
        for method, excess in (("vala", vala), ("uniform", uniform)):
            rows.append({"panel": KEYFRAMES, "clip": i, "method": method, "excess": excess,
                         "distortion": 0.1 * (1 + excess)})  # fmt: skip
    return pd.DataFrame(rows)


def test_the_claims_can_fail():
    """A miscounted clip in five, or key frames no better than uniform ones, are refused."""
    right = claims(planted(1, 0.05, 0.1))
    assert_claims(right)
    assert [claim.verdict for claim in right] == ["confirmed"] * 3
    few = claims(planted(2, 0.1, 0.1, n_clips=9))
    assert_claims(few)
    assert {claim.verdict for claim in few} == {"not established"}
    for wrong in ((2, 0.05, 0.1), (0, 0.1, 0.1)):
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(claims(planted(*wrong)))
    assert claims(planted(0, 0.1, 0.05))[0].verdict == "contradicted"


COUNTED = [{"clip": c, "n_anchors": k, "dirichlet": a0, "n_effective": k - c}
           for c in range(2) for k in (4, 8) for a0 in (0.01, 1.0)]  # fmt: skip
EXCESS = [{"clip": c, "method": m, "excess": e}
          for m, values in {"vala": (0.01, 0.02, 0.3), "uniform": (0.5, 0.1, 0.2)}.items()
          for c, e in enumerate(values)]  # fmt: skip


def test_curve_draws_means_over_clips_and_the_right_answer():
    ax = Figure().add_subplot()
    effective_anchors_curve(pd.DataFrame(COUNTED), ax, n_shots=3)
    drawn = [list(line.get_ydata()) for line in ax.lines if len(line.get_ydata()) == 2]
    assert [3.5, 3.5] in drawn and [7.5, 7.5] in drawn and [3, 3] in drawn
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["4", "8", "shots"]
    with pytest.raises(InputError, match="no rows"):
        effective_anchors_curve(pd.DataFrame(), ax)


def test_strip_shows_every_clip_and_the_medians():
    ax = Figure().add_subplot()
    keyframe_excess_strip(pd.DataFrame(EXCESS), ax)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["vala", "uniform"]
    *dots, medians = (c.get_offsets()[:, 0].tolist() for c in ax.collections)
    assert sorted(dots[0]) == pytest.approx([1, 2, 30]) and medians == pytest.approx([2, 20])
    with pytest.raises(InputError, match="no rows"):
        keyframe_excess_strip(pd.DataFrame(), ax)


def test_panels_share_one_legend_and_the_first_knows_the_shots():
    panels = {PER_FRAME: COUNTED, PER_SITE: COUNTED, KEYFRAMES: EXCESS}
    rows = pd.DataFrame({"panel": panel} | row for panel in panels for row in panels[panel])
    first, second, last = figure(rows, n_shots=3).axes
    assert [ax.get_title() for ax in (first, second, last)] == [PER_FRAME, PER_SITE, "key frames"]
    assert first.get_legend() and not second.get_legend()
    assert len(first.lines) == len(second.lines) + 1
