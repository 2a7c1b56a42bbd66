"""Convert a data set to WebDataset shards: tar files of pictures and JSON, each written whole.

Format: https://github.com/webdataset/webdataset; `streaming.py` reads it. A sample is a piece
of a clip: `KEY.0000.png` ... beside `KEY.json` (name, start, captions, split, edits).
Differs from GE-Adapter's released shards, which hold pickles (`.pyd`) of pairs of frames.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from vala_research import InputError, chosen_from
from vala_research.data.clips import check_at_least, iter_frames
from vala_research.data.datasets import count_frames, summarised
from vala_research.data.identity import data_digest
from vala_research.data.manifests import Entry, read_manifest
from vala_research.files import write_json, written_whole
from vala_research.temporary import TEMPORARY, sweep

INDEX = "shards.json"
SAVE = {"png": {}, "jpg": {"quality": 95, "subsampling": 0}}
FORMATS = {"png": "PNG", "jpg": "JPEG"}


@dataclass(frozen=True)
class ShardSettings:
    """Settings of a conversion.

    size: size of the frames, see `read_clip`; None keeps the size of each clip.
    picture: "png" (exact) or "jpg" (quality 95, about a third of the bytes).
    piece: maximum number of frames per sample, at least 2; a group lies within a piece.
    pieces_per_clip: maximum number of pieces per clip, evenly spaced (None: the whole clip).
    clips_per_shard: clips per tar file. An interruption loses less than one shard.
    """

    size: tuple[int, int] | int | None = None
    picture: str = "png"
    piece: int = 32
    pieces_per_clip: int | None = None
    clips_per_shard: int = 64

    def __post_init__(self):
        chosen_from("picture", self.picture, FORMATS)
        check_at_least(2, piece=self.piece)
        check_at_least(
            1, pieces_per_clip=self.pieces_per_clip, clips_per_shard=self.clips_per_shard
        )


def convert(
    data: str | os.PathLike,
    output: str | os.PathLike,
    settings: ShardSettings = ShardSettings(),
    layout: str | None = None,
    split: str | None = None,
    strict: bool = False,
) -> str:
    """Write a data set (see `read_manifest`) as shards into a folder.

    Shards are written whole and in order, so the same call resumes an interrupted conversion.
    strict: the first clip that cannot be read raises InputError. Otherwise it is left out;
        `shards.json` and the summary name it.
    Returns the summary.
    Raises InputError if the folder holds other files or another conversion, or if no clip is
    readable.
    """
    entries, folder = read_manifest(data, layout, split), Path(output)
    was_there, was_begun = os.path.exists(folder), os.path.exists(folder / INDEX)
    try:
        skipped = _convert(entries, folder, settings, strict)
        if strict and skipped:
            text = summarised(len(entries), skipped)
            raise InputError(f"{folder} was begun without strictness: {text}")

        # A conversion without any clip leaves no shards.
        if len(skipped) == len(entries):
            for number in range(len(read_index(folder)["shards"])):
                shard_path(folder, number).unlink()
            (folder / INDEX).unlink()
            raise InputError(f"No clip can be read. {summarised(len(entries), skipped)}")
    except InputError:
        with suppress(OSError):  # whole shards stay, and the folder with them
            if not was_begun and not shard_path(folder, 0).exists():
                (folder / INDEX).unlink(missing_ok=True)
            if not was_there:
                folder.rmdir()
        raise
    return summarised(len(entries), skipped)


def _convert(entries: list[Entry], folder: Path, settings, strict: bool) -> dict[str, str]:
    """Write the missing shards. Returns the clips that all shards lack: {name: reason}."""
    # Through JSON, so that the plan equals the one that the index file holds.
    about = ((e.name, e.captions, e.split, sorted(e.edits.items())) for e in entries)
    source = data_digest(zip(about, (e.path for e in entries), strict=True))
    plan = json.loads(json.dumps({"settings": asdict(settings), "source": source}))
    parts = [
        entries[i : i + settings.clips_per_shard]
        for i in range(0, len(entries), settings.clips_per_shard)
    ]

    # Write each shard whole, then the index that counts it.
    plan |= {"n_shards": len(parts)}
    done = _begun(folder, plan)
    with tqdm(total=len(entries), desc="clips", disable=None) as bar:
        bar.update(sum(shard["clips"] for shard in done))
        for number in range(len(done), len(parts)):
            first = number * settings.clips_per_shard
            with written_whole(shard_path(folder, number)) as unfinished:
                done.append(_write(unfinished, parts[number], first, settings, strict, bar))
            write_json(folder / INDEX, plan | {"shards": done}, indent=1)
    return skipped_clips(done)


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of a shard."""
    return folder / f"shard-{number:05d}.tar"


