"""Parameters of notebooks: text as people and papermill write it, turned into values or refused.

A list is a list, or a text with commas: "10,25,50". Semicolons may stand for the commas, so that
names may hold commas.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from types import NoneType
from typing import Any, get_args, get_origin

from vala_research import InputError, chosen_from

KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


def converted(name: str, value: Any, hint: Any, known: Collection = ()) -> Any:
    """Turn the value of a parameter into the type of its field. Lists become tuples.

    hint: the field's type. known: the names that may be chosen; none: any.
    Raises InputError for a value of another type and for unknown names.
    """
    options = get_args(hint)
    if NoneType in options:
        return None if value is None else converted(name, value, options[0], known)
    if get_origin(hint) in (tuple, Sequence):
        values = tuple(_plain(name, v, options[0]) for v in elements(value, known))
    else:
        value = _plain(name, value, hint)
        values = (value,)
    for element in values if known else ():
        chosen_from(name, element, known)
    return values if get_origin(hint) else value


def elements(value: Any, known: Collection = ()) -> list:
    """The elements of a list, of a text with commas or semicolons, or of a single value.

    known: names; those that hold commas are found in a text with commas too.
    """
    if not isinstance(value, str):
        return list(value) if isinstance(value, (list, tuple)) else [value]
    if not value.strip() or ";" in value:
        return [part.strip() for part in value.split(";") if part.strip()]
    parts, found = [part.strip() for part in value.split(",")], []
    while parts:
        ends = [n for n in range(len(parts), 1, -1) if ", ".join(parts[:n]) in known]
        n = ends[0] if ends else 1
        found.append(", ".join(parts[:n]))
        parts = parts[n:]
    return found


def _plain(name: str, value: Any, kind: type) -> Any:
    """One value as text, number or bool. Papermill gives text that looks like a number as one."""
    wrong = InputError(f"{name} is {str(value)[:50]!r}: give {KINDS.get(kind, 'another value')}.")
    if kind is str:
        if not isinstance(value, (str, int, float)) and not hasattr(value, "__fspath__"):
            raise wrong
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise InputError(f"{name} is {str(value)[:50]!r}, which is not UTF-8 text.") from None
        return str(value)
    if kind is bool:
        truth = {"true": True, "false": False}.get(str(value).lower())
        if truth is None:
            raise wrong
        return truth
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise wrong from None
    is_fraction = kind is int and not number.is_integer()
    if isinstance(value, bool) or number != number or is_fraction:
        raise wrong
    return kind(value if isinstance(value, int) else number)


def given_names(names: Mapping[str, Any]) -> list[str]:
    """Names that the parameter cells assign: the notebook's own cell, and papermill's.

    names: the notebook's `globals()`, whose "In" holds the cells as they were run. Without them all
    names are parameters.
    """
    if "In" not in names:
        return list(names)
    cells = [str(cell) for cell in names["In"]]
    own = max((i for i, cell in enumerate(cells) if cell.startswith("preset =")), default=0)
    shown = [cells[own], *(c for c in cells[own + 1 :] if c.startswith("# Parameters\n"))]
    assigned = []
    for cell in shown:
        try:
            nodes = ast.parse(cell).body
        except SyntaxError:  # a line for IPython itself
            continue
        assigned += [t.id for node in nodes if isinstance(node, ast.Assign)
                     for t in node.targets if isinstance(t, ast.Name)]  # fmt: skip
    return assigned
