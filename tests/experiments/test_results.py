"""The pages say what the committed rows say; no model, about a minute of one core."""

from pathlib import Path
from types import ModuleType

import nbformat
import pandas as pd
import pytest

from vala_research import InputError
from vala_research.evaluation.figures import COLUMN, PAGE, Picture
from vala_research.evaluation.gpu.modes import MODES
from vala_research.evaluation.verdicts import Claim, assert_claims, stated
from vala_research.experiments import page_cells, page_fields
from vala_research.experiments.batches.inspection import experiment_of, find_notebook
from vala_research.experiments.ge.attention_maps import token_figure
from vala_research.experiments.kept_runs import kept_claims, kept_runs
from vala_research.experiments.page_cells import (
    Column,
    Line,
    PageTable,
    Plain,
    PlainTable,
    gain_in,
    gain_text,
    number,
    p_text,
    rows_of,
)
from vala_research.experiments.page_fields import filled
from vala_research.experiments.pages import replaced, written_pages
from vala_research.experiments.paper_map import ITEMS, status
from vala_research.experiments.theory.steady_flicker import setting_claims

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
RUNS = kept_runs()
# Whose notebooks have claims of rows; 33 has claims of pictures.
SILENT = {"02_default_search_combinations", "33_ge_activation_range"}
RESULTS = [name for name, run in RUNS.items() if run.notebook and name not in SILENT]
COMMANDS = ("gpu_correctness", "gpu_edits", "gpu_policies", "host_costs",
            "bilateral_filter_speed")  # fmt: skip


def experiment_named(name: str) -> ModuleType:
    """The experiment whose run made the rows."""
    return experiment_of(find_notebook(RUNS[name].notebook))


def figure_of(name: str, rows: pd.DataFrame) -> Picture:
    """The notebook's figure that is drawn from rows."""
    if name == "34_ge_attention_maps":
        return token_figure(rows)
    n_frames = {"n_frames": 6} if name == "40_theory_temporal_loss" else {}
    return experiment_named(name).figure(rows, **n_frames)


@pytest.mark.parametrize("name", RESULTS)
def test_the_claims_hold_for_the_committed_rows_and_the_figure_is_drawn(name):
    rows = rows_of(name)
    assert_claims(claims := kept_claims(name))
    assert len(claims) > 0
    if name != "01_default_edit":  # whose figure shows frames
        figure = figure_of(name, rows)
        assert figure.get_size_inches()[0] in (COLUMN, PAGE)
        assert stated(claims, figure.drawing.claim)  # the published figure's title


def test_setting_claims_of_flicker_hold():
    rows = rows_of("40_theory_temporal_loss")
    assert_claims(setting_claims(rows[rows.part == "setting"]))


def test_every_file_is_listed():
    listed = (NOTEBOOKS / "results" / "README.md").read_text()
    files = {path.stem for path in (NOTEBOOKS / "results").glob("*.csv")}
    assert files == {*RESULTS, *SILENT, *COMMANDS}
    assert all(f"`{name}.csv`" in listed for name in files)


def test_what_the_page_says_of_a_graphics_card():
    modes, edits = rows_of("gpu_correctness"), rows_of("gpu_edits")
    page = (NOTEBOOKS / "README.md").read_text()
    least = modes[["float32", "float16", "bfloat16"]].min()
    assert f"{len(modes)} modes" in page and set(modes.setting) == set(MODES)
    assert f"at least {least.float32:.0f} dB in float32, {least.float16:.0f} dB in" in page
    assert f"float16, {least.bfloat16:.1f} dB in bfloat16" in page
    assert (edits.estimated_gib / edits.peak_gib - 1).abs().max() < 0.02


def test_the_pages_are_the_generated_ones():
    """`python -m vala_research.experiments.pages` writes them."""
    for path, text in written_pages().items():
        assert path.read_text("utf-8") == text, path


@pytest.mark.parametrize(
    ("name", "better", "than", "metric", "digits"),
    [
        ("20_fldm_fusion", "fused", "image only", "warp_error", 2),
        ("22_fldm_schedules", "constant, tau 0", "decay_image, tau 0.5", "psnr", 2),
        ("12_vala_editing_quality", "VALA 2 key frames", "own", "psnr", 2),
        ("35_ge_adapter_gains_as_paper", ("own, with", "anchors, with"),
         ("own, without", "anchors, without"), "psnr", 2),
    ],
)
def test_a_gain_in_the_text_is_that_of_the_rows(name, better, than, metric, digits):
    """Mean and interval, as sentences of the page print them."""
    text = gain_text(gain_in(name, metric, better, than), digits, "+").partition(", p")[0]
    page = (NOTEBOOKS / "README.md").read_text()
    with_unit = text.replace(" [", " dB [")
    assert any(x in page for x in (text, text.replace("+", ""), with_unit)), text


