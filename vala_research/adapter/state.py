"""A training's state is one safetensors file, and its log holds exactly the steps of that state."""

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vala_research import InputError, number_in
from vala_research.adapter.storage import DESCRIPTION, check_finite
from vala_research.files import write_rows, write_tensors

STATE, LOG = "state.safetensors", "log.csv"


def write_checkpoint(
    path: Path, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer | None, facts: dict
) -> None:
    """Write tensors, Adam's moments (adam.<parameter>.<name>) and `facts` (JSON) to one file."""
    state = {} if optimizer is None else optimizer.state_dict()["state"]
    moments = {f"adam.{i}.{k}": x for i, held in state.items() for k, x in held.items()}
    write_tensors(path, tensors | moments, {"facts": json.dumps(facts)})


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read the tensors and facts of `write_checkpoint`. Raises InputError for a damaged file."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - no mapping
        number_in("step", facts["step"], 0, 10**9, whole=True)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a training's state ({error}): delete it.") from error
    return tensors, facts


def restore_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer the Adam moments among the tensors of a checkpoint."""
    moments: dict[int, dict] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".", 2)
            moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def write_state(
    path: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, facts: dict
) -> None:
    """Write the state of an adapter's training: its parameters, Adam's moments and `facts`."""
    weights = {f"parameter.{i}": p for i, p in enumerate(parameters)}
    check_finite(weights)
    write_checkpoint(path, weights, optimizer, facts)


def read_state(
    path: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, expected: dict
) -> dict:
    """Restore a state. Returns its facts, which must agree with `expected` where both have a key.

    Raises InputError, before anything is changed, for another run's state or a damaged file.
    """
    tensors, facts = read_checkpoint(path)

    # Refuse the state of other settings or of another adapter.
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
    for i, p in enumerate(parameters if facts["step"] else ()):
        shapes |= {f"adam.{i}.{k}": p.shape for k in ("exp_avg", "exp_avg_sq")}
        shapes[f"adam.{i}.step"] = torch.Size()
    found = {k: x.shape for k, x in tensors.items()}
    if found != shapes or not all(x.isfinite().all() for x in tensors.values()):
        raise InputError(f"{path} is not a training's state (it has other moments): delete it.")

    for i, parameter in enumerate(parameters):
        parameter.data.copy_(tensors[f"parameter.{i}"])
    restore_moments(optimizer, tensors)
    return facts


def check_place(folder: Path) -> None:
    """Raise InputError if a training would write over what no training wrote."""
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"{folder} cannot be written: choose a folder that can.")
    if (folder / STATE).exists():
        return
    if (folder / DESCRIPTION).exists():
        raise InputError(
            f"{folder} holds an adapter and no training to go on with: choose another folder."
        )
    rows = _rows(folder / LOG)
    if rows and "step" not in rows[0]:
        raise InputError(f"{folder / LOG} is no training's log: choose another folder.")


@contextmanager
def saving(folder: Path, step: int) -> Iterator[None]:
    """Within the block, turn a failed write into one sentence."""
    try:
        yield
    except (OSError, SafetensorError, InputError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{folder} cannot be written at step {step} ({reason}): the checkpoint before is kept; "
            "free space, then repeat the command to go on."
        ) from error


class Log:
    """A csv file with one row per step. Opened at a step, it drops the rows after that step."""

    def __init__(self, path: Path, columns: tuple[str, ...], step: int):
        self.path, self.columns = path, columns
        known = [r for r in _rows(path) if r.get("step", "").isdigit() and int(r["step"]) <= step]
        write_rows(path, [{c: r.get(c, "") for c in columns} for r in known], columns)

    def add(self, row: dict[str, Any]) -> None:
        """Append the row of a step."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)


def _rows(path: Path) -> list[dict[str, str]]:
    """All complete rows: a killed run may have left half a line."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [r for r in csv.DictReader(file) if None not in r.values() and None not in r]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path} is no training's log ({error}): choose another folder."
        ) from error
