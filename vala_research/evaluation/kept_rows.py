"""Rows that are kept in a csv file under keys, so that a run resumes and never finds a stale row.

A key is the hash of all that a row depends on. Whatever changes, the row gets another key. Rows are
only ever added, by any number of runs at once; nothing is replaced.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from types import FunctionType
from typing import Any

from filelock import FileLock

from vala_research import InputError
from vala_research.evaluation.provenance import code_version, file_hash, revision
from vala_research.files import check_output, write_rows

KEY = "key"  # the column
TEXTS = (KEY, "setting", "kind")  # columns that stay text, whatever stands in them

Row = dict[str, Any]


class KeptRows:
    """The rows of one csv file by their keys. Rows without a key are kept, and never found."""

    def __init__(self, path: str | PathLike):
        self.path = check_output(path, makes_parents=True)
        self.lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))

    def read(self) -> dict[str, Row]:
        """All rows by key. A row has the columns that it was added with."""
        found = {text[KEY]: text for text in self._texts() if text.get(KEY)}
        return {
            key: {k: v if k in TEXTS else _value(v) for k, v in text.items() if k != KEY and v}
            for key, text in found.items()
        }

    def add(self, rows: Mapping[str, Row]) -> None:
        """Add rows by key; a key that is there keeps its row."""
        with self.lock:
            texts = self._texts()
            known = {text.get(KEY) for text in texts}
            new = [row | {KEY: key} for key, row in rows.items() if key not in known]
            columns = dict.fromkeys(c for row in (*texts, *new) for c in row if c != KEY)
            if new:
                write_rows(self.path, [*texts, *new], [*columns, KEY])

    def _texts(self) -> list[dict[str, str]]:
        """The rows as they stand in the file."""
        if not self.path.exists():
            return []
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file, restkey="more", restval=""))
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(
                f"{self.path} holds no rows ({error}): choose another output."
            ) from error


def _value(text: str) -> bool | int | float | str:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def key_of(**facts: Any) -> str:
    """The key of what depends on these facts and on the package's code."""
    return hash_of(code=code_version(), **facts)


def hash_of(**facts: Any) -> str:
    """The hash of these facts, as `described`."""
    text = json.dumps(described(facts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def described(value: Any) -> Any:
    """Describe a value as JSON does, by all that it holds and by nothing else.

    A path is described by its contents. A function is described by its source and by what it closes
    over. A `partial` may hold names of networks: they are described by their revisions.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return [type(value).__qualname__, described(held)]
    if isinstance(value, Mapping):
        return {str(k): described(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, partial):
        named = {k: revision(v) if isinstance(v, str) else v for k, v in value.keywords.items()}
        return [described(value.func), described(value.args), described(named)]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__module__, value.__qualname__, _source(value), described(cells)]
    if isinstance(value, Path):
        return file_hash(value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def _source(function: FunctionType) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return function.__code__.co_code.hex() + repr(function.__code__.co_names)
