"""Every row has readings and a proof that exists; pages agree with the table. About 2 s."""

import re
import shutil
import subprocess

import pytest
from typer.testing import CliRunner

import theory.__main__ as table
from theory import note
from theory.readings import LEGEND, NUMBERED, READINGS, part_of
from theory.report import block, explained, numbered, summary
from theory.verdict import STATEMENTS, Counterexample, Verdict

GOOD = Verdict(
    statement="C.2", claim="x <= 1", verdict="false", corrected="x <= 2", measured=1.9, bound=2.0,
    hypotheses={"x is real": True}, witness={"x": 1.9},
    counterexample=Counterexample("x = 1.9", 1.9, 1.0), least_tightness=0.9,
)  # fmt: skip
HOLDS = Verdict("C.5", "x <= 2", "holds", "x <= 2", 2.0, 2.0)


@pytest.fixture(scope="module")
def page(root):
    return (root / "theory/README.md").read_text()


def table_lines(page: str) -> dict[str, str]:
    """Row name -> verdict, in the table of the page."""
    lines = [line.split("|") for line in page.splitlines() if line.startswith("| **")]
    return {cells[1].split("**")[1]: cells[2].strip() for cells in lines}


def test_every_row_has_its_readings(page):
    assert set(READINGS) == set(STATEMENTS)
    for name, r in READINGS.items():
        assert all((r.source, r.words, r.reading, r.charitable, r.proof, r.quantity)), name
        assert r.quantity.startswith(("ratio: ", "value: ")), name
        assert re.search(rf"^(### |\*\*){re.escape(r.proof)}[. ]", page, re.M), (name, r.proof)
    assert {part_of(name) for name in READINGS} - {""} == set(NUMBERED)
    assert part_of("C.7-std") == "C.7" and part_of("C.4a") == "C.4" and part_of("DDIM") == ""


def test_numbers_that_are_inferred_are_marked():
    """The page of arXiv 2504.16016 names 4.1 to 4.9."""
    for name, r in READINGS.items():
        for number in re.findall(r"4\.(\d+) in arXiv 2504\.16016", r.source):
            assert ("(inferred)" in r.source) == (int(number) > 9), name


def test_the_page_the_note_and_the_table_agree(root, page):
    """Verdicts of all rows, in words; the committed tables of the note hold them too."""
    shown = table_lines(page)
    assert set(shown) == set(STATEMENTS)
    tables = note.TABLES.read_text()
    for name, verdict in shown.items():
        short = "hypothesis" if verdict == "with hypothesis" else verdict
        assert f"\n{name.replace('_', chr(92) + '_')} & {short} & " in tables, name
    note_text = (root / "theory/note.tex").read_text()
    assert "\\input{note_tables}" in note_text


def test_rows_that_hold_have_no_counterexample():
    with pytest.raises(ValueError, match="C.5 holds, but has a counterexample"):
        Verdict("C.5", "x", "holds", "x", 1.0, 1.0, counterexample=GOOD.counterexample)
    saved = Verdict("C.1", "x", "holds with hypothesis", "x", 1.0, 1.0,
                    counterexample=GOOD.counterexample)  # fmt: skip
    row = saved.as_row()
    assert row["counterexample"] is None and "1.9 > 1" in row["without_hypothesis"]
    assert GOOD.as_row()["counterexample"] and GOOD.as_row()["without_hypothesis"] is None
    assert HOLDS.as_row()["counterexample"] is HOLDS.as_row()["lhs"] is None


