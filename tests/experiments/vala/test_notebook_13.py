"""What anchors cost: the counts are those of Stable Diffusion 1.5 even in the smoke preset."""

import json

import pandas as pd
import pytest
from test_notebooks import run

from vala_research.evaluation.provenance import file_hash
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.vala.efficiency import claims


def test_vala_efficiency(tmp_path, checkpoint):
    """The notebook asserts the claims; the memory is measured on a tiny random checkpoint."""
    out = tmp_path / "out"
    parameters = dict(curve_frames=[8], memory_frames=[16, 24, 32], model=str(checkpoint), size=32)
    seconds = run("13_vala_efficiency", tmp_path, output=str(out), **parameters)
    assert seconds < 240  # 40 on an idle machine
    rows = pd.read_csv(out / "rows.csv")
    assert 0 < rows.share[rows.part == "assignment"].item() <= 0.01
    for name in ("vala_efficiency", "vala_memory"):
        outputs = json.loads((out / f"{name}.json").read_text())["outputs"]
        assert outputs["csv"] == file_hash(out / f"{name}.csv")


def planted(ratio: float = 1, share: float = 0.001, power: int = 1, speed: float = 2):
    """Rows of all parts; memory with anchors grows with this power of the frames."""
    costs = {"own + 2 site anchors": 1.3, "own + 256 token anchors": 1.02}
    rows: list[dict] = [{"part": "policies", "policy": policy, "frames": 32, "tflop": 1.0,
                         "ratio": ratio * cost, "arithmetic": cost}
                        for policy, cost in costs.items()]  # fmt: skip
    for attention, k in (("own", 1), ("anchors site", power)):
        rows += [{"part": "memory", "attention": attention, "frames": f, "live": 10 + f**k}
                 for f in (1, 2, 3)]  # fmt: skip
    rows += [{"part": "assignment", "share": share}, {"part": "speed", "ratio": speed}]
    return pd.DataFrame(rows)


def test_the_claims_can_fail():
    right = claims(planted())
    assert_claims(right)
    assert {claim.verdict for claim in right} == {"confirmed"}
    assert len(right) == 2 + 3 + 2 + 1
    for wrong in ({"ratio": 1.1}, {"share": 0.02}, {"power": 2}):
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(claims(planted(**wrong)))


def test_the_time_is_reported_and_not_asserted():
    slow = claims(planted(speed=0.5))
    assert_claims(slow)
    assert "contradicted" in {claim.verdict for claim in slow}