def skipped_clips(shards: list[dict]) -> dict[str, str]:
    """Merge the clips that the shards lack: {name: reason}."""
    return {name: reason for shard in shards for name, reason in shard["skipped"].items()}


def _begun(folder: Path, plan: dict) -> list[dict]:
    """Return the shards that an earlier call with the same plan has finished."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}): choose another.") from error

    # The index comes before the first shard: a folder without it is not ours.
    sweep(folder)
    if not (folder / INDEX).exists():
        others = [p.name for p in folder.iterdir() if not TEMPORARY.fullmatch(p.name)]
        if others:
            raise InputError(f"{folder} holds other files ({others[0]}): give an empty folder.")
        write_json(folder / INDEX, plan | {"shards": []}, indent=1)
        return []

    # A missing shard is written again, and all shards after it.
    state = read_index(folder)
    if {key: state.get(key) for key in plan} != plan:
        raise InputError(f"{folder} holds shards of other clips or settings: give an empty folder.")
    n_shards = len(state["shards"])
    missing = (i for i in range(n_shards) if not shard_path(folder, i).exists())
    return state["shards"][: next(missing, n_shards)]


def read_index(folder: Path) -> dict:
    """Read the index: `shards` written so far (clips, pieces, skipped), and `n_shards` in all."""
    try:
        if not (folder / INDEX).is_file():
            raise OSError("it is no file")
        state = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        for shard in state["shards"]:
            int(shard["pieces"]), int(shard["clips"]), dict(shard["skipped"])
        return state | {"n_shards": int(state["n_shards"])}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{folder / INDEX} is damaged: convert into an empty folder.") from error


def _write(path: Path, entries: list[Entry], first: int, settings, strict: bool, bar) -> dict:
    """Write one shard. Returns its entry of the index: clips, pieces, skipped."""
    import webdataset

    pieces, skipped = 0, {}
    with path.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as out:
        for number, entry in enumerate(entries, first):
            try:
                samples = list(_samples(entry, number, settings))
            except InputError as error:
                if strict:
                    raise
                skipped[entry.name], samples = str(error), []
            for sample in samples:
                out.write(sample)
            pieces += len(samples)
            bar.update()
    return {"clips": len(entries), "pieces": pieces, "skipped": skipped}


def _samples(entry: Entry, number: int, settings: ShardSettings) -> Iterator[dict]:
    """Yield one sample per piece of a clip: {file name after the key: bytes}."""
    n_frames = count_frames(entry)
    if not entry.captions:
        raise InputError(f"{entry.name} has no caption: add one.")
    pieces = _pieces(n_frames, settings.piece, settings.pieces_per_clip)
    frames = enumerate(iter_frames(entry.path, pieces[-1][1], size=settings.size))
    clip = {"name": entry.name, "captions": entry.captions, "split": entry.split}

    # One pass over the frames serves all pieces, since these are in order.
    for k, (start, stop) in enumerate(pieces):
        sample = {"__key__": f"{number:06d}-{k:04d}"}
        for i, frame in frames:
            if i >= start:
                sample[f"{i - start:04d}.{settings.picture}"] = _encoded(frame, settings.picture)
            if i == stop - 1:
                break
        else:
            raise InputError(f"{entry.path} has fewer frames than its packets say: convert it.")
        about = clip | {"start": start, "edits": entry.edits}
        yield sample | {"json": json.dumps(about).encode()}


def _pieces(n_frames: int, longest: int, most: int | None) -> list[tuple[int, int]]:
    """Split frames into pieces [start, stop) of nearly equal length, so that none is very short.

    most: maximum number of pieces; those in the middle of `most` equal parts are kept.
    """
    n = -(-n_frames // longest)
    pieces = list(pairwise(n_frames * i // n for i in range(n + 1)))
    if most is None or most >= n:
        return pieces
    return [pieces[(2 * i + 1) * n // (2 * most)] for i in range(most)]


def _encoded(frame: torch.Tensor, picture: str) -> bytes:
    pixels, out = frame.mul(255).round().byte().permute(1, 2, 0).numpy(), BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, FORMATS[picture], **SAVE[picture])
    return out.getvalue()
