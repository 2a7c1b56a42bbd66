"""The pages say what the committed rows say; no model, about 8 s."""

from pathlib import Path

import nbformat
import pandas as pd
import pytest

from vala_research import InputError
from vala_research.evaluation.comparison_tables import METRICS, gain_of
from vala_research.evaluation.verdicts import assert_claims
from vala_research.experiments import default_edit, default_search
from vala_research.experiments.fldm import (
    alpha,
    fusion,
    latent_compatibility,
    long_clips,
    many_sources,
    schedules,
)
from vala_research.experiments.flow import editing
from vala_research.experiments.flow import theory as flow_theory
from vala_research.experiments.ge import (
    adapter_gains,
    bilateral_hosts,
    bilateral_inversion,
    controls,
    hosts,
)
from vala_research.experiments.paper_map import ITEMS, replaced, status, written_map
from vala_research.experiments.vala import editing_quality

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
RESULTS = {
    "01_default_edit": default_edit, "02_default_search": default_search,
    "12_vala_editing_quality": editing_quality, "20_fldm_fusion": fusion, "21_fldm_alpha": alpha,
    "22_fldm_schedules": schedules, "23_fldm_latent_compatibility": latent_compatibility,
    "24_fldm_long_clips": long_clips, "25_fldm_many_sources": many_sources,
    "30_ge_bilateral_inversion": bilateral_inversion, "35_ge_adapter_gains": adapter_gains,
    "35_ge_adapter_gains_as_paper": adapter_gains, "36_ge_hosts": hosts,
    "37_ge_bilateral_hosts": bilateral_hosts, "38_ge_controls": controls,
    "50_flow_editing": editing, "50_flow_editing_wan": editing, "53_flow_theory": flow_theory,
}  # fmt: skip


def rows_of(name: str) -> pd.DataFrame:
    return pd.read_csv(NOTEBOOKS / "results" / f"{name}.csv")


@pytest.mark.parametrize("name", RESULTS)
def test_the_claims_hold_for_the_committed_rows_and_the_figure_is_drawn(name):
    rows, experiment = rows_of(name), RESULTS[name]
    assert_claims(experiment.claims(rows))
    assert experiment.figure(rows).axes if name != "01_default_edit" else True


def test_every_file_is_listed():
    listed = (NOTEBOOKS / "results" / "README.md").read_text()
    files = {path.stem for path in (NOTEBOOKS / "results").glob("*.csv")}
    assert files == {*RESULTS, "02_default_search_combinations", "33_ge_activation_range"}
    assert all(f"`{name}.csv`" in listed for name in files)


@pytest.mark.parametrize(
    ("name", "better", "than", "metric", "digits"),
    [
        ("20_fldm_fusion", "fused, half and half", "image only", "jitter", 2),
        ("20_fldm_fusion", "fused", "image only", "jitter", 2),
        ("20_fldm_fusion", "fused", "image only", "warp_error", 2),
        ("20_fldm_fusion", "fused, half and half", "video only", "path_error", 2),
        ("20_fldm_fusion", "fused, half and half", "video only", "psnr", 2),
        ("38_ge_controls", "depth, without", "none, without", "path_error", 1),
        ("38_ge_controls", "depth, without", "none, without", "psnr", 1),
        ("22_fldm_schedules", "constant, tau 0", "decay_image, tau 0.5", "psnr", 2),
        ("36_ge_hosts", "vid2vid_zero, with", "vid2vid_zero, without", "path_error", 2),
        ("36_ge_hosts", "token_flow, with", "token_flow, without", "psnr", 2),
        ("50_flow_editing_wan", "wan, FlowEdit", "wan, inversion", "psnr", 2),
        ("12_vala_editing_quality", "extended", "own", "jitter", 2),
        ("12_vala_editing_quality", "VALA 256 token anchors", "own", "psnr", 2),
    ],
)
def test_a_published_gain_is_that_of_the_rows(name, better, than, metric, digits):
    """Mean and interval, as the page prints them."""
    gain = gain_of(rows_of(name), metric, better, than, METRICS[metric].sign)
    factor, page = METRICS[metric].factor, (NOTEBOOKS / "README.md").read_text()
    mean, low, high = (factor * x for x in (gain.mean, gain.low, gain.high))
    plain, signed = (
        [f"{x:{sign}.{digits}f}" for x in (mean, low, high)] for sign in ("", "+")
    )
    ends = f"[{plain[1]}, {plain[2]}]"
    printed = [f"{plain[0]} {ends}", f"{plain[0]} lower {ends}", f"{signed[0]} {ends}",
               f"{signed[0]} [{signed[1]}, {signed[2]}]"]  # fmt: skip
    assert any(text in page for text in printed), printed


def test_the_map_of_the_papers_is_the_generated_one():
    """`python -m vala_research.experiments.paper_map` writes it."""
    page = (NOTEBOOKS / "README.md").read_text()
    assert replaced(page, written_map(NOTEBOOKS)) == page
    numbers = {path.stem[:2] for path in NOTEBOOKS.glob("[1-5]*.ipynb")}
    assert {n for item in ITEMS for n in item.notebooks} == numbers
    assert all(item.notebooks or item.reason for item in ITEMS)


def test_the_map_says_what_was_not_run(tmp_path):
    """Planted notebooks: the preset that its header calls not run is not run."""
    text = "# A\n\n| `sprites` | a | 5 minutes, not run |\n| `paper` | b | 2 hours |"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    nbformat.write(book, tmp_path / "20_fldm_fusion.ipynb")
    assert status(tmp_path, "20")[1] == {"sprites": "not run", "paper": "measured"}
    with pytest.raises(InputError, match="The page has no lines"):
        replaced("a page", "a map")
