"""Read caption files: text, JSON and csv, in the forms that a plain folder of clips may hold."""

import csv
import json
import warnings
from collections import defaultdict
from pathlib import Path

from vala_research import InputError

VIDEOS = {  # suffixes of the containers that `read_clip` opens
    ".264", ".265", ".3g2", ".3gp", ".amv", ".apng", ".asf", ".avi", ".avif", ".divx", ".dv",
    ".f4v", ".flv", ".gif", ".gxf", ".h264", ".h265", ".hevc", ".ismv", ".ivf", ".m1v", ".m2t",
    ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mod", ".mov", ".mp4",
    ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nsv", ".nut", ".obu", ".ogg", ".ogm",
    ".ogv", ".ogx", ".qt", ".rm", ".rmvb", ".tod", ".tp", ".trp", ".ts", ".vc1", ".vob", ".webm",
    ".wmv", ".wtv", ".xvid", ".y4m",
}  # fmt: skip
CLIP_COLUMNS, CAPTION_COLUMNS = ("file", "video", "name"), ("caption", "text")
METADATA_COLUMNS = ("file_name", *CLIP_COLUMNS)
TABLES = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt"}  # may hold captions


def read_captions(folder: Path, clips: dict[str, Path | None]) -> dict[str, tuple[str, ...]]:
    """Read the captions of each clip: {clip name: captions}.

    The first of these sources that exists is used:

    1. `captions.csv` or `captions.json` in the folder,
    2. `metadata.csv` or `metadata.jsonl` (Hugging Face VideoFolder) in the folder or below,
    3. `NAME.txt` beside each clip,
    4. the words of the clip's name; a warning says so if the folder holds other tables.
    """
    if (path := folder / "captions.csv").is_file():
        texts = _from_csv(path)
    elif (path := folder / "captions.json").is_file():
        texts = _from_json(path)
    elif tables := sorted(p for n in METADATA for p in folder.rglob(n) if p.is_file()):
        texts = {}
        for path in tables:  # its names are relative to its own folder
            above = path.parent.relative_to(folder)
            rows = METADATA[path.name](path).items()
            texts |= {(above / name).as_posix(): captions for name, captions in rows}
    else:
        beside = {n: p.parent / f"{_bare(p.name)}.txt" for n, p in clips.items() if p}
        texts = {name: _lines_or_none(path) for name, path in beside.items() if path.is_file()}
        if not texts:
            others = [p.name for p in folder.iterdir() if p.suffix.lower() in TABLES]
            if others:
                warnings.warn(
                    f"{folder}: the names of the clips serve as captions, {min(others)} is not"
                    " read; give captions.csv with the columns file and caption.",
                    stacklevel=2,
                )
            words = {n: n.rpartition("/")[2].replace("_", " ").replace("-", " ") for n in clips}
            return {name: tidied([text]) for name, text in words.items()}
    return {name: tidied(texts.get(name, [])) for name in {**clips, **texts}}


def _from_csv(path: Path) -> dict[str, list]:
    return _by_clip(read_csv(path, CLIP_COLUMNS, CAPTION_COLUMNS))


def _from_metadata_csv(path: Path) -> dict[str, list]:
    return _by_clip(read_csv(path, METADATA_COLUMNS, CAPTION_COLUMNS))


def _from_metadata_lines(path: Path) -> dict[str, list]:
    """Read one object per line: {"file_name": name, "text": caption or list of captions}."""
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            row = _parsed(line, f"{path}, line {number},")
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                raise InputError(f"{path}, line {number}: give an object with file_name and text.")
            rows.append({"text": row.get("caption")} | row)
    return _by_clip(rows)


def _by_clip(rows: list[dict]) -> dict[str, list]:
    """Collect the captions of each clip from rows of a clip's name and a caption."""
    texts = defaultdict(list)
    for row in rows:
        clip = next(row[c] for c in METADATA_COLUMNS if c in row)
        text = next(row[c] for c in CAPTION_COLUMNS if c in row)
        texts[_bare(clip)] += text if isinstance(text, list) else [text]
    return texts


METADATA = {"metadata.csv": _from_metadata_csv, "metadata.jsonl": _from_metadata_lines}


def _lines_or_none(path: Path) -> list[str]:
    """Read a clip's captions. An unreadable file leaves this clip without, with a warning."""
    try:
        return read_lines(path)
    except InputError as error:
        warnings.warn(str(error), stacklevel=2)
        return []


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
    """Remove empty captions, superfluous white space, and whatever is neither text nor number."""
    words = (str(t).encode("utf-8", "replace").decode() for t in texts if isinstance(t, str | int))
    return tuple(" ".join(text.split()) for text in words if text.strip())


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file. Raises InputError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable text ({error}): save it as UTF-8.") from error


def read_json(path: Path):
    """Read a JSON file. Raises InputError if it is damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}): repair it.") from error
    return _parsed(text, str(path))


def _parsed(text: str, where: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not readable JSON ({error}): repair it.") from error


def read_csv(path: Path, *columns: str | tuple[str, ...]) -> list[dict[str, str]]:
    """Read the rows of a csv file as {column: text}.

    columns: columns that the file must have; a tuple names alternatives.
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
            raise InputError(f"{path} has no column {' or '.join(alternatives)!r}: add it.")
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
