"""A hidden folder for unfinished files, which names its process; what killed processes left goes.

`sweep` is called wherever an output begins. It leaves the files of a process that still runs.
"""

import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil

TEMPORARY = re.compile(r"\.vala-([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}")  # host, process, its start
NEW, OLD = "new", "old"  # in a temporary folder: what is written, and what it replaces
SAME_START = 60  # seconds by which a clock that was set shifts the start of a process
ABANDONED = 7 * 86400  # seconds after which the files of another machine's process count as left


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a hidden folder, named after this process; remove it afterwards, but nothing old."""
    start = int(psutil.Process().create_time())
    folder = parent / f".vala-{_host()}-{os.getpid()}-{start}-{uuid4().hex[:8]}"
    try:
        (folder / NEW).mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder / NEW, ignore_errors=True)
        with suppress(OSError):  # an old file that could not be put back stays, for `sweep`
            if (folder / OLD).exists():
                (folder / OLD).rmdir()
            folder.rmdir()


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that are gone; finish what they began to rename."""
    for left in folder.glob(".vala-*"):
        owner = TEMPORARY.fullmatch(left.name)
        if owner is None or left.is_symlink() or not left.is_dir():
            continue
        with suppress(OSError):  # two processes may sweep at a time
            if not _is_at_work(left, *owner.groups()):
                _finish(left)
                shutil.rmtree(left)


def _finish(left: Path) -> None:
    """Complete a replacement that was killed between its first and its last renaming."""
    if not (left / OLD).is_dir():
        return
    for new in sorted((left / NEW).glob("*"), key=lambda p: p.stat().st_mtime_ns):
        if not left.with_name(new.name).is_dir():
            os.replace(new, left.with_name(new.name))
    for old in (left / OLD).glob("*"):  # there are some if they could not be put back
        if not left.with_name(old.name).exists():
            os.rename(old, left.with_name(old.name))


def _is_at_work(left: Path, host: str, process: str, start: str) -> bool:
    """Whether the process that made a temporary folder still runs."""
    if host != _host():  # its process cannot be asked
        return time.time() - left.stat().st_mtime < ABANDONED
    return runs(int(process), int(start))


def runs(process: int, start: float) -> bool:
    """Tell whether the process of this number and start, in seconds since 1970, still runs."""
    try:
        owner = psutil.Process(process)
        is_dead = owner.status() == psutil.STATUS_ZOMBIE
        return not is_dead and abs(owner.create_time() - start) < SAME_START
    except psutil.AccessDenied:
        return True
    except (psutil.Error, ValueError, OverflowError):
        return False


def _host() -> str:
    """Name this machine and its container, within which the numbers of processes are unique."""
    facts = platform.node()
    with suppress(OSError):  # Linux has these two
        facts += os.readlink("/proc/self/ns/pid")
        facts += Path("/etc/machine-id").read_text()
    return f"{zlib.crc32(facts.encode()):08x}"
