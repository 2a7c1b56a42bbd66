"""Notebook 43 runs from its parameters, and its claims on errors can fail."""

import pandas as pd
import pytest
from notebook_runs import run

from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.theory.ddim_error import claims, figure, table

ENDS = {"paper": 1e12, "update, closed form": 9.0, "update, product of C_t": 8.0,
        "DDIM, closed form": 5.0, "DDIM, product": 4.0}  # fmt: skip
ERRORS = {"ddim": 0.02, "inversion": 0.03}


def planted(reproduced=True, ends=ENDS, errors=ERRORS, paper=0.01) -> pd.DataFrame:
    growth = [
        dict(part="growth", model=m, way=w, start=s, step=1, error=errors[w], product=0.04,
             paper=paper)
        for m in ("two Gaussians", "UNet") for w in errors
        for s in ("random", "worst", "filtered")
    ]  # fmt: skip
    bounds = [dict(part="bounds", series=s, step=1, growth=g) for s, g in ends.items()]
    return pd.DataFrame([*growth, *bounds, dict(part="verdict", reproduced=reproduced)])


def test_its_claims_can_fail():
    assert_claims(claims(planted()))
    for wrong in (dict(reproduced=False), dict(paper=0.1), dict(ends=ENDS | {"DDIM, product": 6.0}),
                  dict(ends=ENDS | {"update, product of C_t": 10.0}),
                  dict(ends=ENDS | {"update, closed form": 1e13}),
                  dict(errors={"ddim": 0.05, "inversion": 0.06}),
                  dict(errors={"ddim": 0.03, "inversion": 0.02})):  # fmt: skip
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(claims(planted(**wrong)))


def test_the_notebook(tmp_path, miniature):
    parameters, rows = run("43_theory_ddim_error", tmp_path, n_steps=3, n_iterations=1)
    assert parameters["n_steps"] == 3
    growth = rows[rows.part == "growth"]
    sizes = growth.groupby(["model", "way", "start"]).size()
    assert sizes.tolist() == [4] * 6 + [21] * 6 and len(table(rows)) == 12
    assert set(growth[growth.is_local.astype(bool)].model) == {"UNet"}
    assert rows[rows.part == "bounds"].series.nunique() == 5
    assert rows[rows.part == "noise"].series.nunique() == 3
    assert len(figure(rows).axes) == 2 + 4
