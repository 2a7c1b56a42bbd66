"""Notebook 31 runs from its parameters alone; its claims can fail."""

import json
from pathlib import Path

import pandas as pd
import pytest
from test_notebooks import run

from vala_research import miniature_path
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.ge import temporal_adapter
from vala_research.experiments.ge.temporal_adapter import ADAPTED, ALONE


def test_temporal_adapter_on_the_miniature(tmp_path, miniature):
    """The claim is asserted inside, on clips of the test split."""
    if not Path(miniature_path("adapter")).is_dir():
        pytest.skip("the miniature has no adapter: run python -m vala_research.miniature.adapter")
    out = tmp_path / "out"
    assert run("31_ge_temporal_adapter", tmp_path, output=str(out)) < 240  # 15 on an idle machine
    rows = pd.read_csv(out / "ge_temporal_adapter.csv")
    assert set(rows.setting) == {ALONE, ADAPTED, "training"}
    edits = rows[rows.setting != "training"]
    assert edits.groupby("setting").size().tolist() == [2 * 5] * 2
    training = rows[rows.setting == "training"]
    assert training.temporal.notna().all() and training.similarity.notna().all()
    record = json.loads((out / "ge_temporal_adapter.json").read_text())
    assert record["parameters"]["steps"] == 5 and record["model"]["name"] == "miniature"
    assert (out / "training" / "log.csv").read_text().count("\n") == 5


def planted(before=0.8, after=0.9, flops=1.001, share=0.1) -> pd.DataFrame:
    similarity = [
        {"part": "similarity", "setting": name, "t": t, "latents": x / 2, "features": x}
        for name, x in ((ALONE, before), (ADAPTED, after)) for t in (9, 5)
    ]  # fmt: skip
    training = [{"part": "training", "step": step, "similarity": x, "temporal": loss}
                for step, x, loss in ((0, 0.5, 2e-3), (1, 0.6, 1e-3))]  # fmt: skip
    overhead = [{"part": "overhead", "setting": name, "flops": x, "milliseconds": x}
                for name, x in (("bare", 1.0), ("LoRA", flops))]  # fmt: skip
    parameters = [{"part": "parameters", "share": share}, {"part": "parameters", "share": 0.1}]
    return pd.DataFrame([*similarity, *training, *overhead, *parameters])


@pytest.mark.parametrize("wrong", [{"before": 0.95}, {"flops": 1.5}, {"share": 3.0}])
def test_the_claims_can_fail(wrong):
    """An adapter that makes frames less alike, or costs much, is refused."""
    assert_claims(temporal_adapter.claims(planted()))
    with pytest.raises(AssertionError, match="not confirmed"):
        assert_claims(temporal_adapter.claims(planted(**wrong)))


def test_the_figure_draws_the_rows():
    axes = temporal_adapter.figure(planted()).axes
    assert [line.get_ydata().tolist() for line in axes[1].lines] == [[0.8, 0.8], [0.9, 0.9]]
    assert [line.get_ydata().tolist() for line in axes[0].lines] == [[0.4, 0.4], [0.45, 0.45]]
    assert axes[2].lines[0].get_ydata().tolist() == [0.5, 0.6]
    assert axes[3].lines[0].get_ydata().tolist() == [2.0, 1.0]
