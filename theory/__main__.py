"""Print the table of all statements: `python -m theory [--json] [--only C.7]`."""

import json
import sys
import textwrap
from typing import Annotated

import torch
import typer

import theory.attention_alignment
import theory.bilateral_filter
import theory.ddim_inversion
import theory.ddim_stability
import theory.descent_rate
import theory.gradient_descent
import theory.points_attention
import theory.points_descent
import theory.points_filter
import theory.points_loss
import theory.points_paths
import theory.shared_tokens
import theory.softmax_norms
import theory.steady_flicker
import theory.strict_saddles
import theory.temporal_curvature
import theory.temporal_loss  # noqa: F401 - each file registers its statements
from theory.verdict import STATEMENTS, Verdict


def main(
    as_json: Annotated[bool, typer.Option("--json", help="One list of objects.")] = False,
    only: Annotated[str, typer.Option(help="One statement, such as C.7.")] = "",
) -> None:
    """Check and attack every statement. Exit status 1: a verdict does not reproduce."""
    if only and only not in STATEMENTS:
        print(f"Unknown statement {only!r}: choose one of {', '.join(ordered())}.", file=sys.stderr)
        raise typer.Exit(2)
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other
    verdicts = []
    for name in [only] if only else ordered():
        verdict = STATEMENTS[name]()
        verdicts.append(verdict)
        if not as_json:
            print(block(verdict), flush=True)
    if as_json:
        print(json.dumps([v.as_row() for v in verdicts], indent=2))
    else:
        print(summary(verdicts))
    raise typer.Exit(0 if all(v.reproduced for v in verdicts) else 1)


def ordered() -> list[str]:
    """Sort the statements in the paper's order: C.2 before C.10, unnumbered ones last."""

    def key(name: str) -> tuple:
        head, _, tail = name.partition(".")
        digits = "".join(c for c in tail if c.isdigit())
        return (head != "C" or not digits, int(digits or 0), name)

    return sorted(STATEMENTS, key=key)


def block(v: Verdict) -> str:
    """Format one statement as a few lines of text."""
    lines = [
        f"{v.statement:<8} {v.verdict.upper()}{'' if v.reproduced else '   NOT REPRODUCED'}",
        f"claim: {v.claim}",
        *([f"counterexample: {v.counterexample}"] if v.counterexample else []),
        f"true: {v.corrected}",
        f"worst found {v.measured:.6g}, bound {v.bound:.6g}, tightness {v.tightness:.4f}, "
        f"{v.n_searched} points, {v.seconds:.1f} s",
    ]
    first, *rest = lines
    wrapped = [textwrap.fill(r, 98, initial_indent="  ", subsequent_indent="      ") for r in rest]
    return "\n".join([first, *wrapped, ""])


def summary(verdicts: list[Verdict]) -> str:
    """Count the statements by verdict."""
    counts: dict[str, int] = {}
    for v in verdicts:
        counts[v.verdict] = counts.get(v.verdict, 0) + 1
    text = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
    n = sum(v.reproduced for v in verdicts)
    seconds = sum(v.seconds for v in verdicts)
    return f"{len(verdicts)} statements: {text}; {n} reproduced; {seconds:.0f} s"


if __name__ == "__main__":
    typer.run(main)
