"""Write verdicts as text: a row of the table, a summary, one statement in plain English."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from theory.readings import NUMBERED, part_of
from theory.verdict import Verdict

LABELS = {"holds": "HOLDS AS WRITTEN", "holds with hypothesis": "HOLDS WITH A HYPOTHESIS",
          "false": "FALSE AS WRITTEN", "vacuous": "VACUOUS"}  # fmt: skip
FROM_WORST = ("false", "vacuous", "holds with hypothesis", "holds")


def block(v: Verdict) -> str:
    """Format one statement as a few lines of text."""
    lines = [
        f"claim: {v.claim}",
        f"read kindly: {v.reading.charitable}",
        *_point(v),
        f"true: {v.corrected}",
        numbers(v),
        f"proof: theory/README.md, {v.reading.proof}",
    ]
    return "\n".join([title(v), *map(_wrapped, lines), ""])


def title(v: Verdict) -> str:
    """Name and verdict."""
    label = LABELS[v.verdict] + ("" if v.reproduced else "   NOT REPRODUCED")
    return f"{v.statement:<14} {label}"


def numbers(v: Verdict) -> str:
    """What was measured, its bound, and whether the bound is attained."""
    how = "attained" if v.attained else f"not attained ({v.tightness:.3f} of it found)"
    return (
        f"{v.reading.quantity}: worst found {v.measured:.6g}, bound {v.bound:.6g}, {how}; "
        f"{v.n_searched} points, {v.seconds:.1f} s"
    )


def explained(v: Verdict) -> str:
    """Explain one statement: statement, readings, verdict, proof, witness."""
    r = v.reading
    paragraphs = [
        ("Statement", f"{r.words} ({r.source})"),
        ("In symbols", v.claim),
        ("Reading", r.reading),
        ("Kindest reading", r.charitable),
        ("Verdict", LABELS[v.verdict].lower() + ("" if v.reproduced else "; NOT REPRODUCED")),
        *(line.split(": ", 1) for line in _point(v)),
        ("What is true", v.corrected),
        ("Measured", numbers(v)),
        ("Proof", f"theory/README.md, section {r.proof}"),
        *((f"Checked{'' if is_met else ', NOT MET'}", name) for name, is_met in
          v.hypotheses.items()),
        *((f"Witness, {name}", _shown(value)) for name, value in v.witness.items()),
    ]  # fmt: skip
    lines = [_wrapped(f"{head[0].upper()}{head[1:]}: {text}") for head, text in paragraphs]
    return "\n".join([title(v), *lines, ""])


def summary(verdicts: Iterable[Verdict]) -> str:
    """Count the paper's numbered statements by verdict, then all rows."""
    verdicts = list(verdicts)
    judged = numbered(verdicts)
    lines = []
    if len(judged) == len(NUMBERED):
        by = {v: [name for name in NUMBERED if judged[name] == v] for v in FROM_WORST}
        saved, lost = by["holds with hypothesis"], by["false"]
        lines += [
            f"The paper's {len(NUMBERED)} numbered statements: {' and '.join(by['holds'])} hold as "
            f"written, {len(saved) + len(lost)} are false as written.",
            f"{', '.join(saved)} hold with a hypothesis that the paper's own text states; "
            f"{', '.join(lost)} are saved by no reading that it states.",
        ]
    rows = {name: sum(v.verdict == name for v in verdicts) for name in FROM_WORST}
    text = ", ".join(f"{n} {name}" for name, n in rows.items() if n)
    n, seconds = sum(v.reproduced for v in verdicts), sum(v.seconds for v in verdicts)
    lines.append(f"{len(verdicts)} rows, of our own splitting: {text}; {n} reproduced; "
                 f"{seconds:.0f} s")  # fmt: skip
    return "\n".join(lines)


def numbered(verdicts: Iterable[Verdict]) -> dict[str, str]:
    """Verdict of each numbered statement: of its own row, else the worst of its parts."""
    return numbered_rows([{"statement": v.statement, "verdict": v.verdict} for v in verdicts])


def numbered_rows(objects: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The same, of objects of `python -m theory --json`."""
    rows = {row["statement"]: row["verdict"] for row in objects}
    judged = {}
    for name in NUMBERED:
        parts = [verdict for row, verdict in rows.items() if part_of(row) == name]
        if name in rows:
            judged[name] = rows[name]
        elif parts:
            judged[name] = min(parts, key=FROM_WORST.index)
    return judged


def _point(v: Verdict) -> list[str]:
    """The counterexample; for a statement with a hypothesis, the point where it fails without."""
    if v.counterexample is None:
        return []
    label = "counterexample" if v.verdict == "false" else "fails without the hypothesis"
    return [f"{label}: {v.counterexample}"]


def _shown(value: object) -> str:
    """A witness in one line of at most 300 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= 300 else text[:297] + "..."


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 98, initial_indent="  ", subsequent_indent="      ")
