"""List the clips and captions of a data set on disk: four layouts, one manifest.

The layouts are MSR-VTT (Xu et al., CVPR 2016), LOVEU-TGVE-2023 (Wu et al., 2023), DAVIS
(Pont-Tuset et al., 2017), and any folder of clips.
"""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from vala_research import InputError, chosen_from
from vala_research.data.captions import (
    VIDEOS,
    read_captions,
    read_csv,
    read_json,
    read_lines,
    tidied,
)
from vala_research.data.pictures import PICTURES, is_animated

MSRVTT_FILES = (
    "train_val_videodatainfo.json", "test_videodatainfo.json", "videodatainfo_2017.json",
    "MSRVTT_data.json",
)  # fmt: skip
LOVEU_FILES = ("LOVEU-TGVE-2023_Dataset*.csv",)
LOVEU_CAPTION = "Our GT caption"
LOVEU_SUBSETS = {  # heading in the first column of the csv: folder
    "DAVIS Videos:": "DAVIS_480p", "Youtube Videos:": "youtube_480p",
    "Videvo Videos:": "videvo_480p",
}  # fmt: skip
LOVEU_EDITS = {
    "style": "Style Change Caption", "object": "Object Change Caption",
    "background": "Background Change Caption", "multiple": "Multiple Changes Caption",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One clip of a data set.

    path: a video file or a folder of pictures; None if only a caption file names the clip.
    edits: {kind of edit: prompt} (LOVEU: style, object, background, multiple).
    """

    name: str
    path: Path | None
    captions: tuple[str, ...]
    split: str | None = None
    edits: dict[str, str] = field(default_factory=dict)


def read_manifest(
    folder: str | os.PathLike, layout: str | None = None, split: str | None = None
) -> list[Entry]:
    """List the clips of a data set, in the order of its caption file, else by name.

    layout: "msrvtt", "loveu", "davis" or "folder". None takes the first whose files are there.

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
      ({name: caption or list of captions}), else `metadata.csv` or `metadata.jsonl` (VideoFolder:
      file_name, and caption | text), else `NAME.txt` beside each clip (one per line), else the
      words of the clip's name.

    split: keep this split only (msrvtt: train, validate, test; loveu: name of the subset; davis:
        train, val).
    Returns the entries. A missing clip is an entry too, so that its reader can name and count it.
    Raises InputError for a folder or a caption file that cannot be understood.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one that holds clips.")
    if layout is None:
        layout = next(name for name, (matches, _) in LAYOUTS.items() if matches(folder))
    chosen_from("layout", layout, LAYOUTS)
    entries = LAYOUTS[layout][1](folder)
    if split is not None:
        entries = _of_split(folder, entries, split)
    if not entries:
        raise InputError(f"{folder} holds no clips in the {layout} layout: check the folder.")
    return entries


def _of_split(folder: Path, entries: list[Entry], split: str) -> list[Entry]:
    splits = sorted({e.split for e in entries if e.split})
    if split not in splits:
        remedy = f"choose one of {', '.join(splits)}" if splits else "it has none, leave it out"
        raise InputError(f"{folder} has no split {split!r}: {remedy}.")
    return [e for e in entries if e.split == split]


def _msrvtt(folder: Path) -> list[Entry]:
    clips, entries = _clips(folder, key=lambda path: path.name), {}
    for path in _require(folder, MSRVTT_FILES):
        # The captions of a video do not stand together: collect them by name.
        videos, sentences = _msrvtt_lists(path)
        splits = {str(v["video_id"]): v.get("split") for v in videos}
        captions = {name: [] for name in splits}
        for sentence in sentences:
            captions.setdefault(str(sentence["video_id"]), []).append(sentence["caption"])

        # If several files name a video, the first one counts.
        for name, texts in captions.items():
            split = splits.get(name)
            entry = Entry(name, clips.get(name), tidied(texts), split and str(split))
            entries.setdefault(name, entry)
    return list(entries.values())


def _msrvtt_lists(path: Path) -> tuple[list[dict], list[dict]]:
    """Read the lists of videos and of sentences; a warning counts the members that are none."""
    table = read_json(path)
    lists = [table.get(k) if isinstance(table, dict) else None for k in ("videos", "sentences")]
    if not all(isinstance(members, list) for members in lists):
        raise InputError(
            f"{path} is no MSR-VTT caption file: give lists 'videos' (video_id, split) and"
            " 'sentences' (video_id, caption)."
        )
    keys = ({"video_id"}, {"video_id", "caption"})
    good = tuple(
        [m for m in members if isinstance(m, dict) and m.keys() >= needed]
        for members, needed in zip(lists, keys, strict=True)
    )
    if n_bad := sum(map(len, lists)) - sum(map(len, good)):
        warnings.warn(f"{path}: {n_bad} members are not understood and left out.", stacklevel=2)
    return good


def _loveu(folder: Path) -> list[Entry]:
    entries, subset = {}, None
    indices = {s: _clips(folder / s, lambda p: p.name) for s in LOVEU_SUBSETS.values()}
    for path in _require(folder, LOVEU_FILES):
        for row in read_csv(path, "Video name", LOVEU_CAPTION):
            # A row is a heading that starts a subset, an empty row, or a clip.
            name = row["Video name"].strip()
            subset = LOVEU_SUBSETS.get(name, subset)
            if not name or name.endswith(":"):
                continue

            # Without a heading, the subset is the one that holds the clip.
            split = subset or next((s for s, index in indices.items() if name in index), None)
            clip = indices.get(split, {}).get(name)
            prompts = {kind: (row.get(c) or "").strip() for kind, c in LOVEU_EDITS.items()}
            edits = {kind: prompt for kind, prompt in prompts.items() if prompt}
            entry = Entry(name, clip, tidied([row[LOVEU_CAPTION]]), split, edits)
            entries.setdefault((split, name), entry)
    return list(entries.values())


def _davis(folder: Path) -> list[Entry]:
    # Take the frames at 480p, or at another resolution if 480p is absent.
    folders = [path for path in (folder / "JPEGImages").glob("*") if path.is_dir()]
    resolutions = sorted(folders, key=lambda path: (path.name != "480p", path.name))
    if not resolutions:
        raise InputError(
            f"{folder} holds no JPEGImages/480p/NAME/: put the frames there or choose another"
            " layout."
        )

    # A line of a split is a name (2017), or the paths of a frame and of its mask (480p).
    splits = {}
    for path in sorted(p for d in ("2017", "480p") for p in folder.glob(f"ImageSets/{d}/*.txt")):
        if path.stem in ("train", "val"):
            for line in read_lines(path):
                words = line.split()
                name = words[0].split("/")[-2] if words and "/" in words[0] else "".join(words)
                splits.setdefault(name, path.stem)
    splits.pop("", None)

    clips = _clips(resolutions[0], lambda path: path.name)
    clips |= {name: None for name in splits if name not in clips}
    captions = read_captions(folder, clips)
    return [Entry(name, clips.get(name), c, splits.get(name)) for name, c in captions.items()]


def _folder(folder: Path) -> list[Entry]:
    clips = _clips(folder, lambda path: path.relative_to(folder).as_posix())
    return [Entry(name, clips.get(name), c) for name, c in read_captions(folder, clips).items()]


def _marked(*patterns: str):
    """Return a test whether a folder, or a folder in it, holds one of these files."""
    return lambda folder: any(_find(folder, patterns))


LAYOUTS = {  # name: (test of a folder, reader)
    "msrvtt": (_marked(*MSRVTT_FILES), _msrvtt),
    "loveu": (_marked(*LOVEU_FILES), _loveu),
    "davis": (lambda folder: (folder / "JPEGImages").is_dir(), _davis),
    "folder": (lambda folder: True, _folder),
}


def _find(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = (p for name in patterns for up in ("", "*/") for p in sorted(folder.glob(up + name)))
    return [path for path in found if path.is_file()]


def _require(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    files = _find(folder, patterns)
    if not files:
        raise InputError(f"{folder} holds no {' or '.join(patterns)}: choose another layout.")
    return files


def _clips(folder: Path, key) -> dict[str, Path]:
    """Find videos and folders of pictures: {key of the path without suffix: path}.

    If both exist, the video counts. An animated picture is a video. Hidden files, devices, and
    single pictures in the folder itself do not count.
    """
    videos, pictures = {}, {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        suffix = path.suffix.lower()
        if hidden or suffix not in VIDEOS | PICTURES or not path.is_file():
            continue
        if suffix in VIDEOS or is_animated(path):
            videos.setdefault(key(path.with_suffix("")), path)
        elif path.parent != folder:
            pictures.setdefault(key(path.parent), path.parent)
    return dict(sorted((pictures | videos).items()))
