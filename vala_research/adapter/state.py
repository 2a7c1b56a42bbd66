"""A training's state is one safetensors file, and its log holds exactly the steps of that state."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from vala_research import InputError

STATE, LOG = "state.safetensors", "log.csv"


def write_state(
    path: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, facts: dict
) -> None:
    """Parameters, Adam's moments and `facts` (JSON), renamed into place: whole or as before."""
    tensors = {f"parameter.{i}": p for i, p in enumerate(parameters)}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{name}": x for name, x in moments.items()}
    tensors = {k: x.detach().cpu().contiguous().clone() for k, x in tensors.items()}
    meta = {"facts": json.dumps(facts)}
    _replace(path, lambda unfinished: save_file(tensors, unfinished, meta))


def read_state(
    path: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, expected: dict
) -> dict:
    """Put a state back; returns its facts, which must agree with `expected` where both have a key.

    Raises InputError, before anything is changed, for another run's state or a damaged file.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a training's state ({error}): delete it.") from error
    differ = [k for k, v in expected.items() if facts.get(k) != v]
    if differ:
        k = differ[0]
        raise InputError(
            f"{path.parent} holds a training with {k} {facts.get(k)} and not {expected[k]}: go on "
            "with the same settings, or choose another folder."
        )
    shapes = {f"parameter.{i}": p.shape for i, p in enumerate(parameters)}
    if any(k not in tensors or tensors[k].shape != shape for k, shape in shapes.items()):
        raise InputError(
            f"{path.parent} holds a training of another adapter: choose another folder."
        )
    moments: dict[int, dict] = {}
    for key, value in tensors.items():
        kind, index, *name = key.split(".", 2)
        if kind == "parameter":
            parameters[int(index)].data.copy_(value)
        else:
            moments.setdefault(int(index), {})[name[0]] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return facts


class Log:
    """A csv of one row a step; opened at a step, it forgets the rows after that."""

    def __init__(self, path: Path, columns: tuple[str, ...], step: int):
        self.path, self.columns = path, columns
        kept = [r for r in _rows(path) if r.get("step", "").isdigit() and int(r["step"]) <= step]

        def rewrite(unfinished: Path) -> None:
            with unfinished.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows({c: r[c] for c in columns} for r in kept)

        _replace(path, rewrite)

    def add(self, row: dict[str, Any]) -> None:
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [r for r in csv.DictReader(file) if None not in r.values()]


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    unfinished = path.with_name(f".{path.stem}.{uuid4().hex[:8]}{path.suffix}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}).") from error
    finally:
        unfinished.unlink(missing_ok=True)
