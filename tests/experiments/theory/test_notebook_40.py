"""The notebooks of the temporal loss and its descent run from parameters, and can fail."""

import json
from pathlib import Path

import pandas as pd
import papermill
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"
LOSS, DESCENT = "40_theory_temporal_loss", "41_theory_gradient_descent"


def run(name: str, folder: Path, figures: tuple[str, ...], **parameters) -> list[dict]:
    """What the notebook recorded of its figures."""
    out = folder / "out"
    papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb", folder / "run.ipynb", {**parameters, "output": str(out)},
        cwd=NOTEBOOKS, progress_bar=False, kernel_name="python3",
    )  # fmt: skip
    written = {f"{n}.{kind}" for n in figures for kind in ("pdf", "png", "csv", "json")}
    assert {p.name for p in out.iterdir()} == written
    return [json.loads((out / f"{n}.json").read_text()) for n in figures]


def test_the_temporal_loss(tmp_path, miniature):
    figures = ("temporal_loss_constants", "temporal_loss_flicker")
    records = run(LOSS, tmp_path, figures, n_clips=2, n_frames=4, attacked=[3], norms=[0.1, 1.0])
    assert [r["figure"] for r in records] == ["C.1-C.3", "C.5, remark"]
    rows = pd.read_csv(tmp_path / "out" / "temporal_loss_flicker.csv")
    assert len(rows) == 2 * 3 * rows.site.nunique()
    assert set(rows.kind) == {"moving", "one change", "flicker"}
    panels = pd.read_csv(tmp_path / "out" / "temporal_loss_constants.csv").groupby("panel")
    assert panels.size().to_dict() == {"gradient": 900, "lipschitz": 2, "curvature": 9}


def test_gradient_descent(tmp_path, miniature):
    figures = ("temporal_loss_descent", "temporal_loss_adapter")
    records = run(DESCENT, tmp_path, figures, n_steps=2, n_free=20, rank=2)
    assert records[1]["parameters"]["rank"] == 2
    rows = pd.read_csv(tmp_path / "out" / "temporal_loss_adapter.csv")
    assert set(rows.space) == {"features", "LoRA"} and rows.step.max() == 2
    panels = pd.read_csv(tmp_path / "out" / "temporal_loss_descent.csv").groupby("panel")
    assert panels.size().to_dict() == {"descent": 63, "promised": 21, "chord": 101, "line": 402}


def claim_of(name: str) -> str:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    (claim,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))
    return claim


def test_the_claim_of_the_loss_can_fail():
    claim = claim_of(LOSS)

    def check(moving=1e-4, change=0.2, repaired=0.5, attacked=5.9, pattern=6.0, ratio=600.0):
        values = {"moving": (moving, 0.01), "one change": (change, change + 0.1),
                  "flicker": (0.0, repaired)}  # fmt: skip
        rows = [
            {"clip": 0, "kind": kind, "site": "up", "loss": a, "repaired": b, "similarity": 0.5}
            for kind, (a, b) in values.items()
        ]
        exec(claim, {
            "pd": pd, "rows": rows, "gradient": [{"s": 0.6, "product": 0.8}],
            "curvature": [{"n_frames": 3, "attacked": attacked, "pattern": pattern,
                           "constant": 6.0}],
            "chords": [{"M": 0.1, "ratio": ratio, "paper": 160.0, "ours": 600.0}],
        })  # fmt: skip

    check()
    for wrong in (dict(moving=0.0), dict(change=-0.1), dict(repaired=0.2), dict(attacked=6.1),
                  dict(pattern=5.0), dict(ratio=601.0)):  # fmt: skip
        with pytest.raises(AssertionError):
            check(**wrong)


def test_the_claim_of_descent_can_fail():
    claim = claim_of(DESCENT)

    def check(lora=0.5, beyond=(1.0, 2.0), below=(1.0, 0.5), promised=0.9, top=0.01, depth=0.334,
              after=1e-5):  # fmt: skip
        rows = [
            {"space": space, "step": k, "loss": v, "similarity": 0.5}
            for space, last in (("features", 0.9), ("LoRA", lora))
            for k, v in enumerate((1.0, last))
        ]
        exec(claim, {
            "pd": pd, "rows": rows, "n_steps": 1, "steps": [1.9, 2.1], "below": [1.9],
            "runs": {1.9: list(below), 2.1: list(beyond)},
            "rate": [{"steps": 1.9, "step": 1, "loss": promised}],
            "chord": [{"loss": 0.0}, {"loss": top}, {"loss": 0.0}], "depth": depth,
            "line": [{"loss": 0.0}, {"loss": depth}],
            "total_loss_step": lambda: (0.0, after, 2.0, 1.9),
        })  # fmt: skip

    check()
    for wrong in (dict(lora=1.1), dict(beyond=(2.0, 1.0)), dict(below=(1.0, 1.1), promised=2.0),
                  dict(promised=0.4), dict(top=0.0), dict(depth=0.1), dict(after=0.0)):  # fmt: skip
        with pytest.raises(AssertionError):
            check(**wrong)
