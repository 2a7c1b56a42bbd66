"""Descent in features and in a LoRA: one start, the network restored; notebook 41 shows it."""

import pandas as pd
import pytest
import torch
from notebook_runs import run

from vala_research import InputError
from vala_research.evaluation.cases import sprite_cases
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.theory.gradient_descent import (
    claims,
    descents,
    feature_descent,
    figure,
    table,
)
from vala_research.methods.temporal import temporal_consistency_loss
from vala_research.sprites.scene import WORLD


@pytest.fixture(scope="module")
def case():
    return sprite_cases(1, WORLD, 4, 32)[0]


def weights(unet) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in unet.named_parameters()}


@pytest.mark.parametrize("flicker_weight", [0.0, 0.3])
def test_both_descents_start_alike_and_go_down(tiny, case, flicker_weight):
    before = weights(tiny.unet)
    measured = pd.DataFrame(descents(tiny, case, 541, 3, 2, flicker_weight))
    after = weights(tiny.unet)
    assert after.keys() == before.keys()  # the LoRA is gone
    assert all(torch.equal(after[n], p) for n, p in before.items())
    assert all(p.requires_grad for p in tiny.unet.parameters())
    sites = measured.site.nunique()
    assert len(measured) == 2 * 4 * sites
    means = measured.groupby(["space", "step"]).loss.mean()
    assert means["LoRA", 0] == pytest.approx(means["features", 0], rel=1e-3)  # float32 beside 64
    for space in ("features", "LoRA"):
        assert means[space].is_monotonic_decreasing and means[space, 3] < means[space, 0]


def test_features_follow_the_gradient_by_one_over_the_smoothness():
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = feature_descent({"up_blocks.1.attentions.0.transformer_blocks.0.attn1": x}, 2)
    m = x.flatten(1).norm(dim=1).min()
    for row in rows:
        assert row["loss"] == pytest.approx(temporal_consistency_loss(x).item(), rel=1e-12)
        y = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(temporal_consistency_loss(y), y)
        x = x - 4 * m**2 / 32 * grad
    assert rows[0]["site"] == "up 1.0" and rows[2]["loss"] < rows[1]["loss"] < rows[0]["loss"]


def test_a_pipeline_with_an_adapter_is_refused(tiny, case, monkeypatch):
    monkeypatch.setattr(tiny, "adapter", object())
    with pytest.raises(InputError, match="unload it"):
        descents(tiny, case, 541, 1)


def planted(lora=0.5, beyond=(1.0, 2.0), below=(1.0, 0.5), promised=0.9, top=0.01, depth=0.334,
            after=1e-5) -> pd.DataFrame:  # fmt: skip
    paths = [("descent", {"steps": 1.9}, below), ("descent", {"steps": 2.1}, beyond),
             ("adapter", {"space": "LoRA", "similarity": 0.5}, (1.0, lora)),
             ("adapter", {"space": "features", "similarity": 0.5}, (1.0, 0.9))]  # fmt: skip
    rows = [
        {"part": part} | place | {"step": k, "loss": loss}
        for part, place, losses in paths
        for k, loss in enumerate(losses)
    ]
    rows += [{"part": "chord", "u": u, "loss": top * (u == 0.5)} for u in (0.0, 0.5, 1.0)]
    rows += [{"part": "line", "theta": depth, "loss": depth, "minimum": True},
             {"part": "line", "theta": 0.0, "loss": 0.0, "minimum": False}]  # fmt: skip
    return pd.DataFrame([
        *rows, {"part": "promised", "steps": 1.9, "step": 1, "loss": promised},
        {"part": "total", "before": 0.0, "after": after, "total_before": 2.0, "total_after": 1.9},
    ])  # fmt: skip


def test_its_claims_can_fail():
    assert_claims(claims(planted()))
    for wrong in (dict(lora=1.1), dict(beyond=(2.0, 1.0)), dict(below=(1.0, 1.1), promised=2.0),
                  dict(promised=0.4), dict(top=0.0), dict(depth=0.1), dict(after=0.0)):  # fmt: skip
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(claims(planted(**wrong)))


def test_the_notebook(tmp_path, miniature):
    parameters, rows = run("41_theory_gradient_descent", tmp_path, n_steps=2, n_free=20, rank=2)
    assert parameters["rank"] == 2
    adapter = rows[rows.part == "adapter"]
    assert set(adapter.space) == {"features", "LoRA"} and adapter.step.max() == 2
    sizes = rows.groupby("part").size().drop("adapter").to_dict()
    assert sizes == {"descent": 63, "promised": 21, "chord": 101, "line": 402, "total": 1}
    assert len(table(rows)) == 4 and len(figure(rows).axes) == 5