def test_a_row_reads_well():
    text = block(GOOD)
    for part in ("FALSE AS WRITTEN", "read kindly: (26) takes", "value: |grad| |F|", ", A1",
                 "not attained (0.950 of it found)", "counterexample: x = 1.9"):  # fmt: skip
        assert part in " ".join(text.split()), part
    assert "counterexample" not in block(HOLDS) and "attained" in block(HOLDS)
    long = " ".join(explained(GOOD).split())
    for part in ("Statement: If all features", "Reading: ", "Kindest reading: ", "Verdict: ",
                 "Proof: theory/README.md, section A1", "Witness, x: 1.9",
                 "Checked: x is real"):  # fmt: skip
        assert part in long, part
    for symbol in ("F_t", "L_s", "c_T", "k_T", "b(S)", "kappa", "L_eps", "G_t", "Pi", "W0", "dZ"):
        assert symbol in LEGEND


def test_the_paper_is_counted_by_its_own_statements():
    """C.3 has the worse verdict of its parts; our own splitting does not inflate the count."""
    verdicts = {name: "false" for name in STATEMENTS} | {"C.5": "holds", "C.11": "holds"}
    verdicts |= dict.fromkeys(
        ("C.1", "C.2", "C.3a", "C.3b", "C.4", "C.12"), "holds with hypothesis"
    )
    point = GOOD.counterexample
    made = [Verdict(n, "x", v, "x", 1.0, 1.0, counterexample=None if v == "holds" else point)
            for n, v in verdicts.items()]  # fmt: skip
    words = " ".join(summary(made).split())
    assert "15 numbered statements: C.5 and C.11 hold as written, 13 are false as written" in words
    assert "C.1, C.2, C.3, C.4, C.12 hold with a hypothesis" in words
    assert numbered(made[:1]).keys() <= set(NUMBERED)


def test_explain_runs_one_statement_or_its_parts(monkeypatch):
    app = table.typer.Typer()
    app.command()(table.main)
    monkeypatch.setitem(STATEMENTS, "C.3a", lambda: GOOD)
    monkeypatch.setitem(STATEMENTS, "C.3b", lambda: GOOD)
    done = CliRunner().invoke(app, ["--explain", "C.3"])
    assert done.exit_code == 0 and done.output.count("Kindest reading: ") == 2
    assert CliRunner().invoke(app, ["--explain", "C.99"]).exit_code == 2


def test_the_note_is_sound_latex(root):
    """Braces and environments balance, in the text and in its tables; no compiler needed."""
    for name in ("note.tex", "note_tables.tex"):
        text = re.sub(r"(?<!\\)%.*", "", (root / "theory" / name).read_text())
        bare = text.replace("\\{", "").replace("\\}", "")
        assert bare.count("{") == bare.count("}"), name
        begun = sorted(re.findall(r"\\begin\{(\w+)\}", text))
        assert begun == sorted(re.findall(r"\\end\{(\w+)\}", text)), name
        assert text.replace("\\$", "").count("$") % 2 == 0, name
        assert len(re.findall(r"\\left\b", text)) == len(re.findall(r"\\right\b", text))
    assert set(re.findall(r"\\(\w+table)\b", text)) == {"verdicttable", "numbertable"}


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no TeX is installed")
def test_the_note_compiles(root, tmp_path):
    for name in ("note.tex", "note_tables.tex"):
        shutil.copy(root / "theory" / name, tmp_path)
    for _ in range(2):  # references
        done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "note"],
                              cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
    pages = int(re.search(r"\((\d+) pages", done.stdout)[1])
    assert 5 <= pages <= 9


def test_the_tables_of_the_note():
    rows = [GOOD.as_row() | {"statement": name} for name in (*NUMBERED[:3], "L_softmax")]
    rows += [HOLDS.as_row() | {"statement": name} for name in NUMBERED[3:]]
    text = note.tables(rows)
    assert "C.1 & false & $1.9 > 1$ & A1 & $1.9$ & $2$ & $0.95$ \\\\" in text
    assert "L\\_softmax & false" in text and "C.15 & holds &  & A5.6 & $2$ & $2$ & attained" in text
    assert note.tables([rows[0] | {"measured": 4e-6, "bound": 1e-12}, *rows[1:]]).count(
        "& $4\\cdot10^{-6}$ & $0$ &") == 1  # fmt: skip
