"""Clips and captions as data sets lay them out on disk: four layouts, one manifest.

MSR-VTT (Xu et al., CVPR 2016), LOVEU-TGVE-2023 (Wu et al., 2023), DAVIS (Pont-Tuset et al., 2017),
and any folder of clips.
"""

import csv
import json
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from vala_research import InputError
from vala_research.data.decoding import PICTURES

VIDEOS = {".mp4", ".webm", ".avi", ".mov", ".mkv", ".m4v", ".gif"}
MSRVTT_FILES = (
    "train_val_videodatainfo.json", "test_videodatainfo.json", "videodatainfo_2017.json",
    "MSRVTT_data.json",
)  # fmt: skip
LOVEU_FILES = ("LOVEU-TGVE-2023_Dataset*.csv",)
LOVEU_CAPTION = "Our GT caption"
LOVEU_SUBSETS = {  # by the heading in the csv's first column
    "DAVIS Videos:": "DAVIS_480p", "Youtube Videos:": "youtube_480p",
    "Videvo Videos:": "videvo_480p",
}  # fmt: skip
LOVEU_EDITS = {
    "style": "Style Change Caption", "object": "Object Change Caption",
    "background": "Background Change Caption", "multiple": "Multiple Changes Caption",
}  # fmt: skip
CLIP_COLUMNS, CAPTION_COLUMNS = ("file", "video", "name"), ("caption", "text")


@dataclass(frozen=True)
class Entry:
    """One clip of a data set.

    path: a video file or a folder of pictures; None where only a caption file names the clip.
    edits: prompts of the edits to make, by kind (LOVEU: style, object, background, multiple).
    """

    name: str
    path: Path | None
    captions: tuple[str, ...]
    split: str | None = None
    edits: dict[str, str] = field(default_factory=dict)


