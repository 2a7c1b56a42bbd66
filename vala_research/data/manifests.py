"""List the clips and captions of a data set on disk: four layouts, one manifest.

The layouts are MSR-VTT (Xu et al., CVPR 2016), LOVEU-TGVE-2023 (Wu et al., 2023), DAVIS
(Pont-Tuset et al., 2017), and any folder of clips.
"""

import os
from dataclasses import replace
from pathlib import Path

from vala_research import InputError, chosen_from
from vala_research.data.captions import read_captions
from vala_research.data.entries import Entry, clips_in, find_files, require
from vala_research.data.msrvtt import MSRVTT_FILES, read_msrvtt, split_named
from vala_research.data.nested import tidied
from vala_research.data.tables import read_csv, read_lines

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


def read_manifest(
    folder: str | os.PathLike, layout: str | None = None, split: str | None = None
) -> list[Entry]:
    """List the clips of a data set, in the order of its caption file, else by name.

    layout: "msrvtt", "loveu", "davis" or "folder". None takes the first whose files are there.

    * msrvtt: `train_val_videodatainfo.json`, `test_videodatainfo.json`, `videodatainfo_2017.json`
      or `MSRVTT_data.json` (lists `videos` of video_id, split and `sentences` of video_id,
      caption), in the folder or one below; videos are `VIDEO_ID.mp4` (or a folder of pictures)
      anywhere below. The lists of CLIP4Clip (`MSRVTT_train.9k.csv`, `MSRVTT_train.7k.csv`,
      `MSRVTT_JSFUSION_test.csv`) add splits; the last one holds captions itself.
    * loveu: `LOVEU-TGVE-2023_Dataset.csv`; clips `SUBSET/480p_videos/NAME.mp4`,
      `SUBSET/480p_frames/NAME/*.jpg`, or either anywhere below SUBSET.
    * davis: `JPEGImages/480p/NAME/*.jpg` (480p absent: another resolution), splits from
      `ImageSets/2017/*.txt` or `ImageSets/480p/*.txt`, captions as in a plain folder.
    * folder: video files and folders of pictures at any depth; captions from `captions.csv`
      (columns file | video | name, and caption | text; a row per caption), else `captions.json[l]`
      ({name: caption or list of captions}, a list of rows with such keys, or groups of either),
      else `metadata.csv` or `metadata.jsonl` (VideoFolder: file_name, and caption | text), else
      `prompts.txt` beside `videos.txt` (line by line), else `NAME.txt` (a caption per line) or
      `NAME.json` beside each clip, else the words of the clip's name, with a warning.

    split: keep this split only (msrvtt: train, validate, test; 9k, 7k, 1k-A of CLIP4Clip; loveu:
        name of the subset; davis: train, val).
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
    splits = {e.split for e in entries if e.split} | {s for e in entries for s in e.also}
    split = split if split in splits else split_named(split)
    if split not in splits:
        names = ", ".join(sorted(splits))
        remedy = f"choose one of {names}" if splits else "it has none, leave it out"
        raise InputError(f"{folder} has no split {split!r}: {remedy}.")
    return [
        replace(e, split=split, captions=e.also.get(split, e.captions))
        for e in entries
        if e.split == split or split in e.also
    ]


def _loveu(folder: Path) -> list[Entry]:
    entries, subset = {}, None
    indices = {s: clips_in(folder / s, lambda p: p.name) for s in LOVEU_SUBSETS.values()}
    for path in require(folder, LOVEU_FILES):
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

    clips = clips_in(resolutions[0], lambda path: path.name)
    clips |= {name: None for name in splits if name not in clips}
    captions = read_captions(folder, clips)
    return [Entry(name, clips.get(name), c, splits.get(name)) for name, c in captions.items()]


def _folder(folder: Path) -> list[Entry]:
    clips = clips_in(folder, lambda path: path.relative_to(folder).as_posix())
    return [Entry(name, clips.get(name), c) for name, c in read_captions(folder, clips).items()]


def _marked(*patterns: str):
    """Return a test whether a folder, or a folder in it, holds one of these files."""
    return lambda folder: any(find_files(folder, patterns))


LAYOUTS = {  # name: (test of a folder, reader)
    "msrvtt": (_marked(*MSRVTT_FILES), read_msrvtt),
    "loveu": (_marked(*LOVEU_FILES), _loveu),
    "davis": (lambda folder: (folder / "JPEGImages").is_dir(), _davis),
    "folder": (lambda folder: True, _folder),
}
