"""The notebooks on the filter and on error growth run from their parameters, and can fail."""

import json
from pathlib import Path

import pandas as pd
import papermill
import pytest
import torch

from vala_research.experiments.theory.bilateral_filter import (
    distance_rows,
    random_pairs,
    worst_pairs,
)

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"


def run(folder: Path, name: str, **parameters) -> dict[str, dict]:
    """What the notebook recorded of each of its figures."""
    out = folder / "out"
    papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb", folder / "run.ipynb", {**parameters, "output": str(out)},
        cwd=NOTEBOOKS, progress_bar=False, kernel_name="python3",
    )  # fmt: skip
    return {p.stem: json.loads(p.read_text()) for p in out.glob("*.json")}


def claim(name: str) -> str:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    (source,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))
    return source


def test_the_filters_notebook(tmp_path, miniature):
    record = run(tmp_path, "42_theory_bilateral_filter", seed=3, n_random=100)
    assert set(record) == {"theory_bilateral_filter"}
    rows = pd.read_csv(tmp_path / "out" / "theory_bilateral_filter.csv")
    pairs, found = (rows[rows.panel == p] for p in ("distance", "stretch"))
    assert set(pairs.kind) == {"random images", "latents of a clip, and noised", "the worst images"}
    assert (pairs.after <= pairs.bound * (1 + 1e-9)).all() and (pairs.after > pairs.before).any()
    assert (found.stretch > 1.5).all() and len(found) == 6


def test_the_notebook_of_error_growth(tmp_path, miniature):
    record = run(tmp_path, "43_theory_ddim_error", n_steps=3, n_iterations=5)
    assert set(record) == {"theory_error_bounds", "theory_error_growth"}
    rows = pd.read_csv(tmp_path / "out" / "theory_error_growth.csv")
    assert rows.groupby(["model", "way", "start"]).size().tolist() == [4] * 6 + [21] * 6
    assert set(rows[rows.is_local].model) == {"UNet"}
    bounds = pd.read_csv(tmp_path / "out" / "theory_error_bounds.csv")
    assert bounds.series.nunique() == 8


def test_pairs_of_the_filters_picture():
    x, xbar = random_pairs(6, 50, torch.Generator().manual_seed(0))
    rows = distance_rows("random", x, xbar)
    assert 0 < rows[0]["before"] <= 1.5 and any(r["after"] > r["before"] for r in rows)
    for row in distance_rows("worst", *worst_pairs(6, 5)):
        assert row["after"] == pytest.approx(row["bound"], rel=1e-12)


def test_the_filters_claim_can_fail():
    good = distance_rows("the worst images", *worst_pairs(6, 3))
    good += [dict(kind="random images", before=1.0, after=1.1, bound=1.4)]
    fine = type("Fine", (), {"reproduced": True, "witness": {"certificate": ""}})
    broken = type("Broken", (fine,), {"reproduced": False})

    def check(pairs, verdicts):
        exec(claim("42_theory_bilateral_filter"), {"pd": pd, "pairs": pairs, "verdicts": verdicts})

    check(good, [fine] * 3)
    for pairs, verdicts in (
        (good, [fine, fine, broken]),
        ([*good, dict(kind="random images", before=1.0, after=1.5, bound=1.4)], [fine] * 3),
        ([dict(r, after=r["before"]) for r in good], [fine] * 3),
    ):
        with pytest.raises(AssertionError):
            check(pairs, verdicts)


def test_the_claim_on_errors_can_fail():
    ends = {"paper": 1e12, "update, closed form": 9.0, "update, product of C_t": 8.0,
            "DDIM, closed form": 5.0, "DDIM, product": 4.0}  # fmt: skip
    errors = {"ddim": 0.02, "inversion": 0.03}

    def check(reproduced=True, ends=ends, errors=errors, paper=0.01):
        table = [
            dict(model=m, way=w, start=s, step=1, error=errors[w], product=0.04, paper=paper)
            for m in ("two Gaussians", "UNet") for w in errors
            for s in ("random", "worst", "filtered")
        ]  # fmt: skip
        exec(claim("43_theory_ddim_error"), {
            "pd": pd, "table": table, "found": type("V", (), {"reproduced": reproduced}),
            "rows": [dict(series=s, step=1, growth=g) for s, g in ends.items()],
        })  # fmt: skip

    check()
    for wrong in (dict(reproduced=False), dict(paper=0.1), dict(ends=ends | {"DDIM, product": 6.0}),
                  dict(ends=ends | {"update, product of C_t": 10.0}),
                  dict(errors={"ddim": 0.05, "inversion": 0.06}),
                  dict(errors={"ddim": 0.03, "inversion": 0.02})):  # fmt: skip
        with pytest.raises(AssertionError):
            check(**wrong)
