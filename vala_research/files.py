"""Write a file, or several that belong together, whole or not at all."""

import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from vala_research import InputError


@contextmanager
def written_together(*paths: Path) -> Iterator[list[Path]]:
    """Yield names to write to, beside `paths`, whose folder is made if need be.

    On success they are renamed to `paths` in order; on any failure they are removed and `paths`
    stay as they were. The last of several vouches for the others: it is removed before the first
    is renamed, so that no mixture of old and new files looks complete.

    Raises InputError if a file cannot be written.
    """
    mark = uuid4().hex[:8]
    unfinished = [path.with_name(f".{path.stem}.{mark}{path.suffix}") for path in paths]
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        yield unfinished

        if len(paths) > 1:
            paths[-1].unlink(missing_ok=True)
        for source, path in zip(unfinished, paths, strict=True):
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(source, path)
    except OSError as error:
        place = paths[0] if len(paths) == 1 else paths[0].parent
        raise InputError(
            f"{place} cannot be written ({error.strerror or error}): choose another place."
        ) from error
    finally:
        for leftover in unfinished:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            elif leftover.exists():
                leftover.unlink()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a name to write to, as `written_together` does, for one file or folder."""
    with written_together(path) as (unfinished,):
        yield unfinished


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8; return its path."""
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: Any, indent: int = 2) -> Path:
    """Write plain values as JSON; return the file's path."""
    return write_text(path, json.dumps(content, indent=indent) + "\n")


def write_rows(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> Path:
    """Write one csv line per row; return the file's path.

    columns: the order of the columns (default: that of the first row). A row may lack some.
    """
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, rows[0] if columns is None else columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tensors(
    path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None
) -> Path:
    """Write tensors, copied to the CPU, as safetensors; return the file's path."""
    from safetensors.torch import save_file

    stored = {k: x.detach().cpu().contiguous().clone() for k, x in tensors.items()}
    with written_whole(path) as unfinished:
        save_file(stored, unfinished, metadata)
    return path
