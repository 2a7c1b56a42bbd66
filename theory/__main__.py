"""Print the table of all statements: `python -m theory [--json] [--only C.7] [--explain C.7]`."""

import json
import sys
from typing import Annotated

import torch
import typer

import theory.attention_alignment
import theory.bilateral_filter
import theory.ddim_inversion
import theory.ddim_stability
import theory.descent_rate
import theory.deviation_filter
import theory.flow_steps
import theory.gradient_descent
import theory.points_attention
import theory.points_descent
import theory.points_deviation
import theory.points_filter
import theory.points_flow
import theory.points_loss
import theory.points_paths
import theory.shared_tokens
import theory.softmax_norms
import theory.steady_flicker
import theory.strict_saddles
import theory.temporal_curvature
import theory.temporal_loss  # noqa: F401 - each file registers its statements
from theory.readings import LEGEND, part_of
from theory.report import block, explained, summary
from theory.verdict import STATEMENTS


def main(
    as_json: Annotated[bool, typer.Option("--json", help="One list of objects.")] = False,
    only: Annotated[str, typer.Option(help="One statement, such as C.7.")] = "",
    explain: Annotated[str, typer.Option(help="One statement in plain English.")] = "",
) -> None:
    """Check and attack every statement. Exit status 1: a verdict does not reproduce."""
    names = chosen(only or explain)
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other
    if not as_json:
        print(LEGEND, end="\n\n", flush=True)
    verdicts = []
    for name in names:
        verdict = STATEMENTS[name]()
        verdicts.append(verdict)
        if not as_json:
            print(explained(verdict) if explain else block(verdict), flush=True)
    if as_json:
        print(json.dumps([v.as_row() for v in verdicts], indent=2))
    elif not explain:
        print(summary(verdicts))
    raise typer.Exit(0 if all(v.reproduced for v in verdicts) else 1)


def chosen(name: str) -> list[str]:
    """Rows of this name; of all its parts, for a numbered statement like C.3; all rows for ""."""
    if not name or name in STATEMENTS:
        return [name] if name else ordered()
    parts = [row for row in ordered() if part_of(row) == name]
    if not parts:
        print(f"Unknown statement {name!r}: choose one of {', '.join(ordered())}.", file=sys.stderr)
        raise typer.Exit(2)
    return parts


def ordered() -> list[str]:
    """Sort the statements in the paper's order: C.2 before C.10, unnumbered ones last."""

    def key(name: str) -> tuple:
        head, _, tail = name.partition(".")
        digits = "".join(c for c in tail if c.isdigit())
        return (head != "C" or not digits, int(digits or 0), name)

    return sorted(STATEMENTS, key=key)


if __name__ == "__main__":
    typer.run(main)
