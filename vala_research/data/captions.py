"""Find the captions of a folder of clips, in the forms of published data sets and of trainers."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from posixpath import normpath
from typing import Any

from vala_research import InputError
from vala_research.data.nested import (
    CAPTION_COLUMNS,
    CLIP_COLUMNS,
    nested_rows,
    texts_in,
    tidied,
    value_of,
)
from vala_research.data.tables import read_csv, read_json, read_json_lines, read_lines

VIDEOS = {  # suffixes of the containers that `read_clip` opens
    ".264", ".265", ".3g2", ".3gp", ".amv", ".apng", ".asf", ".avi", ".avif", ".divx", ".dv",
    ".f4v", ".flv", ".gif", ".gxf", ".h264", ".h265", ".hevc", ".ismv", ".ivf", ".m1v", ".m2t",
    ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mod", ".mov", ".mp4",
    ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nsv", ".nut", ".obu", ".ogg", ".ogm",
    ".ogv", ".ogx", ".qt", ".rm", ".rmvb", ".tod", ".tp", ".trp", ".ts", ".vc1", ".vob", ".webm",
    ".wmv", ".wtv", ".xvid", ".y4m",
}  # fmt: skip

METADATA_COLUMNS = ("file_name", *(c for c in CLIP_COLUMNS if c != "file_name"))
TABLES = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt"}  # may hold captions
JSON = ("captions.json", "captions.jsonl")
PROMPTS, CLIPS = ("prompts", "prompt", "captions", "caption"), ("videos", "video")


def read_captions(folder: Path, clips: dict[str, Path | None]) -> dict[str, tuple[str, ...]]:
    """Read the captions of each clip: {clip name: captions}.

    The first of these sources that exists is used:

    1. `captions.csv`, `captions.json` or `captions.jsonl` in the folder,
    2. `metadata.csv` or `metadata.jsonl` (Hugging Face VideoFolder) in the folder or below,
    3. `prompts.txt` beside `videos.txt`, line by line, in the folder or below,
    4. `NAME.txt` or `NAME.json` beside each clip,
    5. the words of the clip's name; a warning says so.
    """
    if (path := folder / "captions.csv").is_file():
        rows = _by_clip(_csv_rows(path, CLIP_COLUMNS), _finder(clips))
    elif path := next(filter(Path.is_file, (folder / name for name in JSON)), None):
        rows = _by_clip(_json_rows(path, clips), _finder(clips))
    elif below := _tables_below(folder):
        rows = {}
        for path, read in below:  # its names are relative to its own folder
            above = path.parent.relative_to(folder)
            known = _finder(clips) if path.parent == folder else _bare
            rows |= _by_clip(((above / n, texts) for n, texts in read(path)), known)
    else:
        rows = {name: texts for name, path in clips.items() if (texts := _beside(path)) is not None}
        if clips and not rows:
            _warn_of_names(folder)
            rows = {n: [n.rpartition("/")[2].replace("_", " ").replace("-", " ")] for n in clips}
    return {name: tidied(rows.get(name, [])) for name in {**clips, **rows}}


Rows = Iterable[tuple[Any, Any]]  # (name of a clip, whatever holds its captions)


def _by_clip(rows: Rows, known: Callable[[str], str]) -> dict[str, list]:
    """Collect the captions of each clip. known: maps a name in a table to the clip's name."""
    texts = defaultdict(list)
    for name, held in rows:
        texts[known(str(name))] += texts_in(held)
    return texts


def _finder(clips: Iterable[str]) -> Callable[[str], str]:
    """Return a function that finds the clip that a table names, with or without its folders."""
    ends = defaultdict(list)
    for clip in clips:
        parts = clip.split("/")
        for k in range(len(parts)):
            ends["/".join(parts[k:])].append(clip)

    def known(name: str) -> str:
        parts = (bare := _bare(name)).split("/")
        tails = ("/".join(parts[k:]) for k in range(len(parts)))
        for clip in (t for t in tails if t in clips):
            return clip
        return ends[bare][0] if len(ends.get(bare, ())) == 1 else bare

    return known


