"""The notebook of bilateral inversion runs from its parameters alone, and its claim can fail."""

import json
from pathlib import Path

import pandas as pd
import papermill
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"
NAME = "30_ge_bilateral_inversion.ipynb"


def test_bilateral_inversion(tmp_path, miniature):
    out = tmp_path / "out"
    parameters = {"n_clips": 1, "steps": [3], "windows": [0, 3, 5], "hosts": ["own"],
                  "edit_steps": 2, "output": str(out)}  # fmt: skip
    papermill.execute_notebook(
        NOTEBOOKS / NAME, tmp_path / "run.ipynb", parameters, cwd=NOTEBOOKS, progress_bar=False,
        kernel_name="python3",
    )  # fmt: skip
    names = {"ge_bilateral_steps", "ge_bilateral_edits"}
    assert {p.name for p in out.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("pdf", "png", "csv", "json")
    }
    record = json.loads((out / "ge_bilateral_steps.json").read_text())
    assert record["parameters"]["windows"] == [0, 3, 5]
    edits = pd.read_csv(out / "ge_bilateral_edits.csv")
    assert list(edits.setting) == ["ddim", "bilateral", "along frames"]


def test_its_claim_can_fail():
    """A bias beyond its bound, a window that reconstructs better, a host that gains: each stops."""
    cells = json.loads((NOTEBOOKS / NAME).read_text())["cells"]
    (claim,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))

    def stated(bias=0.9, psnr=(40.0, 30.0, 29.0), host=20.0):
        rows = [
            {"steps": 3, "window": k, "to_vae": x} for k, x in zip((0, 3, 5), psnr, strict=True)
        ]
        table = pd.DataFrame({"host": ["own"] * 2, "setting": ["ddim", "bilateral"],
                              "inversion_psnr": [30.0, host]})  # fmt: skip
        exec(claim, {
            "biases": [{"bias": bias, "bound": 1.0}], "steps": [3],
            "means": pd.DataFrame(rows).set_index(["steps", "window"]),
            "table": table.set_index(["host", "setting"]),
        })  # fmt: skip

    stated()
    for wrong in ({"bias": 1.1}, {"bias": 0.0}, {"psnr": (29.5, 30.0, 29.0)},
                  {"psnr": (40.0, 29.0, 30.0)}, {"host": 31.0}):  # fmt: skip
        with pytest.raises(AssertionError):
            stated(**wrong)