def test_every_item_of_the_map_has_a_notebook():
    numbers = {path.stem[:2] for path in NOTEBOOKS.glob("[1-5]*.ipynb")}
    assert {n for item in ITEMS for n in item.notebooks} == numbers
    assert all(item.notebooks or item.reason for item in ITEMS)


PLANTED = pd.DataFrame(
    {"setting": name, "kind": "shape", "index": i, "psnr": 20 + i + gain, "success": 0.5}
    for name, gain in (("a, without", 0.0), ("a, with", 1.0), ("b, without", 0), ("b, with", 3))
    for i in range(6)
)


@pytest.fixture
def planted(monkeypatch):
    for module in (page_cells, page_fields):
        monkeypatch.setattr(module, "rows_of", lambda file: PLANTED)


def test_a_table_of_a_page_says_what_its_rows_say(planted):
    lines = [Line("a", "a, with", "a, without"), Line("b", "b, with"),
             Line("both", ("a, with", "b, with"), ("a, without", "b, without"))]  # fmt: skip
    columns = [Column("PSNR", "psnr"), Column("without", "psnr", "baseline", 1),
               Column("gain", "psnr", "gain"), Column("right, %", "success", digits=0)]  # fmt: skip
    assert PageTable("planted", "host", lines, columns).written().splitlines() == [
        "| host | PSNR | without | gain | right, % |",
        "| --- | --- | --- | --- | --- |",
        "| a | 23.50 | 22.5 | +1.00 [+1.00, +1.00], p = .031 | 50 |",
        "| b | 25.50 |  |  | 50 |",
        "| both | 24.50 | 22.5 | +2.00 [+2.00, +2.00], p = .031 | 50 |",
    ]
    with pytest.raises(InputError, match="no rows of 'c'"):
        PageTable("planted", "host", [Line("c", "c")], columns).written()


def test_a_table_of_plain_numbers(planted):
    lines = {"a": "setting == 'a, with'", "late": "index > 3"}
    columns = [Plain("PSNR", "psnr"), Plain("worst, mB", "100 * psnr", 0, how="min"),
               Plain("b", "psnr", 1, "setting in ('a, with', 'b, with')"),
               Plain("spread", "psnr.max() - psnr.min()", 1)]  # fmt: skip
    assert PlainTable("planted", "setting", lines, columns).written().splitlines()[2:] == [
        "| a | 23.50 | 2,100 | 23.5 | 5.0 |",
        "| late | 25.50 | 2,400 | 26.5 | 4.0 |",
    ]
    with pytest.raises(InputError, match="no rows where"):
        PlainTable("planted", "", {"c": "setting == 'c'"}, columns).written()


def test_a_field_of_a_text_is_filled_from_the_rows(planted):
    text = "{{x | psnr | *, with > *, without | dB | 1}}; {{x | success | a, with | 0}}%; " \
           "{{x | psnr | where index == 5 and setting == 'a, with'}}"  # fmt: skip
    assert filled(text) == "+2.0 dB [+2.0, +2.0], p = .031; 50%; 26.00"
    assert filled("{{x | psnr | a, with @kind=shape | 1}}") == "23.5"
    for pair, words in (("a, with > a, without", "less"), ("a, without > a, with", "more")):
        found = filled(f"{{{{x | psnr | {pair} | dB less}}}}")
        assert found == f"1.00 dB {words} [1.00, 1.00], p = .031"


def test_a_field_of_a_claim(monkeypatch):
    """In the unit of its metric: E_warp in thousandths."""
    claim = Claim("it flickers less", "E_warp", -0.002, -0.003, -0.001, 0.03125, 6)
    monkeypatch.setattr(page_fields, "kept_claims", lambda file: [claim])
    text = filled("{{claimed | claim | it flickers less, E_warp | lower | 1}}")
    assert text == "2.0 higher [1.0, 3.0], p = .031"
    with pytest.raises(InputError, match="No claim on the rows of claimed is 'it flickers'"):
        filled("{{claimed | claim | it flickers}}")


@pytest.mark.parametrize(
    ("p", "printed"), [(0.0078125, "p = .008"), (0.125, "p = .12"), (0.0002, "p < .001")]
)
def test_p_values_are_printed_as_in_papers(p, printed):
    assert p_text(p) == printed


def test_a_small_loss_is_no_minus_zero():
    assert number(-0.001, 2, "+") == "0.00"


def test_the_map_says_what_was_not_run(tmp_path):
    """Planted notebooks: the preset that its header calls not run is not run."""
    text = "# A\n\n| `sprites` | a | 5 minutes, not run |\n| `paper` | b | 2 hours |"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    nbformat.write(book, tmp_path / "20_fldm_fusion.ipynb")
    assert status(tmp_path, "20")[1] == {"sprites": "not run", "paper": "measured"}
    with pytest.raises(InputError, match="The page has no lines"):
        replaced("a page", "map", "a map")
