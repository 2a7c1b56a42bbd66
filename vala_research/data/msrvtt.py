"""MSR-VTT (Xu et al., CVPR 2016), with the lists of CLIP4Clip (Luo et al., 2022) if they are there.

CLIP4Clip trains on 9000 (or 7010) videos with all their captions, and tests on 1000 videos, split
1k-A of JSFusion, with one caption each.
"""

import re
import warnings
from dataclasses import replace
from pathlib import Path

from vala_research import InputError
from vala_research.data.entries import Entry, clips_in, find_files, require
from vala_research.data.nested import CAPTION_COLUMNS, tidied, value_of
from vala_research.data.tables import read_csv, read_json

CAPTIONS = (
    "train_val_videodatainfo.json", "test_videodatainfo.json", "videodatainfo_2017.json",
    "MSRVTT_data.json",
)  # fmt: skip
LISTS = {  # pattern of a csv: (name of its split, split of MSR-VTT that it stands for)
    "MSRVTT*9k*.csv": ("9k", "train"), "MSRVTT*7k*.csv": ("7k", "train"),
    "MSRVTT*JSFUSION*.csv": ("1k-A", "test"),
}  # fmt: skip
MSRVTT_FILES = (*CAPTIONS, *LISTS)


def read_msrvtt(folder: Path) -> list[Entry]:
    """List the videos of the caption files, then those that only a list of CLIP4Clip names."""
    require(folder, MSRVTT_FILES)
    clips, entries = clips_in(folder, key=lambda path: path.name), {}
    for path in find_files(folder, CAPTIONS):
        # The captions of a video do not stand together: collect them by name.
        videos, sentences = _lists(path)
        splits = {str(v["video_id"]): v.get("split") for v in videos}
        captions = {name: [] for name in splits}
        for sentence in sentences:
            captions.setdefault(str(sentence["video_id"]), []).append(sentence["caption"])

        # If several files name a video, the first one counts.
        for name, texts in captions.items():
            split = splits.get(name)
            entry = Entry(name, clips.get(name), tidied(texts), split and str(split))
            entries.setdefault(name, entry)

    # Add the splits of the lists. A list's own caption is the only one of its split.
    for pattern, (split, stands_for) in LISTS.items():
        for path in find_files(folder, (pattern,)):
            for name, texts in _listed(path).items():
                known = entries.get(name) or Entry(name, clips.get(name), tidied(texts), stands_for)
                also = known.also | {split: tidied(texts) or known.captions}
                entries[name] = replace(known, also=also)
    if entries and not any(e.captions for e in entries.values()):
        raise InputError(f"{folder} names videos of MSR-VTT without captions: add {CAPTIONS[-1]}.")
    return list(entries.values())


def _listed(path: Path) -> dict[str, list]:
    """Read a list of CLIP4Clip: {video: captions}; the lists for training hold no captions."""
    texts: dict[str, list] = {}
    for row in read_csv(path, "video_id"):
        if name := row["video_id"].strip():
            texts.setdefault(name, []).append(value_of(row, CAPTION_COLUMNS))
    return texts


def split_named(name: str) -> str:
    """Return CLIP4Clip's split for its usual names, such as train_9k or test_1kA."""
    plain = re.sub(r"^(msrvtt)?(train|test)|[^a-z0-9]", "", name.lower().replace("_", ""))
    known = {re.sub("[^a-z0-9]", "", split.lower()): split for split, _ in LISTS.values()}
    return known.get(plain, name)


def _lists(path: Path) -> tuple[list[dict], list[dict]]:
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
