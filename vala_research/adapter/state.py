"""A training's state is one safetensors file, and its log holds exactly the steps of that state."""

import csv
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vala_research import InputError
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
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
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

    for i, parameter in enumerate(parameters):
        parameter.data.copy_(tensors[f"parameter.{i}"])
    restore_moments(optimizer, tensors)
    return facts


class Log:
    """A csv file with one row per step. Opened at a step, it drops the rows after that step."""

    def __init__(self, path: Path, columns: tuple[str, ...], step: int):
        self.path, self.columns = path, columns
        known = [r for r in _rows(path) if r.get("step", "").isdigit() and int(r["step"]) <= step]
        write_rows(path, [{c: r[c] for c in columns} for r in known], columns)

    def add(self, row: dict[str, Any]) -> None:
        """Append the row of a step."""
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)


def _rows(path: Path) -> list[dict[str, str]]:
    """All complete rows: a killed run may have left half a line."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [r for r in csv.DictReader(file) if None not in r.values()]
