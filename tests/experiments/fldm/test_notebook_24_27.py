"""Notebooks 24 to 27 run from their parameters alone."""

import json

import pandas as pd
import pytest
from test_notebooks import run

from vala_research.evaluation.provenance import file_hash


def emitted(folder, name: str) -> dict:
    """The parameters of a figure, whose table is the one beside it."""
    record = json.loads((folder / f"{name}.json").read_text())
    assert record["outputs"]["csv"] == file_hash(folder / f"{name}.csv")
    return record["parameters"]


@pytest.fixture(autouse=True, scope="module")
def motion(miniature) -> None:
    """The miniature with its motion modules; skips while they are not there."""
    from conftest import _weights

    _weights("motion")


def test_long_clips(tmp_path):
    out = tmp_path / "out"
    seconds = run("24_fldm_long_clips", tmp_path, size=32, output=str(out))
    assert seconds < 240  # 30 on an idle machine
    table = pd.read_csv(out / "fldm_long_clips.csv")
    assert list(table.frames) == [4] * 3 + [8] * 3
    assert table.seam_warp.isna().tolist() == [True] * 3 + [False] * 3
    assert emitted(out, "fldm_long_clips")["lengths"] == [4, 8]


def test_many_sources(tmp_path):
    out = tmp_path / "out"
    seconds = run("25_fldm_many_sources", tmp_path, size=32, output=str(out))
    assert seconds < 240  # 30 on an idle machine
    table = pd.read_csv(out / "fldm_many_sources.csv").drop_duplicates("setting")
    flops = table.set_index("setting").flops
    assert flops["4 sources, released"] > flops["3 sources, released"] > 3
    assert emitted(out, "fldm_many_sources")["rules"] == ["released"]


def test_cost(tmp_path):
    out = tmp_path / "out"
    fewer = dict(counted_frames=[1], measured_frames=[2], repeats=1)
    seconds = run("26_fldm_cost", tmp_path, output=str(out), **fewer)
    assert seconds < 240  # 40 on an idle machine
    claims = pd.read_csv(out / "fldm_cost_claims.csv").set_index("sentence").value
    of_flops, of_memory, of_seconds = (
        claims[claims.index.str.contains(words)].item()
        for words in ("counted.*FLOPs", "counted.*memory", "measured.*seconds")
    )
    assert of_flops <= 1.05 and of_memory <= 1.1 and of_seconds > 0
    assert emitted(out, "fldm_cost")["counted_frames"] == [1]


def test_the_explorer(tmp_path):
    out = tmp_path / "out"
    seconds = run("27_fldm_explorer", tmp_path, size=32, output=str(out))
    assert seconds < 240  # 15 on an idle machine
    table = pd.read_csv(out / "fldm_explorer.csv")
    assert len(table) == 8 and table.edit.nunique() == 4
    assert (out / "grid_colour_0.safetensors").exists()
    assert emitted(out, "fldm_explorer")["n_frames"] == 3
