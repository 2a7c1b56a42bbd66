"""Notebook 27 runs from its parameters alone."""

import pandas as pd
from test_notebooks import run


def test_the_explorer_makes_its_grid_once(tmp_path, miniature):
    out = tmp_path / "out"
    seconds = run("27_fldm_explorer", tmp_path, output=str(out))
    assert seconds < 240  # 15 on an idle machine
    first = pd.read_csv(out / "fldm_explorer.csv")
    assert len(first) == 8 and first.edit.nunique() == 4
    kept = out / "grid.safetensors"
    seconds = run("27_fldm_explorer", tmp_path, output=str(tmp_path / "b"), grid=str(kept))
    again = pd.read_csv(tmp_path / "b" / "fldm_explorer.csv")
    pd.testing.assert_frame_equal(first, again)
    assert not (tmp_path / "b" / "grid.safetensors").exists()
