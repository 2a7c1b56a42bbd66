"""Processes of their own, forked from one that imported torch and diffusers and computed nothing.

Importing them takes 12 s of processor time: here once for all processes that a worker needs.
"""

import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

FRESH = get_context("forkserver")
FRESH.set_forkserver_preload([
    "vala_research.adapter.training", "vala_research.evaluation.comparison",
    "vala_research.cli.train", "vala_research.data.shards",
])  # fmt: skip


def started(
    function: Callable, *arguments: Any, log: str | Path = os.devnull, **environment: str
) -> BaseProcess:
    """Start function(*arguments) in a process of its own, which must be able to import it.

    log: file that takes what it writes.
    """
    process = FRESH.Process(target=_called, args=(function, arguments, log, environment))
    process.start()
    return process


def _called(function: Callable, arguments: tuple, log: str | Path, environment: dict) -> None:
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    function(*arguments)


def killed(n_frames: int) -> None:
    """Stands for an edit that runs out of memory; in this file, which imports next to nothing."""
    os.kill(os.getpid(), signal.SIGKILL)