def read_manifest(
    folder: str | os.PathLike, layout: str | None = None, split: str | None = None
) -> list[Entry]:
    """The clips of a data set, in the order of its caption file, else by name.

    layout: "msrvtt", "loveu", "davis" or "folder"; None finds it by the files below, in this order.

    * msrvtt: `train_val_videodatainfo.json`, `test_videodatainfo.json`, `videodatainfo_2017.json`
      or `MSRVTT_data.json` (lists `videos` of video_id, split and `sentences` of video_id,
      caption), in the folder or one below; videos are `VIDEO_ID.mp4` (or a folder of pictures)
      anywhere below.
    * loveu: `LOVEU-TGVE-2023_Dataset.csv`; clips `SUBSET/480p_videos/NAME.mp4`,
      `SUBSET/480p_frames/NAME/*.jpg`, or either anywhere below SUBSET.
    * davis: `JPEGImages/480p/NAME/*.jpg` (480p absent: another resolution), splits from
      `ImageSets/2017/*.txt` or `ImageSets/480p/*.txt`, captions as in a plain folder.
    * folder: video files and folders of pictures at any depth; captions from `captions.csv`
      (columns file | video | name, and caption | text; a row per caption), else `captions.json`
      ({name: caption or list of captions}), else `NAME.txt` beside each clip (one a line), else
      the words of the clip's own name.

    split: keep one (msrvtt: train, validate, test; loveu: the subset's name; davis: train, val).
    Raises InputError for a folder or caption file that cannot be understood. A clip that is
    missing is an entry all the same: who reads the manifest names it and counts it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one that holds clips.")
    if layout is None:
        layout = next(name for name, (is_so, _) in LAYOUTS.items() if is_so(folder))
    elif layout not in LAYOUTS:
        raise InputError(f"Unknown layout {layout!r}: choose one of {', '.join(LAYOUTS)}.")
    entries = LAYOUTS[layout][1](folder)
    if split is not None:
        splits = sorted({e.split for e in entries if e.split})
        if split not in splits:
            known = f"choose one of {', '.join(splits)}" if splits else "it has none, leave it out"
            raise InputError(f"{folder} has no split {split!r}: {known}.")
        entries = [e for e in entries if e.split == split]
    if not entries:
        raise InputError(f"{folder} holds no clips in the {layout} layout: check the folder.")
    return entries


def _msrvtt(folder: Path) -> list[Entry]:
    clips, entries = _clips(folder, key=lambda path: path.name), {}
    for path in _require(folder, MSRVTT_FILES):
        table = _json(path)
        try:
            splits = {str(v["video_id"]): v.get("split") for v in table["videos"]}
            captions = {name: [] for name in splits}
            for sentence in table["sentences"]:
                captions.setdefault(str(sentence["video_id"]), []).append(sentence["caption"])
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path} is no MSR-VTT caption file: give lists 'videos' (video_id, split) and"
                " 'sentences' (video_id, caption)."
            ) from error
        for name, texts in captions.items():  # the first file that names a video has it
            entry = Entry(name, clips.get(name), _tidy(texts), splits.get(name))
            entries.setdefault(name, entry)
    return list(entries.values())


def _loveu(folder: Path) -> list[Entry]:
    entries, subset = {}, None
    indices = {s: _clips(folder / s, lambda p: p.name) for s in LOVEU_SUBSETS.values()}
    for path in _require(folder, LOVEU_FILES):
        for row in _csv(path, "Video name", LOVEU_CAPTION):
            name = row["Video name"].strip()
            subset = LOVEU_SUBSETS.get(name, subset)
            if not name or name.endswith(":"):  # an empty row or a heading
                continue
            found = subset or next((s for s, index in indices.items() if name in index), None)
            edits = {
                k: row[c].strip() for k, c in LOVEU_EDITS.items() if (row.get(c) or "").strip()
            }
            clip = indices.get(found, {}).get(name)
            entry = Entry(name, clip, _tidy([row[LOVEU_CAPTION]]), found, edits)
            entries.setdefault((found, name), entry)
    return list(entries.values())


def _davis(folder: Path) -> list[Entry]:
    images = folder / "JPEGImages"
    there = [path for path in images.glob("*") if path.is_dir()]
    resolutions = sorted(there, key=lambda path: (path.name != "480p", path.name))
    if not resolutions:
        raise InputError(
            f"{folder} holds no JPEGImages/480p/NAME/: put the frames there or choose another"
            " layout."
        )
    splits = {}
    for path in sorted(p for d in ("2017", "480p") for p in folder.glob(f"ImageSets/{d}/*.txt")):
        if path.stem in ("train", "val"):
            for line in _lines(path):
                # 2017: a name; 480p: the paths of a frame and of its mask
                words = line.split()
                name = words[0].split("/")[-2] if words and "/" in words[0] else "".join(words)
                splits.setdefault(name, path.stem)
    splits.pop("", None)
    clips = _clips(resolutions[0], lambda path: path.name)
    clips |= {name: None for name in splits if name not in clips}
    return [
        Entry(name, clips.get(name), texts, splits.get(name))
        for name, texts in _captions(folder, clips).items()
    ]


def _folder(folder: Path) -> list[Entry]:
    clips = _clips(folder, lambda path: path.relative_to(folder).as_posix())
    return [Entry(name, clips.get(name), c) for name, c in _captions(folder, clips).items()]


def _marked(*patterns: str):
    return lambda folder: any(_find(folder, patterns))


LAYOUTS = {  # name: what tells it, what reads it
    "msrvtt": (_marked(*MSRVTT_FILES), _msrvtt),
    "loveu": (_marked(*LOVEU_FILES), _loveu),
    "davis": (lambda folder: (folder / "JPEGImages").is_dir(), _davis),
    "folder": (lambda folder: True, _folder),
}


def _find(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return [p for name in patterns for up in ("", "*/") for p in sorted(folder.glob(up + name))]


def _require(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = _find(folder, patterns)
    if not found:
        raise InputError(f"{folder} holds no {' or '.join(patterns)}: choose another layout.")
    return found


def _clips(folder: Path, key) -> dict[str, Path]:
    """Videos, and folders of pictures, by name without suffix; the video where both exist."""
    videos, pictures = {}, {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.parent == folder and path.suffix.lower() in PICTURES:
            continue
        if path.suffix.lower() in VIDEOS and path.is_file():
            videos.setdefault(key(path.with_suffix("")), path)
        elif path.suffix.lower() in PICTURES:
            pictures.setdefault(key(path.parent), path.parent)
    return dict(sorted((pictures | videos).items()))


def _captions(folder: Path, clips: dict) -> dict[str, tuple[str, ...]]:
    """Captions by clip: of a caption file, of text files beside the clips, or of their names."""
    texts = defaultdict(list)
    if (path := folder / "captions.csv").is_file():
        for row in _csv(path, CLIP_COLUMNS, CAPTION_COLUMNS):
            clip, text = (
                next(row[c] for c in k if c in row) for k in (CLIP_COLUMNS, CAPTION_COLUMNS)
            )
            texts[_bare(clip)].append(text)
    elif (path := folder / "captions.json").is_file():
        table = _json(path)
        if not isinstance(table, dict):
            raise InputError(f"{path}: give an object of clip names and captions.")
        for clip, text in table.items():
            texts[_bare(clip)] += text if isinstance(text, list) else [text]
    else:
        beside = {n: p.parent / f"{_bare(p.name)}.txt" for n, p in clips.items() if p}
        for name, path in beside.items():
            if path.is_file():
                texts[name] = _lines(path)
        if not texts:
            words = {n: n.rpartition("/")[2].replace("_", " ").replace("-", " ") for n in clips}
            return {name: _tidy([text]) for name, text in words.items()}
    return {name: _tidy(texts.get(name, [])) for name in {**clips, **texts}}


def _bare(name: str) -> str:
    path = Path(name.strip())
    return (path.with_suffix("") if path.suffix.lower() in VIDEOS else path).as_posix()


def _tidy(texts: list) -> tuple[str, ...]:
    return tuple(" ".join(str(t).split()) for t in texts if t is not None and str(t).strip())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable text ({error}): save it as UTF-8.") from error


def _json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}): repair it.") from error


def _csv(path: Path, *columns: str | tuple[str, ...]) -> list[dict[str, str]]:
    """Rows by column; `columns` must be there, of a tuple any one."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows, names = list(reader), {n.strip() for n in reader.fieldnames or ()}
    except (ValueError, OSError, csv.Error) as error:
        raise InputError(f"{path} is not a readable csv ({error}): repair it.") from error
    for wanted in columns:
        alternatives = (wanted,) if isinstance(wanted, str) else wanted
        if not names & set(alternatives):
            raise InputError(f"{path} has no column {' or '.join(alternatives)!r}: add it.")
    return [{k.strip(): v for k, v in row.items() if k} for row in rows]
