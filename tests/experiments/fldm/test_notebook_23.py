"""Notebook 23 runs from its parameters alone, and its own claims can fail."""

import json

import numpy as np
import pandas as pd
import pytest
from test_notebooks import NOTEBOOKS, run

from vala_research.evaluation.provenance import file_hash
from vala_research.experiments.fldm import latent_compatibility

SPACES = "23_fldm_latent_compatibility"


def emitted(folder, name: str) -> dict:
    """The record of a figure, whose table is the one beside it."""
    record = json.loads((folder / f"{name}.json").read_text())
    assert record["outputs"]["csv"] == file_hash(folder / f"{name}.csv")
    return record["parameters"]


def claim(name: str) -> str:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    (source,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))
    return source


@pytest.fixture(scope="module")
def motion(miniature) -> None:
    """The miniature with its motion modules; skips while they are not there."""
    from conftest import _weights

    _weights("motion")


def test_latent_compatibility(tmp_path, motion):
    out = tmp_path / "out"
    seconds = run(SPACES, tmp_path, output=str(out), n_frames=3, steps=4)
    assert seconds < 240  # 30 on an idle machine
    assert emitted(out, "fldm_latent_compatibility")["angles"] == [0, 90]
    assert "rotated by 90 is worse than the same space" in set(
        pd.read_csv(out / "fldm_foreign_spaces.csv").claim
    )
    emitted(out, "fldm_foreign_spaces")
    assert len(pd.read_csv(out / "rows.csv")) == 2 * 5
    cosines = pd.read_csv(out / "cosines.csv")
    assert set(cosines.source) == {"same space", "rotated by 90", "another clip"}


# What the notebooks assert is not true of everything.


def judged(verdict: str = "confirmed", low: float = 0.1, high: float = 0.2) -> pd.DataFrame:
    return pd.DataFrame([{"claim": "c", "metric": "m", "frames": 20, "gain": 0.15, "low": low,
                          "high": high, "n": 8, "verdict": verdict}])  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [dict(claims=judged(low=-0.1)), dict(raw=0.9), dict(psnr=np.nan), dict(cosine=1.1)],
    ids=["verdict", "beginning", "rows", "cosine"],
)
def test_the_claim_of_spaces_can_fail(wrong):
    def names(claims=None, raw: float = 1.0, psnr: float = 20.0, cosine: float = 0.5) -> dict:
        known = (("inversion", 0, "same space", raw), ("edit", 501, "same space", cosine),
                 ("inversion", 0, "another clip", 0.1))  # fmt: skip
        cosines = [dict(zip(("phase", "t", "source", "raw"), row, strict=True)) for row in known]
        return dict(
            claims=judged() if claims is None else claims, cosines=pd.DataFrame(cosines),
            compatibility=latent_compatibility, rows=pd.DataFrame({"psnr": [psnr]}),
            settings=["a"], cases=["b"],
        )  # fmt: skip

    exec(claim(SPACES), names())
    with pytest.raises(AssertionError):
        exec(claim(SPACES), names(**wrong))
