"""Grids of notebook runs on Dask: nothing is run twice, nothing finished is lost; about 60 s.

The notebooks here are toys; their kernels import no torch.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import nbformat
import pandas as pd
import pytest

from vala_research import InputError
from vala_research.experiments import Cluster, results, sweep
from vala_research.experiments.batches import clusters
from vala_research.experiments.batches.cells import Cell, cells_of
from vala_research.experiments.batches.grid import expand, read_grid
from vala_research.experiments.batches.inspection import (
    check_parameters,
    experiment_name,
    find_notebook,
)

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
PARAMETERS = "steps = 3\nrate = 0.5\nwords = ['a']\nmarks = ''\noutput = 'out'"
BODY = """
import os, time
from pathlib import Path
from vala_research.evaluation.recorded import record_metrics
marks = Path(marks)
(marks / f"started {steps} {time.time_ns()}").touch()
if steps == 7:
    raise ValueError("seven is refused")
if steps == 9 and not (marks / "died").exists():
    (marks / "died").touch()
    os.kill(os.getppid(), 9)
    time.sleep(30)
if steps == 30:
    time.sleep(60)
Path(output).mkdir(parents=True)
record_metrics({"square": steps**2, "n_words": len(words)})
"""


def toy(folder: Path, parameters: str = PARAMETERS, body: str = BODY) -> Path:
    """A notebook of two cells."""
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {
        "name": "python3", "display_name": "Python 3", "language": "python"}})  # fmt: skip
    first = nbformat.v4.new_code_cell(parameters)
    first.metadata.tags = ["parameters"] if parameters else []
    book.cells = [first, nbformat.v4.new_code_cell(body)]
    nbformat.write(book, folder / "toy.ipynb")
    return folder / "toy.ipynb"


def starts(folder: Path, steps: int) -> int:
    """How often a cell of so many steps was started."""
    return len(list(folder.glob(f"started {steps} *")))


def test_lists_are_crossed_and_zip_pairs():
    grid = {"a": [1, 2], "b": "x", "zip": {"c": [3, 4], "d": [[5], [6, 7]]}}
    assert expand(grid) == [
        {"a": 1, "b": "x", "c": 3, "d": [5]}, {"a": 1, "b": "x", "c": 4, "d": [6, 7]},
        {"a": 2, "b": "x", "c": 3, "d": [5]}, {"a": 2, "b": "x", "c": 4, "d": [6, 7]},
    ]  # fmt: skip
    assert expand({}) == [{}]
    assert expand({"a": [[]]}) == [{"a": []}]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"a": []}, "a in the grid is an empty list: give values"),
        ({"zip": {"a": [1], "b": [1, 2]}}, "differ in length \\(a 1, b 2\\): make them equal"),
        ({"zip": [1]}, "zip in the grid is no mapping"),
        ({"a": 1, "zip": {"a": [1]}}, "a stands in the grid and under its zip"),
    ],
)
def test_a_bad_grid_is_one_sentence(grid, said):
    with pytest.raises(InputError, match=said):
        expand(grid)


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [1, 2", "line 2 is not valid YAML"), ("- a", "no mapping"), (None, "cannot be read")],
)
def test_a_bad_grid_file_is_one_sentence(tmp_path, text, said):
    path = tmp_path / "grid.yaml"
    if text:
        path.write_text(text + "\n")
    with pytest.raises(InputError, match=said):
        read_grid(path)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ({"step": 3}, "toy.ipynb has no parameter 'step': choose one of steps, rate"),
        ({"steps": "three"}, "steps is 'three' in the grid, but its default 3 is of type int"),
        ({"steps": True}, "of type int"),
        ({"words": "a"}, "of type list"),
        ({"output": "here"}, "each cell gets its own folder"),
    ],
)
def test_parameters_are_checked_before_anything_runs(tmp_path, cell, said):
    notebook = toy(tmp_path)
    with pytest.raises(InputError, match=said):
        check_parameters(notebook, [cell])
    check_parameters(notebook, [{"steps": 4, "rate": 1, "words": ["b"]}])


def test_a_notebook_without_parameters_or_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no parameters: tag the cell"):
        check_parameters(toy(tmp_path, ""), [])
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(InputError, match="is no notebook"):
        check_parameters(tmp_path / "broken.ipynb", [])


def test_our_notebooks_are_found_and_their_settings_checked():
    notebook = find_notebook("21")
    assert notebook == NOTEBOOKS / "21_fldm_alpha.ipynb" == find_notebook(notebook)
    assert all(experiment_name(path) for path in NOTEBOOKS.glob("*.ipynb"))
    assert experiment_name(Path("21_mine.ipynb")) is None is experiment_name(Path("mine.ipynb"))
    check_parameters(notebook, [{"kinds": ["colour"], "steps": 4}])
    for wrong in ({"kinds": ["color"]}, {"steps": "many"}, {"preset": "spritez"}):
        with pytest.raises(InputError):
            check_parameters(notebook, [wrong])
    with pytest.raises(InputError, match="No notebook '99'"):
        find_notebook("99")
    with pytest.raises(InputError, match="There is no notebook"):
        find_notebook("mine.ipynb")


def test_a_cell_is_its_notebook_parameters_and_library(tmp_path, monkeypatch):
    notebook = toy(tmp_path)
    (cell,) = cells_of(notebook, {"steps": [1, 1]}, tmp_path)
    ids = {cell.id, Cell(notebook, {"steps": 1}, tmp_path).id}
    assert len(ids) == 1
    ids.add(Cell(notebook, {"steps": 2}, tmp_path).id)
    ids.add(Cell(toy(tmp_path, body=BODY + "\n1"), {"steps": 1}, tmp_path).id)
    monkeypatch.setattr("vala_research.experiments.batches.cells.code_version", lambda: "0.3")
    ids.add(Cell(notebook, {"steps": 1}, tmp_path).id)
    assert len(ids) == 4


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A grid with a cell that fails and one that kills its worker once, run by two workers."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "marks").mkdir()
    grid = {"steps": [9, 7, 2], "words": [["b", "c"]], "marks": str(folder / "marks")}
    return folder, grid, sweep(toy(folder), grid, folder / "out", Cluster(workers=2))


def test_a_sweep_runs_every_cell_and_one_bad_cell_stops_no_other(swept):
    """The cell whose worker was killed is run again."""
    folder, _, table = swept
    table = table.set_index("steps")
    assert table.status.to_dict() == {9: "done", 7: "failed", 2: "done"}
    assert table.square[2] == 4 and table.n_words[9] == 2 and table.words[2] == '["b", "c"]'
    assert table.error[7] == "ValueError: seven is refused"
    assert starts(folder / "marks", 9) == 2
    ran = nbformat.read(folder / "out/cells" / table.cell[7] / "run.ipynb", 4)
    assert any(o.output_type == "error" for c in ran.cells for o in c.get("outputs", []))
    assert (folder / "out/cells" / table.cell[2] / "output").is_dir()


def test_the_results_are_written_as_csv_and_parquet(swept):
    folder, _, table = swept
    csv = pd.read_csv(folder / "out/results.csv")
    parquet = pd.read_parquet(folder / "out/results.parquet")
    assert list(csv.columns) == list(parquet.columns) == list(table.columns)
    assert csv.square.equals(parquet.square) and results(folder / "out").equals(table)


def test_finished_cells_are_skipped_and_failed_ones_retried_when_asked(swept):
    folder, grid, _ = swept
    before = {n: starts(folder / "marks", n) for n in (2, 7, 9)}
    sweep(folder / "toy.ipynb", grid, folder / "out", Cluster(workers=1))
    assert {n: starts(folder / "marks", n) for n in before} == before
    sweep(folder / "toy.ipynb", grid, folder / "out", Cluster(workers=1), retry=True)
    assert {n: starts(folder / "marks", n) for n in before} == before | {7: before[7] + 1}


def test_a_cell_that_always_kills_its_worker_is_recorded(tmp_path):
    notebook = toy(tmp_path, body="import os; os.kill(os.getppid(), 9)")
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        table = sweep(notebook, {"steps": [1]}, tmp_path / "out", Cluster(workers=1))
    assert table.status.item() == "failed" and "its worker died" in table.error.item()


def test_a_killed_driver_loses_no_finished_cell(tmp_path):
    """`kill -9` of `vala sweep`; the same command goes on, and nothing else of it keeps running."""
    notebook, marks = toy(tmp_path), tmp_path / "marks"
    marks.mkdir()
    grid = tmp_path / "grid.yaml"
    grid.write_text(json.dumps({"steps": [2, 30], "marks": str(marks)}))
    command = [sys.executable, "-m", "vala_research.cli", "sweep", str(notebook), "--grid",
               str(grid), "-o", str(tmp_path / "out"), "--workers", "1"]  # fmt: skip
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    limit = time.time() + 120
    while not starts(marks, 30):
        assert time.time() < limit and driver.poll() is None
        time.sleep(0.2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()

    table = results(tmp_path / "out").set_index("steps")
    assert table.status.to_dict() == {2: "done", 30: "not run"}
    shorter = dict(steps=[2], marks=str(marks))
    assert sweep(notebook, shorter, tmp_path / "out").status.item() == "done"
    assert starts(marks, 2) == 1


def test_two_drivers_in_one_folder_and_odd_clusters_are_refused(tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match="Another run writes"):
        sweep(toy(tmp_path), {"steps": 1}, tmp_path)
    with pytest.raises(InputError, match="choose one of them"):
        Cluster(scheduler="tcp://a", slurm={"jobs": "1"})
    with pytest.raises(InputError, match="workers is 0"):
        Cluster(workers=0)
    with pytest.raises(InputError, match="slurm has no 'gpus'"):
        Cluster(slurm={"gpus": "1"})
    with pytest.raises(InputError, match="slurm is 'gpu'"):
        clusters.slurm_options("gpu")
    assert clusters.slurm_options("partition=gpu, jobs=4") == {"partition": "gpu", "jobs": "4"}
    with pytest.raises(InputError, match="holds no sweep"):
        results(tmp_path / "nowhere")


def test_a_scheduler_that_does_not_answer_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "PATIENCE", 1)
    with pytest.raises(InputError, match="The scheduler tcp://127.0.0.1:9 does not answer"):
        sweep(toy(tmp_path), {}, tmp_path, Cluster(scheduler="tcp://127.0.0.1:9"))


def test_a_running_scheduler_is_used(tmp_path):
    """Its workers stay when the sweep ends."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False,
                      dashboard_address=None) as cluster:  # fmt: skip
        where = Cluster(scheduler=cluster.scheduler_address)
        body = "from vala_research.evaluation import recorded\nrecorded.record_metrics({'a': 1})"
        table = sweep(toy(tmp_path, body=body), {}, tmp_path / "out", where)
        assert table.status.item() == "done" and table.a.item() == 1
        assert len(cluster.workers) == 1


