"""Means and paired gains of the rows in notebooks/results/, as tables and sentences print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import pandas as pd

from vala_research import InputError
from vala_research.evaluation.comparison_tables import METRICS, Metric, gain_of, per_clip
from vala_research.evaluation.edit_rows import ATTRIBUTES
from vala_research.evaluation.statistics import FEWEST, Gain
from vala_research.experiments.batches.inspection import notebook_folder

Shown = Literal["mean", "baseline", "gain", "gain and p"]


@dataclass(frozen=True)
class Line:
    """A line of a table: a setting's rows, and the setting that its gains are on (none: no gain).

    Several settings are one: their edits count together. where: what other columns must hold.
    """

    label: str
    setting: str | tuple[str, ...]
    baseline: str | tuple[str, ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A column of a table: a metric's mean over clips, the baseline's mean, or the gain on it.

    setting: in place of the line's.
    """

    title: str
    metric: str
    shown: Shown = "mean"
    digits: int = 2
    setting: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table of a page; file: of the rows, without its ending; first: title of the labels."""

    file: str
    first: str
    lines: Sequence[Line]
    columns: Sequence[Column]

    def written(self) -> str:
        """The table in Markdown."""
        titles = [self.first, *(c.title for c in self.columns)]
        cells = [[line.label, *(self.cell(line, c) for c in self.columns)] for line in self.lines]
        return as_markdown(titles, cells)

    def cell(self, line: Line, column: Column) -> str:
        """What stands in a line under a column; empty: a gain of a line without a baseline."""
        if column.shown == "mean":
            setting = column.setting or line.setting
            return mean_text(self.file, column.metric, setting, column.digits, **line.where)
        if not line.baseline:
            return ""
        if column.shown == "baseline":
            return mean_text(self.file, column.metric, line.baseline, column.digits, **line.where)
        gain = gain_in(self.file, column.metric, line.setting, line.baseline, **line.where)
        return gain_text(gain, column.digits, "+", with_p=column.shown == "gain and p")


@dataclass(frozen=True)
class Plain:
    """A column of plain numbers: an expression of the rows' columns, its mean, least or largest.

    where: a pandas query that the column's rows meet, beside the line's.
    """

    title: str
    value: str
    digits: int = 2
    where: str = ""
    how: Literal["mean", "median", "min", "max"] = "mean"


@dataclass(frozen=True)
class PlainTable:
    """A table of rows that are no edits; lines: by label, the pandas query of the line's rows."""

    file: str
    first: str
    lines: Mapping[str, str]
    columns: Sequence[Plain]

    def written(self) -> str:
        """The table in Markdown."""
        titles = [self.first, *(c.title for c in self.columns)]
        cells = [
            [label, *(self.cell(where, c) for c in self.columns)]
            for label, where in self.lines.items()
        ]
        return as_markdown(titles, cells)

    def cell(self, where: str, column: Plain) -> str:
        """What stands in a line under a column."""
        both = " and ".join(f"({x})" for x in (where, column.where) if x)
        return plain_text(self.file, column.value, both, column.digits, column.how)


@cache
def rows_of(file: str) -> pd.DataFrame:
    """The committed rows of a notebook; raises InputError if there are none."""
    path = notebook_folder() / "results" / f"{file}.csv"
    if not path.is_file():
        raise InputError(f"{path} is missing: a table of the pages is made from it.")
    return pd.read_csv(path, low_memory=False)


def chosen(
    file: str, settings: Mapping[str, str | tuple[str, ...]], where: Mapping[str, Any]
) -> pd.DataFrame:
    """Rows of these settings under new names; edits of several settings of one name stay apart."""
    rows, parts = rows_of(file), []
    for column, value in where.items():
        rows = rows[rows[column] == value]
    for name, members in settings.items():
        members = (members,) if isinstance(members, str) else members
        for number, member in enumerate(members):
            part = rows[rows.setting == member]
            if part.empty:
                raise InputError(f"{file}.csv has no rows of {member!r} with {dict(where)}.")
            parts.append(part.assign(setting=name, kind=part.kind + f" {number}"))
    return pd.concat(parts)


def mean_text(
    file: str, metric: str, setting: str | tuple[str, ...], digits: int = 2, **where: Any
) -> str:
    """Mean over clips of a setting, in the metric's unit."""
    rows = chosen(file, {"it": setting}, where)
    return number(of(metric).factor * per_clip(rows, metric)["it"].mean(), digits)


def plain_text(file: str, value: str, where: str, digits: int = 2, how: str = "mean") -> str:
    """Mean, or another statistic, of the rows of a pandas query, in the metric's unit.

    value: a column, or an expression of columns. Raises InputError if no row meets the query.
    """
    rows = rows_of(file).query(where)
    if rows.empty:
        raise InputError(f"{file}.csv has no rows where {where}.")
    return number(of(value).factor * getattr(rows.eval(value), how)(), digits)


def gain_in(
    file: str, metric: str, better: str | tuple[str, ...], than: str | tuple[str, ...], **where: Any
) -> Gain:
    """Paired gain of a setting on another, in the metric's unit; positive is better."""
    rows, m = chosen(file, {"better": better, "than": than}, where), of(metric)
    gain = gain_of(rows, metric, "better", "than", m.sign)
    low, high = m.factor * gain.low, m.factor * gain.high
    return Gain(m.factor * gain.mean, low, high, gain.n, gain.p_value)


def gain_text(
    gain: Gain, digits: int = 2, sign: str = "", unit: str = "", with_p: bool = False
) -> str:
    """Mean and interval; a p-value is given unless it is .05 or more and the interval holds 0.

    sign: "+" writes the sign of each number; a unit, such as " pixels lower", follows the mean.
    """
    mean = number(gain.mean, digits, sign) + unit
    if gain.n < FEWEST:
        return mean
    text = f"{mean} [{number(gain.low, digits, sign)}, {number(gain.high, digits, sign)}]"
    is_plain = gain.p_value >= 0.05 and round(gain.low, 9) <= 0 <= round(gain.high, 9)
    return text if is_plain and not with_p else f"{text}, {p_text(gain.p_value)}"


def p_text(p: float) -> str:
    """A p-value as papers print it: p = .008."""
    if p < 0.0005:
        return "p < .001"
    return f"p = {p:.{3 if p < 0.1 else 2}f}".replace("0.", ".")


def number(value: float, digits: int, sign: str = "") -> str:
    """A number with so many digits, its thousands parted by commas; no minus before a zero."""
    rounded = round(value, digits)
    return f"{rounded if rounded else 0.0:{sign if rounded else ''},.{digits}f}"


def as_markdown(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells below their titles, as a table in Markdown."""
    return "\n".join(f"| {' | '.join(x)} |" for x in (titles, ["---"] * len(titles), *lines))


def of(metric: str) -> Metric:
    """How a metric is printed; attributes are shares, and a notebook's own is printed as it is."""
    return METRICS.get(metric, Metric(metric, metric, 100 if metric in ATTRIBUTES else 1))
