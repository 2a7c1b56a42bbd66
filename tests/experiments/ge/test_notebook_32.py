"""The ablations of the adapter run from their parameters alone, and their claims can fail."""

import json

import pandas as pd
import pytest
from test_notebooks import NOTEBOOKS, run

from vala_research import InputError
from vala_research.experiments.ge.adapter_variants import ALL_HOSTS


def claim(name: str) -> str:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    (found,) = ("".join(c["source"]) for c in cells if "# the claim" in "".join(c["source"]))
    return found


def test_prompt_tokens(tmp_path, miniature):
    out = tmp_path / "out"
    seconds = run("32_ge_prompt_tokens", tmp_path, output=str(out))
    assert seconds < 240  # 30 on an idle machine
    table = pd.read_csv(out / "ge_prompt_tokens.csv")
    assert set(table.setting) == {"without", "no tokens", "shared removed", "18 shared"}
    assert {"psnr", "success", "warp_error", "lpips_miniature"} <= set(table.metric)
    record = json.loads((out / "ge_prompt_tokens.json").read_text())
    assert record["parameters"]["training_steps"] == 2 and record["model"]["name"] == "miniature"


def test_the_claim_about_tokens_can_fail():
    """A configuration whose edits are those without an adapter is found out."""
    rows = pd.DataFrame(
        [{"kind": "k", "index": 0, "setting": s, "psnr": p, "warp_error": 1.0}
         for s, p in (("without", 1.0), ("a", 2.0), ("b", 1.0))]
    )  # fmt: skip
    names = dict(rows=rows, settings=dict.fromkeys(("without", "a", "b")))
    exec(claim("32_ge_prompt_tokens"), names | {"names": ["a"]})
    with pytest.raises(AssertionError, match="b changes nothing"):
        exec(claim("32_ge_prompt_tokens"), names | {"names": ["a", "b"]})


def test_activation_range(tmp_path, miniature):
    out = tmp_path / "out"
    seconds = run("33_ge_activation_range", tmp_path, output=str(out))
    assert seconds < 240  # 20 on an idle machine
    assert len(list(out.glob("ge_activation_strip.*"))) == 4
    rows = pd.read_csv(out / "rows.csv").set_index(["setting", "index"]).psnr
    # Six steps hold none from .9 T on, where the adapter then changes nothing.
    none, some = "trained 0.5-1, acting 0.9-1", "trained 0.5-1, acting 0.5-1"
    assert rows[none].equals(rows["without"]) and not rows[some].equals(rows["without"])


def test_the_claim_about_ranges_can_fail():
    names = dict(folders=["a"], acting=[0.5, 0.9], distances=None)
    for near, far, holds in ((0.0, 0.1, True), (0.1, 0.1, True), (0.2, 0.1, False), (0, 0, False)):
        study = type("study", (), {"distances": staticmethod(
            lambda _, near=near, far=far: {"a, acting 0.9-1": near, "a, acting 0.5-1": far}
        )})  # fmt: skip
        given = names | {"study": study, "edits": {}}
        if holds:
            exec(claim("33_ge_activation_range"), given)
        else:
            with pytest.raises(AssertionError):
                exec(claim("33_ge_activation_range"), given)


def test_adapter_gains(tmp_path, miniature):
    out = tmp_path / "out"
    seconds = run("35_ge_adapter_gains", tmp_path, output=str(out))
    assert seconds < 240  # 25 on an idle machine
    table = pd.read_csv(out / "ge_adapter_gains.csv")
    assert set(table.setting) == {"without", "own", "extended", ALL_HOSTS}
    rows = pd.read_csv(out / "rows.csv")
    assert len(rows) == 2 * 4
    psnr = rows.set_index(["setting", "index"]).psnr
    assert (psnr["own, with"] != psnr["own, without"]).all()


def test_the_claim_about_gains_can_fail():
    row = {"setting": ALL_HOSTS, "n": 9, "gain": 0.0, "gain_low": -1.0, "p": 1.0}

    def found(psnr: float, **warp: float) -> dict:
        lines = [row | {"metric": m, "gain_high": x} for m, x in ({"psnr": psnr} | warp).items()]
        return {"table": pd.DataFrame(lines), "study": type("s", (), {"ALL_HOSTS": ALL_HOSTS}),
                "shown": ("warp_error_truth", "warp_error", "psnr")}  # fmt: skip

    exec(claim("35_ge_adapter_gains"), found(0.0, warp_error=0.1))  # clips from a folder
    exec(claim("35_ge_adapter_gains"), found(0.0, warp_error=-0.1, warp_error_truth=0.1))
    for wrong in (
        found(0.0, warp_error=-0.1),
        found(-0.2, warp_error=0.1),
        found(0.0, warp_error=0.1, warp_error_truth=-0.1),
    ):
        with pytest.raises(AssertionError):
            exec(claim("35_ge_adapter_gains"), wrong)


def test_an_adapter_that_is_not_there(tmp_path, miniature):
    with pytest.raises(Exception, match=InputError.__name__):
        run("35_ge_adapter_gains", tmp_path, output=str(tmp_path / "out"), adapter="nowhere")
