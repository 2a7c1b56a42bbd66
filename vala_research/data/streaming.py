"""Stream groups of frames from shards; only pictures and JSON are decoded.

https://github.com/webdataset/webdataset reads the tar files. Its decoders and its URLs are not
used: the decoders unpickle, and a URL may run a command.
"""

import json
import os
import re
import tarfile
import warnings
from collections.abc import Iterator
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from vala_research import InputError
from vala_research.data.clips import as_sides
from vala_research.data.container import check_pixels
from vala_research.data.datasets import TRIPLES, ClipGroups, GroupSampling, summarised
from vala_research.data.identity import samples_identity
from vala_research.data.manifests import read_manifest
from vala_research.data.sampling import as_frame
from vala_research.data.shards import FORMATS, INDEX, read_index, shard_path, skipped_clips
from vala_research.frames import fit_to_size

PICTURE = re.compile(r"\d{4,}\.(png|jpg)")
UNREADABLE = (
    tarfile.TarError, EOFError, OSError, SyntaxError, ValueError, LookupError, TypeError,
    RecursionError, OverflowError, Image.DecompressionBombError,
)  # fmt: skip


def open_groups(
    data: str | os.PathLike,
    sampling: GroupSampling = TRIPLES,
    size: int | tuple[int, int] | None = None,
    n_samples: int | None = None,
    layout: str | None = None,
    split: str | None = None,
    strict: bool = False,
) -> "ClipGroups | ShardGroups":
    """Open the groups of a data set on disk, or of its shards.

    n_samples: number of samples of a data set (None: one per clip). Shards are streamed without end
        if it is given, and once if it is None.
    """
    if not (Path(data) / INDEX).exists():
        entries = read_manifest(data, layout, split)
        return ClipGroups(entries, sampling, size, n_samples, strict)
    if layout is not None or split is not None:
        raise InputError(f"{data} holds shards: choose layout and split in their conversion.")
    return ShardGroups(data, sampling, size, 1 if n_samples is None else None, strict=strict)


