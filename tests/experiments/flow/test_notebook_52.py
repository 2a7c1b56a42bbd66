"""Notebook 52: fusion across paths; planted rows, and the notebook once, 12 s."""

import pandas as pd
import pytest
from test_notebooks import run

from vala_research.evaluation.verdicts import CONFIRMED, CONTRADICTED, OPEN, assert_claims
from vala_research.experiments.flow import fusion
from vala_research.experiments.flow.fusion import (
    FLOW,
    IMAGE,
    MOTION,
    ON_DIFFUSION,
    ON_FLOW,
    WITH_MOTION,
    Settings,
    edit_settings,
)

ALL = (IMAGE, MOTION, FLOW, WITH_MOTION, ON_DIFFUSION, ON_FLOW)


def planted(gain: float = 1.0, drop: int = 0) -> pd.DataFrame:
    """Eight clips; the fusion on the path of diffusion is better by about `gain` dB."""
    rows = [
        {"setting": name, "kind": "shape", "index": i, "clip": i, "success": 1.0, "jitter": 1.0,
         "warp_error": 0.005,
         "psnr": 20.0 + i % 3 + (gain + 0.1 * (i % 2)) * (name == ON_DIFFUSION)}
        for name in ALL for i in range(8)
    ]  # fmt: skip
    return pd.DataFrame(rows[: len(rows) - drop])


@pytest.mark.parametrize(("gain", "verdict"), [(1.0, CONFIRMED), (-1.0, CONTRADICTED)])
def test_a_better_fusion_is_told_from_a_worse_one(gain, verdict):
    claims = {(c.sentence, c.measured): c for c in fusion.claims(planted(gain))}
    for other in (IMAGE, FLOW, WITH_MOTION):
        assert claims[f"{ON_DIFFUSION} beats {other}", "PSNR"].verdict == verdict
    assert claims[f"{ON_FLOW} beats {IMAGE}", "PSNR"].verdict == OPEN
    assert_claims(claims.values())
    with pytest.raises(AssertionError, match="not confirmed"):
        assert_claims(fusion.claims(planted(drop=1)))


def test_the_figure_and_the_page_are_drawn_from_rows():
    assert len(fusion.figure(planted()).axes) == 4
    assert fusion.page(planted()).loc[ON_DIFFUSION, "PSNR to the true edit, dB"] > 21


def test_settings_are_models_and_fusions():
    settings = edit_settings(Settings.preset("sprites"))
    assert tuple(settings) == ALL
    assert settings[ON_FLOW].fusion.sources == ("flow", "image")
    calls = {name: s.n_sampling for name, s in settings.items()}
    assert calls[IMAGE] == calls[FLOW] == calls[MOTION] == calls[ON_FLOW] / 2


def test_notebook_of_fusion_across_paths(tmp_path, miniature):
    out = tmp_path / "out"
    few = dict(size=32, steps=2, inversion="ddim")
    seconds = run("52_flow_fusion", tmp_path, **few, output=str(out))
    assert seconds < 240  # 15 on an idle machine
    rows = pd.read_csv(out / "rows.csv")
    assert set(rows.setting) == {IMAGE, FLOW, ON_DIFFUSION, ON_FLOW} and rows.psnr.notna().all()
