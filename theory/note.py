"""Write the tables of note.tex from `python -m theory --json`.

python -m theory --json > table.json && python -m theory.note table.json
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from theory.readings import NUMBERED
from theory.report import numbered_rows

TABLES = Path(__file__).with_name("note_tables.tex")
SHORT = {"holds": "holds", "holds with hypothesis": "hypothesis", "false": "false",
         "vacuous": "vacuous"}  # fmt: skip


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Two LaTeX tables: verdicts of the numbered statements; numbers of every row.

    rows: objects of `python -m theory --json`. Numbers have as few digits as repeat on any machine.
    """
    judged = numbered_rows(rows)
    verdicts = [f"{name} & {SHORT[judged[name]]} \\\\" for name in NUMBERED]
    half = (len(verdicts) + 1) // 2
    pairs = [f"{a[:-3]} & {b}" for a, b in zip(verdicts[:half], [*verdicts[half:], "& \\\\"],
                                              strict=True)]  # fmt: skip
    names = {row["statement"]: row["statement"].replace("_", "\\_") for row in rows}
    numbers = [
        f"{names[row['statement']]} & {SHORT[row['verdict']]} & {_broken(row)} & "
        f"{row['proof']} & {_number(row['measured'])} & {_number(row['bound'])} & "
        f"{_share(row)} \\\\"
        for row in rows
    ]
    return "\n".join([
        "% Written by python -m theory.note. Do not edit.",
        "\\newcommand{\\verdicttable}{%",
        "\\begin{tabular}{llll}\\toprule",
        "statement & verdict & statement & verdict \\\\ \\midrule",
        *pairs,
        "\\bottomrule\\end{tabular}}",
        "\\newcommand{\\numbertable}{%",
        "\\begin{tabular}{llllrrr}\\toprule",
        "row & verdict & fails at & proof & worst found & bound & share \\\\ \\midrule",
        *numbers,
        "\\bottomrule\\end{tabular}}",
        "",
    ])  # fmt: skip


def _broken(row: Mapping[str, Any]) -> str:
    """Both sides of the paper's inequality where it fails."""
    if row["lhs"] is None:
        return ""
    return f"${_number(row['lhs'])[1:-1]} > {_number(row['rhs'])[1:-1]}$"


def _number(value: float) -> str:
    """Three digits, in LaTeX; what is rounding is 0."""
    if abs(value) < 1e-10:
        return "$0$"
    digits, _, power = f"{value:.3g}".partition("e")
    return f"${digits}\\cdot10^{{{int(power)}}}$" if power else f"${digits}$"


def _share(row: Mapping[str, Any]) -> str:
    return "attained" if row["attained"] else f"${row['tightness']:.2f}$"


if __name__ == "__main__":
    TABLES.write_text(tables(json.loads(Path(sys.argv[1]).read_text())))
