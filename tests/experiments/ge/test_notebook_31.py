"""Notebook 31 runs from its parameters alone, and its own claim can fail."""

import json
from pathlib import Path

import pandas as pd
import pytest
from test_notebooks import NOTEBOOKS, run

from vala_research import miniature_path

NAME = "31_ge_temporal_adapter"


def test_temporal_adapter_on_the_miniature(tmp_path, miniature):
    """The claim is asserted inside, on clips of the test split."""
    if not Path(miniature_path("adapter")).is_dir():
        pytest.skip("the miniature has no adapter: run python -m vala_research.miniature.adapter")
    out = tmp_path / "out"
    assert run(NAME, tmp_path, output=str(out)) < 240  # 40 on an idle machine
    rows = pd.read_csv(out / "ge_temporal_adapter.csv")
    assert set(rows.setting) == {"image model alone", "with the adapter", "training"}
    edits = rows[rows.setting != "training"]
    assert edits.groupby("setting").size().tolist() == [6 * 10] * 2
    training = rows[rows.setting == "training"]
    assert training.temporal.notna().all() and training.similarity.notna().all()
    record = json.loads((out / "ge_temporal_adapter.json").read_text())
    assert record["parameters"]["steps"] == 10 and record["model"]["name"] == "miniature"
    assert (out / "training" / "log.csv").read_text().count("\n") == 5


def test_the_claim_can_fail():
    """An adapter that makes frames less alike, or costs much, is refused."""
    cells = json.loads((NOTEBOOKS / f"{NAME}.ipynb").read_text())["cells"]
    (claim,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))

    def attempt(before: float, after: float, flops: float, share: float) -> None:
        found = {n: pd.DataFrame({"features": [x]}) for n, x in (("a", before), ("b", after))}
        counts = pd.DataFrame({"share": [share]})
        exec(claim, dict(found=found, flops={"bare": 1.0, "LoRA": flops}, counts=counts))

    attempt(0.8, 0.9, 1.001, 0.1)
    for wrong in ((0.9, 0.8, 1.001, 0.1), (0.8, 0.9, 1.5, 0.1), (0.8, 0.9, 1.001, 3.0)):
        with pytest.raises(AssertionError):
            attempt(*wrong)
