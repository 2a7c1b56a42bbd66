"""Notebook 53 runs from its parameters, and its claims on errors can fail. Costs 22 s."""

import pandas as pd
import pytest
import torch
from test_notebooks import run

from vala_research.evaluation.gaussian_mixture import GaussianMixture
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.flow.gaussian_flow import GaussianFlow
from vala_research.experiments.flow.theory import claims, figure, flow_of, table, trip

TRIPS = {5: 0.08, 10: 0.04}


def planted(reproduced=True, error=0.02, bound=0.2, trips=TRIPS, exact=1e-5) -> pd.DataFrame:
    growth = [
        dict(part="growth", model=m, way=w, start=s, step=1, error=error, product=0.03)
        for m in ("two Gaussians", "network") for w in ("ddim", "inversion")
        for s in ("random", "worst", "filtered")
    ]  # fmt: skip
    walked = [
        dict(part="trip", model=m, steps=n, plain=miss, bound=bound, exact=exact, q=0.9)
        for m in ("two Gaussians", "network") for n, miss in trips.items()
    ]  # fmt: skip
    return pd.DataFrame([*growth, *walked, dict(part="verdict", reproduced=reproduced)])


def test_its_claims_can_fail():
    assert_claims(claims(planted()))
    for wrong in (dict(reproduced=False), dict(error=0.04), dict(bound=0.05), dict(exact=0.1),
                  dict(trips={5: 0.08, 10: 0.07, 20: 0.07, 40: 0.07})):  # fmt: skip
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(claims(planted(**wrong)))


def test_the_constant_of_the_two_gaussians_is_attained():
    """The Jacobian's norm at the mean's middle, at some noise levels, and never above it."""
    blob = GaussianMixture.of_a_blob((1.0,))
    flow = GaussianFlow(blob.mean, blob.deviation)
    middle = torch.zeros(1, *blob.mean.shape, dtype=torch.float64)
    for t in (100.0, 400.0, 700.0, 1000.0):
        jacobian = torch.func.jacrev(lambda z, t=t: flow(z, t))(middle).reshape(64, 64)
        norm = float(torch.linalg.matrix_norm(jacobian, ord=2))
        far = torch.func.jacrev(lambda z, t=t: flow(z, t))(middle + 50 * blob.mean).reshape(64, 64)
        norms = norm, float(torch.linalg.matrix_norm(far, ord=2))
        assert max(norms) == pytest.approx(flow.lipschitz(t), rel=1e-6)


def test_a_velocity_without_change_is_inverted_exactly():
    z = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    found = trip(lambda x, t: torch.ones_like(x), z, flow_of(5), lambda t: 0.0)
    assert found["plain"] < 1e-6 and found["bound"] == 0 and found["exact"] < 1e-6


def test_notebook_of_errors_along_flows(tmp_path, miniature):
    out = tmp_path / "out"
    fewer = dict(n_steps=2, n_iterations=1, mixture_steps=4, trips="2,4")
    assert run("53_flow_theory", tmp_path, output=str(out), **fewer) < 300
    rows = pd.read_csv(out / "rows.csv")
    growth = rows[rows.part == "growth"]
    sizes = growth.groupby(["model", "way", "start"]).size()
    assert sizes.tolist() == [3] * 6 + [5] * 6 and len(table(rows)) == 4
    assert set(growth[growth.is_local.astype(bool)].model) == {"network"}
    assert rows[rows.part == "bounds"].series.nunique() == 6
    assert len(figure(rows).axes) == 4 + 2