def _bare(name: str) -> str:
    """Return a clip's name in its simplest form, without the suffix of a video."""
    path = Path(normpath(name.strip().replace("\\", "/")))
    return (path.with_suffix("") if path.suffix.lower() in VIDEOS else path).as_posix()


# Tables


def _csv_rows(path: Path, columns: tuple[str, ...]) -> Rows:
    rows = read_csv(path, columns, CAPTION_COLUMNS)
    return [(value_of(row, columns), value_of(row, CAPTION_COLUMNS)) for row in rows]


def _metadata_lines(path: Path) -> Rows:
    """Read one object per line: {"file_name": name, "text": caption or list of captions}."""
    for row in read_json_lines(path):
        name = value_of(row, METADATA_COLUMNS) if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise InputError(f"{path}: {row!r:.60} is no object with file_name and text.")
        yield name, value_of(row, CAPTION_COLUMNS)


def _json_rows(path: Path, clips: dict) -> Rows:
    known, read = _finder(clips), read_json if path.suffix == ".json" else read_json_lines
    try:
        rows = list(nested_rows(read(path), lambda key: known(key) in clips))
    except RecursionError as error:
        raise InputError(f"{path} is not readable JSON (it is nested too deep).") from error
    if not rows:
        raise InputError(
            f"{path}: give an object of clip names and captions, or a list of objects with file and"
            " caption."
        )
    return rows


METADATA = {
    "metadata.csv": lambda path: _csv_rows(path, METADATA_COLUMNS),
    "metadata.jsonl": _metadata_lines,
}


def _tables_below(folder: Path) -> list[tuple[Path, Callable[[Path], Rows]]]:
    """List the tables that a folder or one below it holds, with their readers."""
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in TABLES and p.is_file()]
    files = [p for p in files if not any(n[0] == "." for n in p.relative_to(folder).parts)]
    tables = [(path, METADATA[path.name]) for path in files if path.name in METADATA]
    lists = [path for path in files if path.suffix == ".txt" and path.stem in CLIPS]
    return tables or [(path, _paired_lines) for path in lists if _prompts(path)]


def _prompts(path: Path) -> Path | None:
    """Return the list of captions beside a list of clips."""
    beside = (path.with_name(f"{name}.txt") for name in PROMPTS)
    return next((p for p in beside if p.is_file()), None)


def _paired_lines(path: Path) -> Rows:
    """Read a list of clips; the list of captions beside it has a line for each."""
    prompts = _prompts(path)
    names, texts = ("\n".join(read_lines(p)).rstrip().split("\n") for p in (path, prompts))
    if len(names) != len(texts):
        raise InputError(
            f"{path} has {len(names)} lines and {prompts.name} {len(texts)}: give one caption per"
            " clip, each in one line."
        )
    return [(n, t) for n, t in zip(names, texts, strict=True) if n.strip()]


def _beside(path: Path | None) -> list | None:
    """Read a clip's own file. An unreadable file leaves this clip without, with a warning."""
    for suffix, read in ((".txt", read_lines), (".json", read_json)):
        file = path and path.parent / f"{Path(_bare(path.name)).name}{suffix}"
        try:
            if file and file.is_file():
                return texts_in(read(file))
        except InputError as error:
            warnings.warn(str(error), stacklevel=2)
            return []
    return None


def _warn_of_names(folder: Path) -> None:
    others = sorted(p for up in ("*", "*/*") for p in folder.glob(up) if p.suffix.lower() in TABLES)
    unread = f", {others[0].relative_to(folder)} is not read" if others else ""
    warnings.warn(
        f"{folder}: the names of the clips serve as captions{unread}; give captions.csv with the"
        " columns file and caption.",
        stacklevel=3,
    )
