"""`python -m vala_research.evaluation.gpu`: check and time the package on a graphics card."""

import argparse
import sys
from pathlib import Path

from vala_research import InputError
from vala_research.evaluation.gpu.machine import SCALES, machine_of
from vala_research.evaluation.gpu.report import PARTS, is_right, run_report


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are asked for. Returns the exit status: 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu (the first card)")
    parser.add_argument("--scale", default="full", choices=SCALES, help="tiny: to try the parts")
    parser.add_argument("--budget", type=float, default=330, help="seconds for all parts")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/gpu"), help="a folder")
    asked = parser.parse_args(arguments)
    try:
        machine = machine_of(asked.device, asked.scale)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    parts = {name: part for name, part in PARTS.items() if name in asked.only}
    report = run_report(machine, asked.output, asked.budget, parts)
    print((asked.output / "report.md").read_text(encoding="utf-8"))
    return 0 if is_right(report) else 1


if __name__ == "__main__":
    raise SystemExit(main())