def test_slurm_and_cuda_bring_their_own_clusters(monkeypatch):
    """Stand-ins take the place of the packages: neither Slurm nor CUDA is at hand."""
    import types

    import torch

    asked = {}

    class Jobs:
        def __init__(self, **options):
            asked.update(options)

        def scale(self, jobs):
            asked["jobs"] = jobs

    for package, name in {"dask_jobqueue": "SLURMCluster", "dask_cuda": "LocalCUDACluster"}.items():
        module = types.ModuleType(package)
        setattr(module, name, Jobs)
        monkeypatch.setitem(sys.modules, package, module)
    import distributed

    options = clusters.slurm_options("partition=gpu,jobs=4,cores=2,walltime=2:00:00")
    clusters.started(Cluster(slurm=options), 9, distributed)
    assert asked == {"queue": "gpu", "jobs": 4, "cores": 2, "processes": 1, "memory": "16GB",
                     "walltime": "2:00:00"}  # fmt: skip
    asked.clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    clusters.started(Cluster(), 3, distributed)
    assert asked["n_workers"] == 3 and asked["threads_per_worker"] == 1


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(InputError, match="needs dask-jobqueue: pip install 'vala-research\\[slurm"):
        clusters.extra("dask_jobqueue", "slurm")


def test_the_command_line_shows_results_and_says_what_failed(swept):
    folder, *_ = swept
    done = subprocess.run(
        [sys.executable, "-m", "vala_research.cli", "sweep", "--show", str(folder / "out")],
        capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0 and "2 done, 1 failed (--retry" in done.stdout
    assert "ValueError: seven is refused" in done.stdout
