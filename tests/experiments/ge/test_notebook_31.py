"""Notebook 31 runs from its parameters alone; its claims can fail."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_notebooks import run

from vala_research import miniature_path
from vala_research.evaluation.verdicts import CONFIRMED, CONTRADICTED, OPEN, assert_claims
from vala_research.experiments.ge import temporal_adapter
from vala_research.experiments.ge.similarity_variation import variation_of
from vala_research.experiments.ge.temporal_adapter import ADAPTED, ALONE
from vala_research.methods.temporal import frame_similarity, temporal_consistency_loss


def test_temporal_adapter_on_the_miniature(tmp_path, miniature):
    """The claim is asserted inside, on clips of the test split."""
    if not Path(miniature_path("adapter")).is_dir():
        pytest.skip("the miniature has no adapter: run python -m vala_research.miniature.adapter")
    out, few = tmp_path / "out", dict(n_clips=1, n_frames=3, steps=2)
    seconds = run("31_ge_temporal_adapter", tmp_path, **few, output=str(out))
    assert seconds < 240  # 15 on an idle machine
    rows = pd.read_csv(out / "ge_temporal_adapter.csv")
    assert set(rows.setting) == {ALONE, ADAPTED, "training"}
    edits = rows[rows.setting != "training"]
    assert edits.groupby("setting").size().tolist() == [2] * 2
    training = rows[rows.setting == "training"]
    assert training.temporal.notna().all() and training.similarity.notna().all()
    record = json.loads((out / "ge_temporal_adapter.json").read_text())
    assert record["parameters"]["steps"] == 2 and record["model"]["name"] == "miniature"
    assert (out / "training" / "log.csv").read_text().count("\n") == 3


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


# Fig. 4 and its caption.


def planted_clips(latents=(0.77, 0.78), variation=(0.03, 0.02), training=(6e-4, 2e-4), first=0):
    """Rows of 8 clips and 2 steps, without and with the adapter; of a training in two rows."""
    similarity = [
        {"part": "similarity", "setting": name, "clip": clip, "step": step, "t": 9 - step,
         "latents": z - (1 - step) / 2 + 1e-3 * clip * (1 + which), "features": 0.9 + which / 20,
         "variation": v + 1e-4 * clip * (1 + which)}
        for which, (name, z, v) in enumerate(zip((ALONE, ADAPTED), latents, variation, strict=True))
        for clip in range(8) for step in (0, 1)
    ]  # fmt: skip
    curve = [
        {
            "part": "training",
            "step": step,
            "similarity": 0.9,
            "temporal": loss,
            "variation": loss**0.5,
        }
        for step, loss in zip((first, 100), training, strict=True)
    ]
    return pd.concat([planted(), pd.DataFrame(curve)]).query("part != 'similarity'").pipe(
        lambda rows: pd.concat([rows[~(rows.part.eq("training") & rows.variation.isna())],
                                pd.DataFrame(similarity)], ignore_index=True)
    )  # fmt: skip


def verdicts(**wrong) -> list[str]:
    """Verdicts on the caption: unity, latents, variation of an edit, variation of the training."""
    return [claim.verdict for claim in temporal_adapter.claims(planted_clips(**wrong))[3:]]


def test_the_caption_of_fig_4_is_judged_and_does_not_stop_the_notebook():
    """Latents far from 1 contradict the caption; each claim follows its rows, both ways."""
    assert verdicts() == [CONTRADICTED, CONFIRMED, CONFIRMED, CONFIRMED]
    assert_claims(temporal_adapter.claims(planted_clips()))  # a contradicted caption is printed
    assert verdicts(latents=(0.97, 0.98))[0] == CONFIRMED
    assert verdicts(latents=(0.78, 0.77))[1] == CONTRADICTED
    assert verdicts(variation=(0.02, 0.03))[2] == CONTRADICTED
    assert verdicts(training=(2e-4, 6e-4))[3] == CONTRADICTED
    assert len(verdicts(first=24)) == 3  # a log has no row without the adapter


def test_few_clips_establish_nothing():
    rows = planted_clips()
    few = rows[rows["clip"].isna() | (rows["clip"] < 5)]
    assert [claim.verdict for claim in temporal_adapter.claims(few)[3:6]] == [OPEN] * 3


def test_the_variation_is_drawn_with_the_adapter_and_without():
    """The last panel: a curve with the adapter, a level line without it."""
    curve, level = temporal_adapter.figure(planted_clips()).axes[4].lines
    assert curve.get_ydata().tolist() == pytest.approx([24.5, 14.14], abs=0.01)
    assert set(level.get_ydata()) == {curve.get_ydata()[0]} and level.get_linestyle() == "--"
    assert len(temporal_adapter.figure(planted_clips(first=24)).axes[4].lines) == 1


def test_the_variation_is_the_root_of_the_temporal_loss():
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    losses = torch.stack([temporal_consistency_loss(clip) for clip in x])
    similar = torch.stack([frame_similarity(clip) for clip in x])
    assert variation_of(similar) == pytest.approx(losses.mean().sqrt().item())
    assert math.isnan(variation_of(similar[:, :1]))  # two frames have one similarity
