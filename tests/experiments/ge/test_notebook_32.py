"""The ablations of the adapter run from their parameters alone; their claims can fail."""

import json

import pandas as pd
import pytest
import torch
from test_notebooks import run

from vala_research import InputError
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.ge import activation_range, adapter_gains, prompt_tokens
from vala_research.experiments.ge.adapter_gains import ALL_HOSTS


def test_prompt_tokens(tmp_path, miniature):
    out = tmp_path / "out"
    seconds = run("32_ge_prompt_tokens", tmp_path, size=32, output=str(out))
    assert seconds < 240  # 30 on an idle machine
    table = pd.read_csv(out / "ge_prompt_tokens.csv")
    assert set(table.setting) == {"without", "no tokens", "shared removed", "18 shared"}
    assert {"psnr", "success", "warp_error", "lpips_miniature"} <= set(table.metric)
    record = json.loads((out / "ge_prompt_tokens.json").read_text())
    assert record["parameters"]["training_steps"] == 2 and record["model"]["name"] == "miniature"


def test_the_claims_about_tokens_can_fail():
    """A configuration whose edits are those without an adapter, or that is not measured."""
    rows = pd.DataFrame(
        [{"kind": "k", "index": 0, "setting": s, "psnr": p, "warp_error": 1.0}
         for s, p in (("without", 1.0), ("a", 2.0), ("b", 1.0))]
    )  # fmt: skip
    right = rows[rows.setting != "b"]
    assert_claims(prompt_tokens.claims(right))
    for wrong, words in ((rows, "b changes"), (right.assign(warp_error=[1.0, None]), "E_warp")):
        with pytest.raises(AssertionError, match=words):
            assert_claims(prompt_tokens.claims(wrong))


@pytest.mark.parametrize("experiment", [prompt_tokens, activation_range])
def test_another_training_has_another_folder(experiment, tmp_path):
    """A changed parameter neither refuses nor finds the adapter of other settings."""

    def made(**given):
        return experiment.Settings.preset("smoke", **given).trained_in(tmp_path)

    changes = [{}, {"training_steps": 3}, {"learning_rate": 2e-3}, {"size": 32}, {"data": "there"}]
    changes += [{"model": str(tmp_path)}]
    if experiment is prompt_tokens:
        changes.append({"interval": (0.5, 1.0)})
    assert len({made(**change) for change in changes}) == len(changes)
    assert made(steps=9, kinds="shape", n_clips=7) == made()


def test_activation_range(tmp_path, miniature):
    out = tmp_path / "out"
    seconds = run("33_ge_activation_range", tmp_path, size=32, output=str(out))
    assert seconds < 240  # 20 on an idle machine
    assert len(list(out.glob("ge_activation_strip.*"))) == 5
    rows = pd.read_csv(out / "rows.csv").set_index(["setting", "index"]).psnr
    # Four steps hold none from .9 T on, where the adapter then changes nothing.
    none, some = "trained 0.5-1, acting 0.9-1", "trained 0.5-1, acting 0.5-1"
    assert rows[none].equals(rows["without"]) and not rows[some].equals(rows["without"])


def test_the_claim_about_ranges_can_fail():
    for near, far, holds in ((0.0, 0.1, True), (0.1, 0.1, True), (0.2, 0.1, False), (0, 0, False)):
        edits = {"without": 0.0, "a, acting 0.9-1": near, "a, acting 0.5-1": far}
        edits = {name: torch.full((1, 3, 2, 2), float(x)) for name, x in edits.items()}
        claims = activation_range.claims(edits)
        if holds:
            assert_claims(claims)
        else:
            with pytest.raises(AssertionError, match="move the edit further"):
                assert_claims(claims)


def test_adapter_gains(tmp_path, miniature):
    out = tmp_path / "out"
    seconds = run("35_ge_adapter_gains", tmp_path, size=32, output=str(out))
    assert seconds < 240  # 25 on an idle machine
    table = pd.read_csv(out / "ge_adapter_gains.csv")
    assert set(table.setting) == {"without", "own", "extended", ALL_HOSTS}
    rows = pd.read_csv(out / "rows.csv")
    assert len(rows) == 4
    psnr = rows.set_index(["setting", "index"]).psnr
    assert (psnr["own, with"] != psnr["own, without"]).all()


def planted(psnr: float, n_clips: int = 9, **warp: float) -> pd.DataFrame:
    """Clips on two hosts, where the adapter raises the metrics by so much, give or take."""
    rows = []
    for host in ("own", "first"):
        for i in range(n_clips):
            bare = {"kind": "k", "index": i, "psnr": 20.0 + i} | {name: 9.0 + i for name in warp}
            gains = {name: x + (i - 4) / 1e3 for name, x in ({"psnr": psnr} | warp).items()}
            adapted = bare | {name: bare[name] + gain for name, gain in gains.items()}
            rows += [{"setting": f"{host}, without"} | bare, {"setting": f"{host}, with"} | adapted]
    return pd.DataFrame(rows)


def test_the_claims_about_gains_can_fail():
    for right in (
        planted(0.0, warp_error=-0.1),  # clips from a folder
        planted(-0.05, warp_error=0.0),
        planted(0.0, warp_error=0.1, warp_error_truth=-0.1),
    ):
        assert_claims(adapter_gains.claims(right))
    for wrong in (
        planted(0.0, warp_error=0.1),
        planted(-0.2, warp_error=-0.1),
        planted(0.0, warp_error=-0.1, warp_error_truth=0.1),
    ):
        with pytest.raises(AssertionError, match="not confirmed"):
            assert_claims(adapter_gains.claims(wrong))


def test_a_loss_that_two_clips_show_is_no_verdict_and_nine_clips_that_disagree_are_none():
    """Two clips whose E_warp worsens confirm nothing; nor does a mean worse by chance."""
    for rows in (planted(-1.0, 2, warp_error=5.0), planted(0.5, 5, warp_error=-5.0)):
        assert {c.verdict for c in adapter_gains.claims(rows)} == {"not established"}
        assert_claims(adapter_gains.claims(rows))
    worse = planted(0.0, warp_error=0.001)
    verdicts = {c.sentence: c.verdict for c in adapter_gains.claims(worse)}
    assert verdicts["the adapter does not raise E_warp"] == "not established"
    steady = {c.sentence: c for c in adapter_gains.claims(planted(0.5, warp_error=-0.1))}
    assert steady["the adapter does not raise E_warp"].verdict == "confirmed"
    assert steady["the adapter does not raise E_warp"].is_asserted


def test_an_adapter_that_is_not_there(tmp_path):
    settings = adapter_gains.Settings(adapter="nowhere", n_clips=1, hosts="own", steps=1)
    with pytest.raises(InputError, match="nowhere"):
        adapter_gains.run(settings, tmp_path)
