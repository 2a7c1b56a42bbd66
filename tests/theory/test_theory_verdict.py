"""The contract of the theory: a verdict that does not reproduce is seen, and so is a NaN."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from theory.attack import attack
from theory.verdict import Counterexample, Verdict

GOOD = Verdict(
    statement="X.1", claim="x <= 1", verdict="false", corrected="x <= 2",
    measured=1.9, bound=2.0, hypotheses={"x is real": True},
    counterexample=Counterexample("x = 1.9", 1.9, 1.0), least_tightness=0.9,
)  # fmt: skip


def test_a_verdict_reproduces_when_all_of_it_does():
    assert GOOD.reproduced
    for change in (
        {"measured": 2.1},  # the bound is broken
        {"bound": 1.9 * 0.9},  # a mutated bound: 0.9 of what is attained
        {"measured": 1.7},  # less tight than stated
        {"measured": float("nan")},
        {"hypotheses": {"x is real": False}},
        {"counterexample": Counterexample("x = 1", 1.0, 1.0)},
    ):
        assert not dataclasses.replace(GOOD, **change).reproduced
    with pytest.raises(ValueError, match="without a counterexample"):
        dataclasses.replace(GOOD, counterexample=None)
    with pytest.raises(ValueError, match="Unknown verdict"):
        dataclasses.replace(GOOD, verdict="true")


def test_an_attack_climbs_and_counts():
    found = attack(
        lambda x: 3 - (x - 2).square().sum(-1), lambda g: (torch.randn(8, 2, generator=g),)
    )
    assert abs(found.value - 3) < 1e-3 and found.n_searched == 8 * 201
    assert found.point[0].dtype == torch.float64
    with pytest.raises(FloatingPointError, match="seed 7, step 0"):
        attack(lambda x: x.log(), lambda g: (-torch.rand(2, generator=g),), seed=7)


def test_the_command_line(root):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "theory", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True)

    wrong = run("--only", "C.99")
    assert wrong.returncode == 2 and "Unknown statement 'C.99'" in wrong.stderr
    done = run("--json", "--only", "C.2")
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)
    assert row["statement"] == "C.2" and row["verdict"] == "holds with hypothesis"
    assert row["reproduced"] is True
    names = "claim counterexample corrected measured bound tightness seconds".split()
    assert set(names) < set(row)
