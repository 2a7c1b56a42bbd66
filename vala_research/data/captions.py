"""Read caption files: text, JSON and csv, in the forms that a plain folder of clips may hold."""

import csv
import json
from collections import defaultdict
from pathlib import Path

from vala_research import InputError

VIDEOS = {".mp4", ".webm", ".avi", ".mov", ".mkv", ".m4v", ".gif"}
CLIP_COLUMNS, CAPTION_COLUMNS = ("file", "video", "name"), ("caption", "text")


def read_captions(folder: Path, clips: dict[str, Path | None]) -> dict[str, tuple[str, ...]]:
    """Read the captions of each clip: {clip name: captions}.

    The first of these sources that exists is used:

    1. `captions.csv` or `captions.json` in the folder,
    2. `NAME.txt` beside each clip,
    3. the words of the clip's name.
    """
    if (path := folder / "captions.csv").is_file():
        texts = _from_csv(path)
    elif (path := folder / "captions.json").is_file():
        texts = _from_json(path)
    else:
        beside = {n: p.parent / f"{_bare(p.name)}.txt" for n, p in clips.items() if p}
        texts = {name: read_lines(path) for name, path in beside.items() if path.is_file()}
        if not texts:
            words = {n: n.rpartition("/")[2].replace("_", " ").replace("-", " ") for n in clips}
            return {name: tidied([text]) for name, text in words.items()}
    return {name: tidied(texts.get(name, [])) for name in {**clips, **texts}}


def _from_csv(path: Path) -> dict[str, list]:
    texts = defaultdict(list)
    for row in read_csv(path, CLIP_COLUMNS, CAPTION_COLUMNS):
        clip, text = (next(row[c] for c in k if c in row) for k in (CLIP_COLUMNS, CAPTION_COLUMNS))
        texts[_bare(clip)].append(text)
    return texts


def _from_json(path: Path) -> dict[str, list]:
    table = read_json(path)
    if not isinstance(table, dict):
        raise InputError(f"{path}: give an object of clip names and captions.")
    texts = defaultdict(list)
    for clip, text in table.items():
        texts[_bare(clip)] += text if isinstance(text, list) else [text]
    return texts


def _bare(name: str) -> str:
    """Remove the suffix of a video from a clip's name."""
    path = Path(name.strip())
    return (path.with_suffix("") if path.suffix.lower() in VIDEOS else path).as_posix()


def tidied(texts: list) -> tuple[str, ...]:
    """Remove empty captions and superfluous white space."""
    return tuple(" ".join(str(t).split()) for t in texts if t is not None and str(t).strip())


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file. Raises InputError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable text ({error}): save it as UTF-8.") from error


def read_json(path: Path):
    """Read a JSON file. Raises InputError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}): repair it.") from error


def read_csv(path: Path, *columns: str | tuple[str, ...]) -> list[dict[str, str]]:
    """Read the rows of a csv file as {column: text}.

    columns: columns that the file must have; a tuple names alternatives.
    Raises InputError if the file is damaged or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows, names = list(reader), {n.strip() for n in reader.fieldnames or ()}
    except (ValueError, OSError, csv.Error) as error:
        raise InputError(f"{path} is not a readable csv ({error}): repair it.") from error
    for column in columns:
        alternatives = (column,) if isinstance(column, str) else column
        if not names & set(alternatives):
            raise InputError(f"{path} has no column {' or '.join(alternatives)!r}: add it.")
    return [{k.strip(): v for k, v in row.items() if k} for row in rows]
