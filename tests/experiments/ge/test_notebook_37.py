"""Bilateral inversion in the editors of the paper: the notebook runs, claims follow; 25 s."""

import pandas as pd
import pytest
from test_notebooks import run

from vala_research.diffusion.bilateral_inversion import BilateralInversion
from vala_research.editing.hosts import HOSTS
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments.ge import bilateral_hosts
from vala_research.experiments.ge.bilateral_hosts import Settings


def test_notebook_of_bilateral_inversion_in_the_hosts(tmp_path, miniature):
    out = tmp_path / "out"
    run("37_ge_bilateral_hosts", tmp_path, size=32, output=str(out))
    table = pd.read_csv(out / "ge_bilateral_hosts.csv")
    assert {"token_flow", "mean over hosts"} <= set(table.setting)
    rows = pd.read_csv(out / "rows.csv").set_index("setting")
    assert rows.inversion_psnr["token_flow, with"] < rows.inversion_psnr["token_flow, without"]
    assert (out / "ge_bilateral_strips.png").exists()


def test_only_the_inversion_differs(miniature):
    found = bilateral_hosts.edit_settings(Settings.preset("sprites", hosts=tuple(HOSTS), sigma=0.5))
    for host in HOSTS:
        off, on = vars(found[f"{host}, without"]), vars(found[f"{host}, with"])
        assert off.pop("inversion") == "ddim"
        assert on.pop("inversion") == BilateralInversion(sigma_intensity=0.5)
        assert off == on


def planted(reconstruction: float, psnr: float) -> pd.DataFrame:
    """Nine clips on two hosts, where the filter changes the metrics by so much, give or take."""
    rows = []
    for host in ("token_flow", "rave"):
        for i in range(9):
            bare = {"kind": "k", "index": i, "psnr": 20.0 + i, "inversion_psnr": 30.0 + i}
            more = {"psnr": psnr, "inversion_psnr": reconstruction}
            kept = {name: bare[name] + x + (i - 4) / 1e3 for name, x in more.items()}
            rows += [{"setting": f"{host}, without"} | bare,
                     {"setting": f"{host}, with"} | bare | kept]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_claims_follow_the_rows():
    for psnr, verdict in ((0.5, "confirmed"), (-0.5, "contradicted")):
        claims = bilateral_hosts.claims(planted(-1.0, psnr))
        assert_claims(claims)
        found = {c.sentence: c.verdict for c in claims}
        assert found["the filter improves PSNR"] == verdict
        assert found["the filter improves reconstruction"] == "contradicted"
    with pytest.raises(AssertionError, match="loses reconstruction"):
        assert_claims(bilateral_hosts.claims(planted(1.0, 0.5)))
