"""Descent on the temporal loss in features and in a LoRA: one start, and the network restored."""

import pandas as pd
import pytest
import torch

from vala_research import InputError
from vala_research.evaluation.cases import sprite_cases
from vala_research.experiments.theory.gradient_descent import descents, feature_descent
from vala_research.methods.temporal import temporal_consistency_loss
from vala_research.sprites.scene import WORLD


@pytest.fixture(scope="module")
def case():
    return sprite_cases(1, WORLD, 4, 32)[0]


def weights(unet) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in unet.named_parameters()}


@pytest.mark.parametrize("flicker_weight", [0.0, 0.3])
def test_both_descents_start_alike_and_go_down(pipe, case, flicker_weight):
    before = weights(pipe.unet)
    found = pd.DataFrame(descents(pipe, case, 541, 3, 2, flicker_weight))
    after = weights(pipe.unet)
    assert after.keys() == before.keys()  # the LoRA is gone
    assert all(torch.equal(after[n], p) for n, p in before.items())
    assert all(p.requires_grad for p in pipe.unet.parameters())
    sites = found.site.nunique()
    assert len(found) == 2 * 4 * sites
    means = found.groupby(["space", "step"]).loss.mean()
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


def test_a_pipeline_with_an_adapter_is_refused(pipe, case, monkeypatch):
    monkeypatch.setattr(pipe, "adapter", object())
    with pytest.raises(InputError, match="unload it"):
        descents(pipe, case, 541, 1)
