"""The parts of `make gpu` at a tiny size on the CPU; about 15 seconds of one processor."""

import copy
import json
import time
from dataclasses import replace

import pytest
import torch
from fake_gpu import GPU, FakeGpu

from vala_research import InputError
from vala_research.evaluation.gpu.__main__ import main
from vala_research.evaluation.gpu.correctness import MODES, compared, correctness
from vala_research.evaluation.gpu.filter import filter_speed
from vala_research.evaluation.gpu.fit import fit
from vala_research.evaluation.gpu.machine import TINY, Machine, machine_of
from vala_research.evaluation.gpu.policies import OF_BOTH, OF_IMAGES, policy_speed
from vala_research.evaluation.gpu.report import is_right, run_report
from vala_research.evaluation.gpu.speed import edit_speed, layouts
from vala_research.evaluation.gpu.training import training_step

CPU = Machine(torch.device("cpu"), replace(TINY, frames=(2,)))


def test_every_part_gives_finite_numbers():
    rows = [row for part in (filter_speed, edit_speed, training_step) for row in part(CPU)]
    assert len(rows) == 3
    for row in rows:
        numbers = [x for x in row.values() if isinstance(x, int | float)]
        assert "error" not in row and all(0 < x < float("inf") for x in numbers), row
    assert rows[1]["frames"] == 2 and rows[1]["steps timed"] == "1, 4"


def test_policies_are_timed_beside_their_flops():
    rows = list(policy_speed(CPU))
    assert [r["policy"] for r in rows] == [*OF_BOTH, *OF_IMAGES, *OF_BOTH]
    assert all("error" not in r and r["seconds"] > 0 for r in rows), rows
    assert rows[0]["time"] == rows[0]["FLOPs"] == 1 and rows[1]["FLOPs"] < 1


def test_an_edit_is_made_as_it_was_planned():
    (row,) = fit(Machine(CPU.device, replace(TINY, cards=(4,), frames=(2, 3))))
    assert row["right"] and row["frames"] == 3 and 0 < row["needed"] < 4
    (row,) = fit(Machine(CPU.device, replace(TINY, cards=(1e-4,), frames=(2, 3))))
    assert "GB are free" in row["error"]


def test_layouts_time_the_bare_network():
    rows = list(layouts(CPU))
    assert [(r["network"], r["layout"]) for r in rows] == [
        ("eager", "as it is"), ("eager", "channels last"),
        ("compiled", "as it is"), ("compiled", "channels last"),
    ]  # fmt: skip
    assert all(r["seconds"] > 0 for r in rows[:2]) and all("error" in r for r in rows[2:])


def test_correctness_compares_with_the_cpu_and_twice():
    modes = ("fusion", "adapter")
    assert set(modes) < set(MODES)
    *rows, model, sequential, twice = correctness(CPU, modes, (torch.float32,))
    assert [(r["mode"], r["dtype"]) for r in rows] == [(m, "float32") for m in modes]
    assert all(r["right"] and r["difference"] == 0 for r in rows), rows
    assert "CPU" in model["error"] and "CPU" in sequential["error"]
    assert twice["right"] and twice["difference"] == 0


def test_correctness_on_a_pretended_device(tiny, monkeypatch):
    def small(name, dtype=None):
        return type(tiny)(**copy.deepcopy(tiny.components))

    monkeypatch.setattr("vala_research.evaluation.gpu.correctness.quiet_pipeline", small)
    with FakeGpu():
        row = next(correctness(Machine(GPU, CPU.scale), ("anchors",), (torch.float32,)))
    assert row["right"] and row["difference"] < 1e-5, row


def test_a_wrong_edit_is_not_right():
    frames = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert compared(frames, frames, 60)["right"]
    wrong = compared(frames.flip(0), frames, 60)
    assert not wrong["right"] and wrong["psnr"] < 20


def test_a_failed_or_endless_part_loses_no_other_part(tmp_path):
    def good(machine):
        yield {"number": 1.0, "right": True}

    def broken(machine):
        yield {"number": 2.0}
        raise RuntimeError("a kernel | failed")

    def endless(machine):
        yield {"number": 3.0}
        time.sleep(60)

    parts = {"a": (good, 0.9), "b": (broken, 0.9), "c": (endless, 1.0), "d": (good, 1.0)}
    report = run_report(CPU, tmp_path / "gpu", 4, parts, say=lambda _: None)
    assert report["seconds"] < 20 and not is_right(report)
    written = json.loads((tmp_path / "gpu/report.json").read_text())["parts"]
    status = {name: part["status"] for name, part in written.items()}
    assert status["a"] == "done" and status["c"] == status["d"] == "out of time"
    assert "a kernel" in status["b"]
    assert [r["number"] for p in written.values() for r in p["rows"]] == [1.0, 2.0, 3.0]
    page = (tmp_path / "gpu/report.md").read_text()
    assert "## c\n\nout of time" in page and "| 3 |" in page
    assert sorted(p.name for p in (tmp_path / "gpu").iterdir()) == ["report.json", "report.md"]


def test_the_command_writes_a_report_and_says_when_there_is_no_card(tmp_path, capsys):
    asked = ["--device", "cpu", "--scale", "tiny", "--only", "filter", "-o", str(tmp_path / "gpu")]
    assert main(asked) == 0
    assert "## filter" in capsys.readouterr().out
    with pytest.raises(InputError, match="'tpu' cannot be used"):
        machine_of("tpu", "tiny")
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        assert main([]) == 2
        assert "no graphics card" in capsys.readouterr().err
