"""Recognise a data set in a later run, by parts of its files; no video or picture is read whole."""

import hashlib
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

END = 2**16  # bytes at either end of a file
PART = 2**12  # bytes at either end of a picture; a PNG ends with a checksum of its pixels


def samples_identity(
    sampling: Any, size: tuple[int, int] | None, clips: Iterable[tuple[Any, Path]]
) -> dict[str, Any]:
    """What decides the samples of a data set, in plain values.

    sampling: GroupSampling. clips: what is known of each clip, and its file or folder.
    """
    return {
        "frames": sampling.n_frames, "stride": sampling.stride, "caption": sampling.caption,
        "seed of the draws": sampling.seed, "size": None if size is None else list(size),
        "data": data_digest(clips),
    }  # fmt: skip


def data_digest(clips: Iterable[tuple[Any, Path | None]]) -> str:
    """Return a digest of clips: of what is known of each, and of its file, folder or shard."""
    state = hashlib.sha256()
    for about, path in clips:
        state.update(repr(about).encode())
        try:
            for part in () if path is None else _parts(path):
                state.update(part)
        except OSError:  # it is missing
            state.update(b"-")
    return state.hexdigest()[:16]


def _parts(path: Path) -> Iterator[bytes]:
    """Yield names, sizes and both ends of the files of a clip or of a shard."""
    if path.is_dir():
        for file in sorted(p for p in path.iterdir() if p.is_file()):
            with file.open("rb") as opened:
                yield file.name.encode()
                yield _ends(opened, 0, file.stat().st_size, PART)
        return
    yield path.name.encode()
    with path.open("rb") as opened:
        yield _ends(opened, 0, path.stat().st_size, END)
        if path.suffix != ".tar":
            return
        opened.seek(0)
        try:
            with tarfile.open(fileobj=opened, mode="r:") as tar:
                members = [(m.name, m.offset_data, m.size) for m in tar]
        except tarfile.TarError:  # its reader will name the damage
            return
        for name, start, size in members:
            yield name.encode()
            yield _ends(opened, start, size, size if name.endswith(".json") else PART)


def _ends(file: BinaryIO, start: int, size: int, n: int) -> bytes:
    """Return the size of a part of a file, and at most n bytes from either end of it."""
    file.seek(start, os.SEEK_SET)
    head = file.read(min(n, size))
    file.seek(max(file.tell(), start + size - n), os.SEEK_SET)
    return b"%d " % size + head + file.read(max(0, start + size - file.tell()))
