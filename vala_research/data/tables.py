"""Read lines, JSON and csv that a user wrote; one sentence says what is wrong with a file."""

import csv
import json
from pathlib import Path
from typing import Any

from vala_research import InputError


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file. Raises InputError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable text ({error}): save it as UTF-8.") from error


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises InputError if it is damaged."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}): repair it.") from error
    return _parsed(text, str(path))


def read_json_lines(path: Path) -> list[Any]:
    """Read a file with one JSON value per line. Raises InputError if one is damaged."""
    lines = enumerate(read_lines(path), 1)
    return [_parsed(line, f"{path}, line {k},") for k, line in lines if line.strip()]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not readable JSON ({error}): repair it.") from error


def read_csv(path: Path, *columns: str | tuple[str, ...]) -> list[dict[str, str]]:
    """Read the rows of a csv file as {column: text}.

    columns: columns that the file must have; a tuple holds alternatives, the usual ones first.
    Raises InputError if the file is damaged, lacks a column, or has a comma or a quote too many.
    """
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            for row in reader:
                _check_row(path, reader.line_num, row)
                rows.append(row)
            names = {n.strip() for n in reader.fieldnames or ()}
    except InputError:
        raise
    except (ValueError, OSError, csv.Error) as error:
        raise InputError(f"{path} is not a readable csv ({error}): repair it.") from error
    for column in columns:
        alternatives = (column,) if isinstance(column, str) else column
        if not names & set(alternatives):
            raise InputError(f"{path} has no column {' or '.join(alternatives[:3])!r}: add it.")
    return [{k.strip(): v for k, v in row.items() if k} for row in rows]


def _check_row(path: Path, line: int, row: dict) -> None:
    """Refuse a row with more cells than columns, or with a quote that takes in further rows."""
    extra = [cell for cell in row.pop(None, []) if cell.strip()]
    if extra:
        raise InputError(
            f"{path}, line {line}: {extra[0].strip()!r} is beyond the last column; put texts with"
            " commas in double quotes."
        )
    for cell in row.values():
        if any("," in part for part in cell.splitlines()[1:]):
            raise InputError(
                f"{path}, line {line}: a double quote is not closed in its line; repair it."
            )