class ShardGroups(IterableDataset):
    """Stream of the groups of `ClipGroups` from shards: each pass draws one group per piece.

    n_passes: number of passes over the shards (None: without end).
    buffer: number of samples in the shuffling buffer; the shards are shuffled too.
    strict: a shard or piece that cannot be used raises InputError. Otherwise it is left out with a
        warning, and the next one stands in for damaged pictures; `damaged`, in the process that
        reads, names it.

    The draw of frames and caption depends on the seed, the pass and the piece alone.
    The workers of a loader share the decoding, in blocks of `block` samples. If that is the
    loader's batch size, any number of workers gives the same batches in the same order. Every
    worker and every process reads all shards: accelerate splits the batches among processes.
    A file in a shard that is neither picture nor JSON, such as a pickle, always raises InputError.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        sampling: GroupSampling = TRIPLES,
        size: int | tuple[int, int] | None = None,
        n_passes: int | None = 1,
        buffer: int = 64,
        strict: bool = False,
    ):
        self.folder, self.sampling, self.n_passes = Path(folder), sampling, n_passes
        self.size, self.buffer, self.strict = as_sides(size), buffer, strict
        self.block = 1

        # Refuse an unfinished conversion.
        state = read_index(self.folder)
        if len(state["shards"]) < state["n_shards"]:
            raise InputError(
                f"{folder} holds {len(state['shards'])} of {state['n_shards']} shards: its"
                " conversion was cut off; repeat the command to finish it."
            )

        self.n_pieces = [shard["pieces"] for shard in state["shards"]]
        self.n_clips = sum(shard["clips"] for shard in state["shards"])
        self.skipped, self.damaged = skipped_clips(state["shards"]), {}

    def identity(self) -> dict[str, Any]:
        """What a later training must share: shards and sampling, in plain values."""
        shards = [(n, shard_path(self.folder, i)) for i, n in enumerate(self.n_pieces)]
        return samples_identity(self.sampling, self.size, shards) | {"buffer": self.buffer}

    def summary(self) -> str:
        """Say in one line how many clips are used, and which clips and pieces are skipped."""
        text = summarised(self.n_clips, self.skipped)
        if not self.damaged:
            return text
        reasons = "; ".join(self.damaged.values())
        return f"{text} {len(self.damaged)} pieces or shards skipped: {reasons}"

    def __iter__(self) -> Iterator[dict]:
        from webdataset.filters import shuffle

        # Worker i of n decodes every n-th block of samples, from the i-th on.
        worker = get_worker_info()
        index, n_workers = (worker.id, worker.num_workers) if worker else (0, 1)

        place = 0  # of a sample in the stream, which is the same for any number of workers
        missing, n_failed = 0, 0  # groups that are due; samples that failed since the last group
        for number in count() if self.n_passes is None else range(self.n_passes):
            rng, shards = self.sampling.generator("pass", number), list(range(len(self.n_pieces)))
            rng.shuffle(shards)
            drawn = (d for i in shards for d in self._drawn(i, number))

            # Decode after shuffling, so that the buffer holds compressed pictures. The next group
            # stands in for one that is damaged, also where another worker decodes it.
            first = place
            for sample in shuffle(max(1, self.buffer), rng=rng)(drawn):
                missing += place // self.block % n_workers == index
                place += 1
                if not missing:
                    continue
                if (group := self._decoded(*sample)) is None:
                    n_failed += 1
                    continue
                yield from (dict(group) for _ in range(missing))
                missing, n_failed = 0, 0

            # Passes without a group would repeat for ever.
            if n_failed >= place - first:
                raise InputError(f"{self.folder}: no group can be drawn. {self.summary()}")

    def _drawn(self, shard: int, number: int) -> Iterator[tuple]:
        """Draw one group per piece of a shard: (place, key, pictures, {caption, name, start})."""
        from webdataset.tariterators import group_by_keys, tar_file_expander

        path, n_pieces = shard_path(self.folder, shard), 0
        try:
            if path.exists() and not path.is_file():
                raise OSError("it is no file")
            with path.open("rb") as stream:
                files = tar_file_expander([{"url": str(path), "stream": stream}])
                for sample in group_by_keys(files):
                    n_pieces += 1
                    if (drawn := self._draw(path, sample, number)) is not None:
                        yield drawn
            if n_pieces < self.n_pieces[shard]:  # a tar file may end early without an error
                raise EOFError(f"{n_pieces} of {self.n_pieces[shard]} pieces are there")
        except InputError:
            raise
        except UNREADABLE as error:
            self._skip(path.name, f"{path} is damaged ({type(error).__name__}): convert again.")

    def _draw(self, path: Path, sample: dict, number: int) -> tuple | None:
        """Draw a group from a piece, still compressed; None if the piece is skipped."""
        # Refuse every file that is neither picture nor JSON.
        key = sample.pop("__key__")
        files = {k: v for k, v in sample.items() if not k.startswith("__")}
        for name in files:
            if name != "json" and not PICTURE.fullmatch(name):
                raise InputError(
                    f"{path} holds {key}.{name}: a shard holds pictures and JSON only, nothing"
                    " else is read; make shards with `vala shards`."
                )

        # Read the piece's name, captions and first frame.
        where = f"{path}, {key}"
        try:
            about = json.loads(files.pop("json"))
            captions, first, name = tuple(about["captions"]), int(about["start"]), about["name"]
            if not all(isinstance(text, str) for text in (name, *captions)):
                raise TypeError("a name or caption is not text")
        except UNREADABLE:
            return self._skip(key, f"{where}: its JSON is damaged.")

        # Draw the frames and the caption.
        if reason := self.sampling.refusal(len(files), captions):
            return self._skip(key, f"{where}: {name} {reason}.")
        rng = self.sampling.generator(number, key)
        start, caption = self.sampling.draw(rng, len(files), captions)
        names = sorted(files)[start : start + self.sampling.span : self.sampling.stride]
        about = {"caption": caption, "name": name, "start": first + start}
        return where, key, [files[n] for n in names], about

    def _decoded(self, where: str, key: str, pictures: list[bytes], about: dict) -> dict | None:
        """Decode the pictures of a group to a sample; None if one is damaged."""
        try:
            frames = torch.stack([_picture(data) for data in pictures])
        except (*UNREADABLE, RuntimeError):  # RuntimeError: the pictures differ in size
            return self._skip(key, f"{where}: a picture is damaged.")
        return {"frames": fit_to_size(frames, self.size) if self.size else frames} | about

    def _skip(self, name: str, reason: str) -> None:
        if self.strict:
            raise InputError(f"{reason.rstrip('.')}; convert again or read without strictness.")
        if name not in self.damaged:
            warnings.warn(f"skipped: {reason}", stacklevel=2)
        self.damaged[name] = reason


def _picture(data: bytes) -> torch.Tensor:
    with Image.open(BytesIO(data), formats=tuple(FORMATS.values())) as picture:
        check_pixels(Path("a picture"), *picture.size)
        return as_frame(np.array(picture.convert("RGB")))
