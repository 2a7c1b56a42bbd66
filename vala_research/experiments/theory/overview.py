"""Notebook 45: the verdict on every statement, one line each."""

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from vala_research import InputError
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.sheet import AS_PLACED
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import Preset, save_rows

SLOWEST = ("C.1", "C.4b", "C.7", "C.10", "C.14", "flicker")
VERDICT_COLOURS = {
    "holds": COLOURS[2], "holds with hypothesis": COLOURS[5], "false": COLOURS[1],
    "vacuous": "#8C8C8C",
}  # fmt: skip
SHORT = {"holds with hypothesis": "with hypothesis"}
LINE, HEAD = 0.4, 0.3  # inches
LEFT = {"statement": 0.05, "claim": 1.0, "verdict": 3.0, "tightness": 4.02, "counter": 4.74}
BAR = 0.4  # inches of a tightness of 1
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, kw_only=True)
class Settings(Preset):
    """Parameters of notebook 45."""

    PRESETS = {"smoke": {"left_out": SLOWEST}, "paper": {}}

    only: Sequence[str] = ()  # statements, such as C.7; none: all but those left out
    left_out: Sequence[str] = ()  # statements that take long
    saved: str = ""  # a file that `python -m theory --json` wrote; "": check now

    @property
    def inputs(self) -> list[str]:
        """Files whose hashes `emit` records."""
        return [self.saved] if self.saved else []


def run(
    settings: Settings, output: str | Path, checks: Callable[..., list[dict[str, Any]]]
) -> pd.DataFrame:
    """Objects of `python -m theory --json`, one row each: saved ones, or those of `checks`.

    checks: `theory.measurements.checks`, (only, left_out) -> objects.
    """
    if settings.saved:
        verdicts = json.loads(Path(settings.saved).read_text())
    else:
        verdicts = checks(settings.only, settings.left_out)
    rows = [row | {"hypotheses": "; ".join(row["hypotheses"])} for row in verdicts]
    return save_rows(rows, output)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Verdict, correction and numbers of every statement."""
    columns = ["verdict", "corrected", "measured", "bound", "n_searched", "seconds"]
    return rows.set_index("statement")[columns]


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Every verdict reproduces; what is false has a counterexample; no bound is broken."""
    is_sound, n = rows.reproduced.astype(bool), len(rows)
    false = rows[rows.verdict == "false"]
    has_point = false.counterexample.fillna("") != ""
    return [
        Claim.of_fact("every verdict reproduces", "share of statements", is_sound.mean(),
                      is_sound.all(), n),
        Claim.of_fact("every false statement has a counterexample", "false statements", len(false),
                      has_point.all(), len(false)),
        Claim.of_fact("no corrected bound is broken", "largest tightness", rows.tightness.max(),
                      (rows.tightness <= 1 + 1e-6).all(), n),
    ]  # fmt: skip


@drawn
def figure(rows: pd.DataFrame) -> Picture:
    """Draw statement, the paper's claim, verdict, tightness of the correction, counterexample.

    rows: in the order shown. Tightness is the worst case found over the bound: 1 is attained, and
    a full bar. A verdict that did not reproduce says so.
    """
    if not len(rows):
        raise InputError("There are no verdicts: give the rows of python -m theory --json.")
    if unknown := set(rows.verdict) - set(VERDICT_COLOURS):
        raise InputError(f"Unknown verdicts {sorted(unknown)}: give those of theory.verdict.")
    height = HEAD + LINE * len(rows) + 0.05
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, height), layout=AS_PLACED)
        ax = fig.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, PAGE), ylim=(height, 0))
        ax.set_axis_off()
        titles = ("", "the paper", "verdict", "tightness", "where the paper's breaks")
        for x, title in zip(LEFT.values(), titles, strict=True):
            ax.text(x, HEAD - 0.1, title, weight="bold", fontsize=8, va="center")
        for i, row in enumerate(rows.to_dict("records")):
            if i % 2 == 0:
                band = Rectangle((0, HEAD + i * LINE), PAGE, LINE, fc="#F5F5F5", lw=0)
                ax.add_patch(band)
            _line(ax, HEAD + (i + 0.5) * LINE, row)
    return fig


def _line(ax: Axes, y: float, row: Mapping) -> None:
    style = {"va": "center", "fontsize": 7, "parse_math": False, "linespacing": 1.1}
    ax.text(LEFT["statement"], y, row["statement"], weight="bold", **style)
    ax.text(LEFT["claim"], y, _wrapped(row["claim"], 38), **style)
    colour, words = VERDICT_COLOURS[row["verdict"]], SHORT.get(row["verdict"], row["verdict"])
    shape = {"boxstyle": "round,pad=0,rounding_size=0.05", "fc": colour, "lw": 0}
    ax.add_patch(FancyBboxPatch((LEFT["verdict"], y - 0.08), 0.95, 0.16, **shape))
    if not row["reproduced"]:
        words = "not reproduced"
    ax.text(LEFT["verdict"] + 0.475, y, words, ha="center", color="white", weight="bold", **style)
    _bar(ax, y, row["tightness"])
    ax.text(LEFT["tightness"] + BAR + 0.04, y, f"{row['tightness']:.2f}", **style)
    has_point = isinstance(row["counterexample"], str)  # a csv has nan for none
    point, _, numbers = (row["counterexample"] if has_point else "").rpartition(": ")
    broken = f"{point}: {numbers.replace(' ', NO_BREAK)}" if point else numbers
    ax.text(LEFT["counter"], y, _wrapped(broken, 43), **style)


def _bar(ax: Axes, y: float, tightness: float) -> None:
    """A full bar means attained. A tightness above 1, a broken bound, is black."""
    x, h = LEFT["tightness"], 0.1
    ax.add_patch(Rectangle((x, y - h / 2), BAR, h, fc="white", ec="#999999", lw=0.5))
    filled = BAR * min(max(tightness, 0.0), 1.0)
    shade = "#444444" if tightness <= 1 + 1e-6 else "black"
    ax.add_patch(Rectangle((x, y - h / 2), filled, h, fc=shade, lw=0))


def _wrapped(text: str, n: int) -> str:
    return "\n".join(textwrap.wrap(text, n, max_lines=2, placeholder=" ..."))
