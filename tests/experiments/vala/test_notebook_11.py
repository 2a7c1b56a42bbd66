"""The notebook of inversion fidelity runs from its parameters alone, and its assertions hold."""

import json
from pathlib import Path

import papermill
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"


def test_inversion_fidelity(tmp_path, miniature):
    out = tmp_path / "out"
    parameters = {
        "n_frames": 2,
        "methods": ["ddim", "exact, quick"],
        "attentions": ["own"],
        "output": str(out),
    }
    papermill.execute_notebook(
        NOTEBOOKS / "11_vala_inversion_fidelity.ipynb", tmp_path / "run.ipynb", parameters,
        cwd=NOTEBOOKS, progress_bar=False, kernel_name="python3",
    )  # fmt: skip
    record = json.loads((out / "vala_inversion_fidelity.json").read_text())
    assert record["parameters"]["methods"] == parameters["methods"]
    assert {p.suffix for p in out.iterdir()} == {".pdf", ".png", ".csv", ".json"}


def test_its_claim_can_fail():
    """Neither a reconstruction below 60 dB nor one of three times the evaluations passes."""
    cells = json.loads((NOTEBOOKS / "11_vala_inversion_fidelity.ipynb").read_text())["cells"]
    (claim,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))
    row = {"method": "exact, quick", "attention": "own", "steps": 25}
    exec(claim, {"clips": "", "means": [row | {"to_vae": 61.0, "evaluations": 50}]})
    for wrong in ({"to_vae": 59.0, "evaluations": 50}, {"to_vae": 61.0, "evaluations": 75}):
        with pytest.raises(AssertionError):
            exec(claim, {"clips": "", "means": [row | wrong]})
