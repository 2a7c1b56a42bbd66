"""A grid of parameters: lists are crossed, `zip` pairs them.

In YAML, three settings of two guidances each:

    preset: sprites
    guidance: [2, 4]
    zip:
      steps: [10, 25, 50]
      n_frames: [16, 8, 4]

A list inside a list is a value: `kinds: [[shape, colour], [background]]` are two values.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from vala_research import InputError

ZIP = "zip"


def read_grid(path: str | Path) -> dict[str, Any]:
    """Read a grid from a YAML file. Raises InputError for a file that is none."""
    import yaml

    try:
        grid = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"The grid {path} cannot be read ({reason}): give a YAML file.") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise InputError(f"The grid {path}{line} is not valid YAML: mend it.") from None
    if not isinstance(grid, dict):
        raise InputError(f"The grid {path} is no mapping: give lines such as 'steps: [10, 25]'.")
    return grid


def expand(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of every cell, in the order of the grid; the last list varies fastest.

    A value that is no list is the same in every cell. An empty grid is one cell.
    Raises InputError for an empty list, and for lists of unequal length under `zip`.
    """
    paired = grid.get(ZIP) or {}
    if not isinstance(paired, Mapping):
        raise InputError("zip in the grid is no mapping: indent 'steps: [10, 25]' below it.")
    crossed = {str(key): value for key, value in grid.items() if key != ZIP}
    paired = {str(key): value for key, value in paired.items()}
    if both := sorted(set(crossed) & set(paired)):
        raise InputError(f"{both[0]} stands in the grid and under its zip: keep one of them.")

    axes = [[{key: value} for value in _values(key, value)] for key, value in crossed.items()]
    if paired:
        columns = {key: _values(key, value) for key, value in paired.items()}
        lengths = {key: len(values) for key, values in columns.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{key} {n}" for key, n in lengths.items())
            raise InputError(f"Lists under zip differ in length ({said}): make them equal.")
        rows = zip(*columns.values(), strict=True)
        axes.append([dict(zip(columns, row, strict=True)) for row in rows])
    return [{k: v for part in cell for k, v in part.items()} for cell in product(*axes)]


def _values(key: str, value: Any) -> list:
    """The values of a parameter along its axis."""
    if isinstance(value, (list, tuple)):
        if not value:
            raise InputError(f"{key} in the grid is an empty list: give values, or [[]] for none.")
        return list(value)
    return [value]
