"""Tables for LaTeX papers, by the package booktabs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vala_research.evaluation.comparison_tables import METRICS

SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def latex_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    r"""Write rows as a `tabular` of booktabs: \usepackage{booktabs}.

    Rows of a comparison, one per setting and metric, become a row per setting and a column per
    metric: the mean.
    """
    if {"setting", "metric", "mean"} <= set(columns):
        columns, rows = _by_metric(rows)
    is_text = [any(isinstance(row.get(c), str) for row in rows) for c in columns]
    kinds = "".join("l" if text else "r" for text in is_text)
    lines = [
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        " & ".join(escaped(str(column)) for column in columns) + r" \\",
        r"\midrule",
        *(" & ".join(_cell(row.get(column)) for column in columns) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """A text whose special characters are printed as they are."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _by_metric(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """One row per setting; other columns whose values belong to a setting, such as costs, stay."""
    keys = [k for k in ("motion", "kind", "setting") if k in rows[0]]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    settings: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        line = settings.setdefault(tuple(row[k] for k in keys), {k: row[k] for k in keys})
        shown = METRICS.get(row["metric"])
        line[row["metric"]] = row["mean"] * (shown.factor if shown else 1)
    names = {metric: METRICS[metric].axis if metric in METRICS else metric for metric in metrics}
    lines = [{names.get(k, k): v for k, v in line.items()} for line in settings.values()]
    return [*keys, *names.values()], lines


def _cell(value: Any) -> str:
    """A number with four significant digits; nothing for a value that is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return escaped(str(value))
    if isinstance(value, int) or math.isinf(value):
        return str(value)
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 or value == 0 else _power(value)


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return rf"${mantissa}\times 10^{{{int(exponent)}}}$"
