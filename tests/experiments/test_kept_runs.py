"""Each file of rows says which run made it, and the run can be made again; no model, about 10 s."""

import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from vala_research import InputError
from vala_research.experiments.batches.inspection import (
    check_parameters,
    experiment_of,
    find_notebook,
)
from vala_research.experiments.contract import EditPreset
from vala_research.experiments.kept_runs import KeptRun, kept_runs, written_runs
from vala_research.experiments.paper_map import status

RESULTS = Path(__file__).resolve().parents[2] / "notebooks" / "results"
RUNS = kept_runs()
OF_NOTEBOOKS = {name: run for name, run in RUNS.items() if run.notebook}


def test_every_file_has_its_run():
    assert {path.stem for path in RESULTS.glob("*.csv")} == set(RUNS)
    assert all(run.commit == "" or len(run.commit) == 40 for run in RUNS.values())


def test_files_are_small():
    assert not [p.name for p in RESULTS.iterdir() if p.stat().st_size > 300_000]


@pytest.mark.parametrize("name", OF_NOTEBOOKS)
def test_the_notebook_knows_the_preset_and_the_parameters(name):
    """And rows of edits are of the clips that these settings name."""
    run = OF_NOTEBOOKS[name]
    notebook = find_notebook(run.notebook)
    check_parameters(notebook, [run.values])
    settings = experiment_of(notebook).Settings.preset(run.preset, **run.parameters)
    rows = pd.read_csv(RESULTS / f"{name}.csv", low_memory=False)
    if isinstance(settings, EditPreset):
        edits = rows.dropna(subset=["kind", "index"])
        named = {(case.kind, case.index) for case in settings.cases()}
        assert set(zip(edits.kind, edits["index"], strict=True)) == named


def test_a_run_that_is_none_is_refused(tmp_path):
    """A misspelt parameter or preset, a field that no run has, a notebook without a preset."""
    fusion = find_notebook("20_fldm_fusion")
    for wrong in ({"n_clip": 3}, {"preset": "sprite"}, {"n_frames": "four"}):
        with pytest.raises(InputError):
            check_parameters(fusion, [{"preset": "sprites"} | wrong])
    for wrong in ({}, {"notebook": "20_fldm_fusion"}, {"command": "make gpu", "preset": "smoke"}):
        with pytest.raises(InputError, match="is no run"):
            KeptRun(**wrong)
    (tmp_path / "runs.json").write_text(json.dumps({"a": {"command": "make", "clips": 3}}))
    with pytest.raises(TypeError, match="clips"):
        kept_runs(tmp_path)


def test_the_table_of_runs():
    runs = {"a": KeptRun(notebook="20_fldm_fusion", preset="sprites", commit="0123456789abcdef",
                         parameters={"kinds": ["shape", "colour"], "shown": ["fused, anchors"],
                                     "parts": []}),
            "b": KeptRun(command="make gpu", holds="a card")}  # fmt: skip
    assert written_runs(runs).splitlines()[2:] == [
        "| `a.csv` | 20 | sprites | `-p kinds shape,colour` "
        '`-p shown "fused, anchors"` `-p parts ""` | 0123456789 |  |',
        "| `b.csv` | `make gpu` |  |  |  | a card |",
    ]


def test_the_map_tells_which_rows_are_kept(tmp_path):
    """Rows count where runs.json names them and they are there."""
    for name, text in (("11_a", "| `smoke` | a |\n| `paper` | b | 2 hours, not run |"),
                       ("20_b", "| `sprites` | a |\n| `paper` | b | 2 hours |")):  # fmt: skip
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# A\n\n{text}")])
        nbformat.write(book, tmp_path / f"{name}.ipynb")
    folder = tmp_path / "results"
    folder.mkdir()
    runs = {"11_a": {"notebook": "11_a", "preset": "smoke"},
            "20_b": {"notebook": "20_b", "preset": "paper"},
            "20_lost": {"notebook": "20_b", "preset": "sprites"}}  # fmt: skip
    (folder / "runs.json").write_text(json.dumps(runs))
    for name in ("11_a", "20_b"):
        (folder / f"{name}.csv").write_text("a\n1\n")
    assert status(tmp_path, "11")[1] == {
        "sprites": "no such preset; rows of `smoke` kept", "paper": "not run",
    }  # fmt: skip
    assert status(tmp_path, "20")[1] == {"sprites": "measured", "paper": "measured, rows kept"}
