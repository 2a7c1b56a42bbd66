"""ControlNets and the adapter beside them: the notebook runs, claims follow the rows; 25 s."""

import pandas as pd
import pytest
from test_notebooks import run

from vala_research import InputError
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.ge import controls
from vala_research.experiments.ge.controls import OF_STABLE_DIFFUSION, Settings


def test_notebook_of_controlnets(tmp_path, miniature):
    out = tmp_path / "out"
    run("38_ge_controls", tmp_path, size=32, output=str(out))
    table = pd.read_csv(out / "ge_controls.csv")
    assert set(table.setting) == {"without", "depth", "mean over hosts"}
    rows = pd.read_csv(out / "rows.csv").set_index("setting").psnr
    assert rows.nunique() == 4 and set(rows.index) == {
        "none, without", "none, with", "depth, without", "depth, with",
    }  # fmt: skip
    assert (out / "ge_controls_strips.png").exists()


def test_every_condition_has_its_controlnet(miniature):
    paper = controls.edit_settings(Settings.preset("paper", clips="there"))
    assert [paper[f"{c}, with"].controlnet for c in ("canny", "pose", "depth")] == list(
        OF_STABLE_DIFFUSION
    )
    assert paper["pose, without"].control == "pose" and not paper["pose, without"].adapter
    assert not paper["none, with"].controlnet
    with pytest.raises(InputError, match="2 conditions and 0 controlnets"):
        Settings.preset("smoke", conditions=("depth", "canny")).nets()


def planted(path_error: float, psnr: float = 0.5) -> pd.DataFrame:
    """Nine clips; the ControlNet and the adapter change the metrics by so much, give or take."""
    rows = []
    for i in range(9):
        bare = {"kind": "k", "index": i, "psnr": 20.0 + i, "path_error": 5.0 + i, "shape": 0.5,
                "warp_error": 9.0 + i}  # fmt: skip
        more = (i - 4) / 1e3
        for name, moved in (("none", 0.0), ("depth", path_error)):
            for side, gained in (("without", 0.0), ("with", psnr)):
                rows.append(bare | {
                    "setting": f"{name}, {side}", "path_error": bare["path_error"] + moved + more,
                    "psnr": bare["psnr"] + gained + more, "shape": 0.5 + 0.1 * (name == "depth"),
                    "warp_error": bare["warp_error"] - (side == "with"),
                })  # fmt: skip
    return pd.DataFrame(rows)


def test_the_claims_follow_the_rows():
    right = controls.claims(planted(-1.0))
    assert_claims(right)
    found = {c.sentence: c.verdict for c in right}
    assert found["the ControlNet of depth lowers: path error, pixels"] == "confirmed"
    assert found["the ControlNet of depth raises: frames with the right shape, %"] == "confirmed"
    assert found["the adapter improves PSNR"] == "confirmed"
    held = controls.held(planted(-1.0)).set_index("metric")
    assert held.gain["path error, pixels"] == pytest.approx(1.0)
    assert held["with ControlNet"]["frames with the right shape, %"] == pytest.approx(60)
    with pytest.raises(AssertionError, match="does not raise the path error"):
        assert_claims(controls.claims(planted(1.0)))
    with pytest.raises(AssertionError, match="does not lower PSNR"):
        assert_claims(controls.claims(planted(-1.0, psnr=-0.5)))
