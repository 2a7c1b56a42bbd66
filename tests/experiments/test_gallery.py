"""Published figures: drawn again from csv alone, in another look, and shown on one page; 10 s."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from PIL import Image

from vala_research import InputError
from vala_research.evaluation.figures import STYLE, Picture, drawn, drawn_again, emit
from vala_research.evaluation.look import Look
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.batches import make_figures
from vala_research.experiments.batches.cells import Cell
from vala_research.experiments.batches.execution import record
from vala_research.experiments.batches.gallery import write_gallery
from vala_research.experiments.batches.redraw import redraw
from vala_research.experiments.contract import results_folder
from vala_research.experiments.fldm import fusion
from vala_research.experiments.publishing import PAPERS, command, publish

RESULTS = Path(__file__).resolve().parents[2] / "notebooks/results"


def published(folder: Path) -> dict[str, Path]:
    """A notebook's folder in the gallery, with the fusion's committed rows as its figure."""
    rows, place = pd.read_csv(RESULTS / "20_fldm_fusion.csv"), folder / "20_fldm_fusion"
    settings = fusion.Settings.preset("sprites", steps=10)
    figure = fusion.figure(rows)
    figure._repr_png_()  # a display before, which moves the layout
    claims = [Claim("a <is> b", "PSNR", 1.25, 0.5, 2, verdict="confirmed")]
    paths = publish("20_fldm_fusion", settings, figure, fusion.table(rows), claims, place)
    text = "# Two models\n\n**Claim.** *Both* are `good` & new."
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    nbformat.write(book, place / "run.ipynb")
    return paths


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return folder, published(folder)


def test_a_figure_is_drawn_again_from_its_csv_bit_by_bit(gallery):
    folder, paths = gallery
    before = {kind: paths[kind].read_bytes() for kind in ("png", "pdf")}
    paths["png"].unlink()
    done, left = redraw(folder)
    assert {p.name for p in done} == {"fldm_fusion.pdf", "fldm_fusion.png"} and not left
    assert {kind: paths[kind].read_bytes() for kind in before} == before


def test_another_value_in_the_csv_is_another_figure(gallery, tmp_path):
    paths = published(tmp_path)
    before = paths["png"].read_bytes()
    rows = pd.read_csv(paths["rows"])
    rows.assign(psnr=rows.psnr + 1).to_csv(paths["rows"], index=False)
    redraw(tmp_path)
    assert paths["png"].read_bytes() != before


def test_a_look_changes_width_font_and_formats(tmp_path):
    paths, usual = published(tmp_path), dict(STYLE)
    redraw(tmp_path, Look.from_text("width=column, font=serif, size=7, format=svg+png"))
    assert abs(Image.open(paths["png"]).size[0] - 3.3 * 240) <= 1
    svg = paths["png"].with_suffix(".svg").read_text()
    assert "serif" in svg and "DejaVu Sans'" not in svg and usual == STYLE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("with=3", "Unknown style 'with': choose one of width"),
        ("width=wide", "width is 'wide': give inches"),
        ("format=gif", "Unknown format 'gif'"),
    ],
)
def test_an_odd_style_is_one_sentence(text, said):
    with pytest.raises(InputError, match=said):
        Look.from_text(text)


def test_the_json_says_when_how_long_by_which_command_and_where(gallery):
    folder, paths = gallery
    said = json.loads(paths["json"].read_text())
    assert said["paper"] == PAPERS["fldm"] and said["date"].startswith("20")
    assert said["output"] == str(folder / "20_fldm_fusion") and "seconds" in said
    assert said["command"] == command("20_fldm_fusion", fusion.Settings.preset("sprites", steps=10))
    assert said["command"].endswith("-p preset sprites -p steps 10")
    assert r"\toprule" in paths["tex"].read_text()
    with pytest.raises(InputError, match="Unknown paper 'vale'"):
        publish("20_fldm_fusion", fusion.Settings.preset("smoke"), Picture(), [], [], folder,
                paper="vale")  # fmt: skip


def test_the_page_shows_picture_claim_verdict_origin_and_files(gallery):
    folder, _ = gallery
    page = write_gallery(folder).read_text()
    for part in ("<b>Claim.</b> <i>Both</i> are <code>good</code> &amp; new",
                 'src="20_fldm_fusion/fldm_fusion.png"', 'class="confirmed"', "a &lt;is&gt; b",
                 "PSNR 1.25 [0.5, 2]", "fldm_fusion_rows.csv", "fldm_fusion.tex",
                 "-p preset sprites -p steps 10", "20_fldm_fusion/run.ipynb"):  # fmt: skip
        assert part in page, part
    assert 'src="http' not in page


def test_a_function_of_somebody_else_is_never_called(tmp_path):
    with pytest.raises(InputError, match="is not of this library"):
        drawn_again("os:system", "ls", {})
    with pytest.raises(InputError, match="draws no figure"):
        drawn_again("vala_research.files:write_text", None, {})
    with pytest.raises(InputError, match="holds no published figure"):
        redraw(tmp_path)


def test_what_is_drawn_at_random_is_the_same_every_time():
    @drawn
    def points(rows):
        with rc_context(STYLE):
            fig = Picture()
            fig.add_subplot().plot(np.random.rand(5))
        return fig

    state = np.random.get_state()[1].copy()
    one, two = points(pd.DataFrame())._repr_png_(), points(pd.DataFrame())._repr_png_()
    assert one == two and (np.random.get_state()[1] == state).all()


def test_files_of_somebody_else_are_never_deleted(tmp_path):
    (tmp_path / "39_ge_user_study").mkdir()
    (tmp_path / "39_ge_user_study/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="a folder with other files in it \\(mine.txt\\)"):
        make_figures.figures(tmp_path, only=["39"])
    assert (tmp_path / "39_ge_user_study/mine.txt").read_text() == "mine"
    with pytest.raises(InputError, match="Unknown preset 'tiny'"):
        make_figures.figures(tmp_path, "tiny")


def test_what_a_notebook_published_is_collected(tmp_path):
    """Folders and weights in its output stay where they are; a second time replaces the first."""
    cell = Cell(Path("20_fldm_fusion.ipynb"), {}, tmp_path)
    object.__setattr__(cell, "id", "abc")
    (cell.place / "output/deep").mkdir(parents=True)
    for name in ("a.png", "a.json", "rows.csv", "weights.safetensors", "deep/b.png"):
        (cell.place / "output" / name).write_text(name)
    (cell.place / "run.ipynb").write_text("{}")
    record("20_fldm_fusion.ipynb", {}, cell.place, "", 1.0)
    for _ in range(2):
        make_figures.collect(cell, tmp_path)
    names = {p.name for p in (tmp_path / "20_fldm_fusion").iterdir()}
    assert names == {"a.png", "a.json", "rows.csv", "run.ipynb", ".vala-contents"}


def test_results_land_below_the_repository_whatever_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = RESULTS.parents[1]
    assert results_folder("../runs/fldm_alpha") == str(root / "runs/fldm_alpha")
    assert results_folder("mine") == "mine" and results_folder(tmp_path) == str(tmp_path)


def test_a_run_of_a_notebook_does_not_make_the_tree_dirty(tmp_path, monkeypatch):
    """Only a change of its sources does."""
    import subprocess

    import vala_research
    from vala_research.evaluation.provenance import record as origin

    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    package = tmp_path / "vala_research"
    package.mkdir()
    (package / "__init__.py").write_text("")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks/a.ipynb"
    nbformat.write(book, path)
    git("init")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-m", "one")
    monkeypatch.setattr(vala_research, "__file__", str(package / "__init__.py"))
    assert not origin({})["dirty"] and len(origin({})["commit"]) == 40
    book.cells[0].outputs = [nbformat.v4.new_output("stream", text="2")]
    nbformat.write(book, path)
    assert not origin({})["dirty"]
    book.cells[0].source = "1 + 2"
    nbformat.write(book, path)
    assert origin({})["dirty"]


def test_emit_of_an_undrawn_figure_has_no_drawing(tmp_path):
    paths = emit("a", Picture(), [{"x": 1}], {}, tmp_path)
    assert "drawing" not in json.loads(paths["json"].read_text()) and "rows" not in paths
    assert redraw(tmp_path) == ([], [tmp_path / "a.png"])
