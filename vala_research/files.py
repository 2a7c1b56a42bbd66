"""Write a file, or several that belong together, whole or not at all; and lose nothing of a user's.

New files grow in a hidden folder beside their place, which names its process, and are renamed.
"""

import csv
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vala_research import InputError
from vala_research.temporary import NEW, OLD, sweep, temporary_folder

CONTENTS = ".vala-contents"  # lists the files of a folder that is an output: it makes it ours


def check_output(
    path: str | os.PathLike, is_folder: bool = False, makes_parents: bool = False
) -> Path:
    """Return the path if a file can be written there. Call it before long work.

    A file may replace a regular file. It goes through a symbolic link, and into a device like
    /dev/null. A folder may replace an empty folder, or one that `written_whole` wrote and to which
    nobody has added.
    makes_parents: makes the folder that the file is for, if need be.
    Raises InputError for anything else, and for a name or a place that the system refuses.
    """
    path = Path(path)
    with _refusing(path):
        if makes_parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        place = _place(path, is_folder)
        if not place.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; create it first.")

        # The system itself says whether it takes the name, and has room for one block.
        if not place.is_char_device():
            sweep(place.parent)
            with temporary_folder(place.parent) as folder:
                (folder / NEW / place.name).write_bytes(bytes(4096))
    return path


def _place(path: Path, is_folder: bool) -> Path:
    """Find where a path leads; refuse to replace what is not ours. See `check_output`."""
    if path.name in ("", "..") or "\0" in str(path):
        raise InputError(f"{str(path)!r} is no name for an output: give one.")
    place, mode = Path(os.path.realpath(path)), None
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = path.stat().st_mode
    if mode is not None and not os.access(path, os.W_OK):
        raise InputError(f"{path} is read-only: choose another name.")
    if mode is None or (not is_folder and (stat.S_ISREG(mode) or stat.S_ISCHR(mode))):
        return place
    if not stat.S_ISDIR(mode):
        kind = "file" if stat.S_ISREG(mode) else "pipe or a device"
        raise InputError(f"{path} is a {kind}: choose another name.")
    if is_folder and (place.is_mount() or place == Path.cwd()):  # these cannot be renamed
        raise InputError(f"{path} is in use as a folder: give the name of a new one inside it.")
    if not is_folder:
        raise InputError(f"{path} is a folder: give the name of a file.")

    # Whatever is not in the folder's own list is a user's.
    known = {CONTENTS}
    with suppress(FileNotFoundError):
        known |= set((place / CONTENTS).read_text("utf-8").splitlines())
    foreign = [p.name for p in place.iterdir() if p.name not in known or p.is_dir()]
    if foreign:
        raise InputError(
            f"{path} is a folder with other files in it ({min(foreign)}): choose another name."
        )
    return place


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn an error of the system into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be written ({reason}): choose another place.") from error


@contextmanager
def written_together(*paths: Path, is_folder: bool = False) -> Iterator[list[Path]]:
    """Yield names to write to, for `paths`, whose folder is made if need be.

    On success they are renamed to `paths`; on any failure `paths` stay as they were. The last of
    several vouches for the others: it goes first and comes last, so that no mixture of old and new
    files looks complete. An old file keeps its mode.
    is_folder: the names are of folders, which the caller makes.

    Raises InputError for paths that `check_output` refuses, or if a file cannot be written.
    """
    with _refusing(paths[0] if len(paths) == 1 else paths[0].parent), ExitStack() as stack:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        places = [_place(path, is_folder) for path in paths]

        # A device has no room for files beside it.
        parents = [Path(tempfile.gettempdir()) if p.is_char_device() else p.parent for p in places]
        for parent in set(parents):
            sweep(parent)
        folders = {parent: stack.enter_context(temporary_folder(parent)) for parent in set(parents)}
        kept = [folders[parent] for parent in parents]
        unfinished = [k / NEW / p.name for k, p in zip(kept, places, strict=True)]
        yield unfinished

        for new in unfinished:
            if is_folder:
                names = sorted(p.name for p in new.iterdir())
                (new / CONTENTS).write_text("".join(f"{name}\n" for name in names), "utf-8")
        places = [_place(path, is_folder) for path in paths]  # again: the work may have been long
        _replace(unfinished, places)


def _replace(unfinished: list[Path], places: list[Path]) -> None:
    """Put new files where they belong; a failure leaves the old ones."""
    for new, place in zip(unfinished, places, strict=True):
        with suppress(PermissionError):  # some network drives have no modes
            if place.exists():
                shutil.copymode(place, new)
            elif new.is_file():  # some writers make files that nobody else can read
                new.chmod(new.parent.stat().st_mode & 0o666)

    # One file is replaced in one step.
    if len(places) == 1 and not places[0].is_dir():
        try:
            if places[0].is_char_device():
                shutil.copyfile(unfinished[0], places[0])
            else:
                os.replace(unfinished[0], places[0])
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EPERM, errno.EACCES):
                raise
            shutil.copyfile(unfinished[0], places[0])  # a file that is mounted, for example
        return

    # Otherwise the old are renamed aside, the last first, and the new renamed in.
    aside = [new.parent.with_name(OLD) / new.name for new in unfinished]
    moves = [m for m in zip(places, aside, strict=True) if m[0].exists()][::-1]
    moves += zip(unfinished, places, strict=True)
    done = []
    try:
        for old in aside:
            old.parent.mkdir(exist_ok=True)
        for source, target in moves:
            os.rename(source, target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            os.rename(target, source)
        raise
    for old in aside:
        shutil.rmtree(old.parent, ignore_errors=True)


@contextmanager
def written_whole(path: Path, is_folder: bool = False) -> Iterator[Path]:
    """Yield a name to write to, as `written_together` does, for one file or folder."""
    with written_together(path, is_folder=is_folder) as (unfinished,):
        yield unfinished


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8; return its path."""
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: Any, indent: int = 2) -> Path:
    """Write plain values as JSON; return the file's path."""
    return write_text(path, json.dumps(content, indent=indent) + "\n")


def write_rows(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> Path:
    """Write one csv line per row; return the file's path.

    columns: the order of the columns (default: that of the first row). A row may lack some.
    """
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, rows[0] if columns is None else columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tensors(
    path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None
) -> Path:
    """Write tensors, copied to the CPU, as safetensors; return the file's path."""
    from safetensors.torch import save_file

    stored = {k: x.detach().cpu().contiguous().clone() for k, x in tensors.items()}
    with written_whole(path) as unfinished:
        save_file(stored, unfinished, metadata)
    return path
