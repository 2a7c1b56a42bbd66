"""A run owns its folder, and ends after a step when SIGTERM asks it to.

The lock file names its owner: process, host and the process's start. A lock whose owner is gone is
taken over, also when the number of its process belongs to another one now.
"""

import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from vala_research import InputError
from vala_research.temporary import SAME_START, runs

LOCK = ".lock"


class Stopped(SystemExit):
    """SIGTERM ended a training, after its checkpoint; a program that ends by it prints why."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block, keep all other runs out of a folder.

    Raises InputError while another run, or another thread of this process, holds it.
    """
    path, start = folder / LOCK, psutil.Process().create_time()
    owner = {"process": os.getpid(), "host": platform.node(), "start": start}
    check_unlocked(folder)
    with _alone(path):  # of two that find a dead owner, one takes over
        check_unlocked(folder)
        path.write_text(json.dumps(owner), "utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def check_unlocked(folder: Path) -> None:
    """Raise InputError if a run that may still be alive holds the folder."""
    path = folder / LOCK
    try:
        owner = json.loads(path.read_text("utf-8"))
        process, host, start = int(owner["process"]), str(owner["host"]), float(owner["start"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return  # none, or one that was cut off while it was written
    if host != platform.node() or runs(process, start):
        raise InputError(
            f"Another run trains in {folder} (process {process} on {host}): wait until it ends, or "
            f"choose another folder. If it has ended, delete {path}."
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Within the block, which is short, no other process is in such a block."""
    guard = path.with_name(f"{path.name}.taking")
    try:
        if time.time() - guard.stat().st_mtime > SAME_START:
            guard.unlink()  # its process was killed inside the block
    except FileNotFoundError:
        pass
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise InputError(f"Another run begins in {path.parent}: choose another folder.") from None
    try:
        yield
    finally:
        guard.unlink(missing_ok=True)


@contextmanager
def stop_asked() -> Iterator[Callable[[], bool]]:
    """Within the block, SIGTERM ends nothing; the function tells whether it has come.

    Only the main thread can listen. In any other thread, SIGTERM does what it did.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
