"""Texts with fields: `filled` writes what the rows in notebooks/results/ say in their place."""

from __future__ import annotations

import fnmatch
import re
from functools import cache

from vala_research import InputError
from vala_research.evaluation.comparison_tables import METRICS
from vala_research.evaluation.statistics import Gain
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.kept_runs import kept_claims
from vala_research.experiments.page_cells import (
    gain_in,
    gain_text,
    mean_text,
    plain_text,
    rows_of,
)

BY_NAME = {metric.name: metric for metric in METRICS.values()}
OPPOSITE = {"lower": "higher", "less": "more"}  # units of a gain: without a sign


def filled(text: str) -> str:
    """A text with its fields replaced by what the rows say.

    * {{file | metric | setting}}: a mean. A star in a name stands for all settings of this ending,
      taken together. @column=value after a setting: of these rows only.
    * {{file | metric | better > than | unit}}: a gain. Units that end in "lower" or "less" have no
      sign: a gain below zero is "higher" or "more".
    * {{file | claim | SENTENCE, METRIC | unit}}: the gain of the notebook's own claim.
    * {{file | metric | where CONDITION}}: the plain mean of a pandas query; the metric may be any
      expression of columns.

    A number after the last bar: digits.
    """
    return re.sub(r"\{\{(.+?)\}\}", lambda found: _field(*found[1].split("|")), text)


def _field(file: str, metric: str, settings: str, *rest: str) -> str:
    file, metric, settings, *rest = (part.strip() for part in (file, metric, settings, *rest))
    digits = int(rest.pop()) if rest and rest[-1].isdigit() else 2
    unit = rest[0] if rest else ""
    if metric == "claim":
        return _gain(_claimed(file, settings), digits, unit)
    if settings.startswith("where "):
        return plain_text(file, metric, settings.removeprefix("where "), digits)
    names, _, condition = settings.partition("@")
    column, _, value = condition.strip().partition("=")
    where = {column: value} if column else {}
    better, *than = (_members(file, name.strip()) for name in names.split(" > "))
    if not than:
        return mean_text(file, metric, better, digits, **where)
    return _gain(gain_in(file, metric, better, than[0], **where), digits, unit)


def _gain(gain: Gain, digits: int, unit: str) -> str:
    word = unit.rpartition(" ")[2]
    if word in OPPOSITE and gain.mean < 0:
        gain = Gain(-gain.mean, -gain.high, -gain.low, gain.n, gain.p_value)
        unit = unit.removesuffix(word) + OPPOSITE[word]
    return gain_text(gain, digits, "" if word in OPPOSITE else "+", f" {unit}" if unit else "")


def _members(file: str, name: str) -> tuple[str, ...]:
    if "*" not in name:
        return (name,)
    return tuple(fnmatch.filter(dict.fromkeys(rows_of(file).setting), name))


def _claimed(file: str, words: str) -> Gain:
    """The gain of a claim, in its metric's unit; raises InputError for words of no claim."""
    claims = _claims(file)
    if words not in claims:
        raise InputError(f"No claim on the rows of {file} is {words!r}: {', '.join(claims)}.")
    claim = claims[words]
    factor = BY_NAME[claim.measured].factor if claim.measured in BY_NAME else 1
    return Gain(*(factor * x for x in (claim.value, claim.low, claim.high)), claim.n, claim.p)


@cache
def _claims(file: str) -> dict[str, Claim]:
    return {f"{claim.sentence}, {claim.measured}": claim for claim in kept_claims(file)}
