"""What anchors cost: the counts are those of Stable Diffusion 1.5 even in the smoke preset."""

import json

import pytest
from test_notebooks import NOTEBOOKS, run

from vala_research.evaluation.provenance import file_hash


def test_vala_efficiency(tmp_path, checkpoint):
    """The claims are asserted inside; the memory is measured on a tiny random checkpoint."""
    out = tmp_path / "out"
    parameters = dict(curve_frames=[8], memory_frames=[16, 24, 32], model=str(checkpoint), size=32)
    seconds = run("13_vala_efficiency", tmp_path, output=str(out), **parameters)
    assert seconds < 240  # 40 on an idle machine
    record = json.loads((out / "vala_efficiency.json").read_text())
    assert 0 < record["parameters"]["assignment_share"] <= 0.01
    for name in ("vala_efficiency", "vala_memory"):
        outputs = json.loads((out / f"{name}.json").read_text())["outputs"]
        assert outputs["csv"] == file_hash(out / f"{name}.csv")


@pytest.mark.parametrize("wrong", ["ratio", "share", "growth"])
def test_the_claim_can_fail(wrong):
    import pandas as pd

    from vala_research.experiments.vala.efficiency import slopes

    cells = json.loads((NOTEBOOKS / "13_vala_efficiency.ipynb").read_text())["cells"]
    (claim,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))
    index = ["own + 2 site anchors", "own + 256 token anchors"]
    table = pd.DataFrame({"ratio": [1.3, 1.02], "arithmetic": [1.3, 1.02]}, index)
    line = [{"frames": f, "live": 10 + f} for f in (1, 2, 3)]
    names = dict(pd=pd, slopes=slopes, table=table, share=0.001, memory={"own": line})
    exec(claim, dict(names))
    quadratic = [{"frames": f, "live": f * f} for f in (1, 2, 3)]
    changes = {
        "ratio": {"table": table * 1.1},
        "share": {"share": 0.02},
        "growth": {"memory": {"own": line, "anchors site": quadratic}},
    }
    with pytest.raises(AssertionError):
        exec(claim, names | changes[wrong])
