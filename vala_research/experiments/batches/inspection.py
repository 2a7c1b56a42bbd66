"""What a notebook takes: its parameters by papermill's inspection, and its experiment's own types.

Values are tried before anything runs.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from vala_research import InputError

OUTPUT = "output"  # the parameter that says where a notebook writes
PAPERS = ("vala", "fldm", "ge", "theory", "flow")


def find_notebook(name: str | Path, folder: str | Path | None = None) -> Path:
    """Return a notebook's path, from its path, its name or its number in a folder of notebooks.

    folder: by default `notebook_folder()`.
    """
    path = Path(name)
    if path.suffix == ".ipynb":
        if not path.is_file():
            raise InputError(f"There is no notebook {path}: give the path of one.")
        return path.resolve()
    known = sorted(Path(folder or notebook_folder()).glob("*.ipynb"))
    fitting = [p for p in known if p.stem == str(name) or p.stem.partition("_")[0] == str(name)]
    if len(fitting) != 1:
        numbers = ", ".join(p.stem.partition("_")[0] for p in known) or "none there"
        raise InputError(f"No notebook {str(name)!r}: give a path, or a number of {numbers}.")
    return fitting[0].resolve()


def notebook_folder() -> Path:
    """The folder `notebooks` of this checkout, or else of the working directory."""
    import vala_research

    beside = Path(vala_research.__file__).parents[1] / "notebooks"
    for folder in (beside, Path("notebooks"), Path()):
        if any(folder.glob("[0-9][0-9]_*.ipynb")):
            return folder
    raise InputError("No folder of notebooks is found: run in the checkout, or give --notebooks.")


def parameters_of(notebook: Path) -> dict[str, str]:
    """Return the notebook's parameters and their defaults, as papermill reads them.

    Raises InputError for a file that is no notebook, or has no cell tagged "parameters".
    """
    from papermill import inspect_notebook

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = inspect_notebook(str(notebook))
        except Exception as error:  # whatever nbformat says of a broken file
            reason = " ".join(str(error).split())[:100]
            raise InputError(f"{notebook} is no notebook ({reason}): give an .ipynb.") from None
    if not found:
        raise InputError(
            f"{notebook.name} has no parameters: tag the cell that sets them 'parameters'."
        )
    return {name: str(about["default"]) for name, about in found.items()}


def experiment_name(notebook: Path) -> str | None:
    """The module that a notebook shows, by its name: "21_fldm_alpha" is `fldm.alpha`."""
    number, _, name = notebook.stem.partition("_")
    paper, _, rest = name.partition("_")
    home = f"{paper}.{rest}" if paper in PAPERS else name
    module = f"vala_research.experiments.{home}"
    is_name = number.isdigit() and home.replace(".", "_").isidentifier()
    return module if is_name and find_spec(module) else None


def experiment_of(notebook: Path) -> ModuleType | None:
    """The experiment that a notebook shows; None: it is not one of ours."""
    name = experiment_name(notebook)
    return import_module(name) if name else None


def check_parameters(notebook: Path, cells: list[dict[str, Any]]) -> None:
    """Refuse unknown parameters and values of a wrong type.

    Types are those of the experiment's `Settings`, or else of the notebook's own defaults.
    """
    defaults = parameters_of(notebook)
    for name in dict.fromkeys(name for cell in cells for name in cell):
        if name == OUTPUT:
            raise InputError("output is no parameter of a grid: each cell gets its own folder.")
        if name not in defaults:
            known = ", ".join(n for n in defaults if n != OUTPUT)
            raise InputError(f"{notebook.name} has no parameter {name!r}: choose one of {known}.")
    experiment = experiment_of(notebook)
    for cell in cells:
        for name, value in cell.items():
            _check_type(name, value, defaults[name])
        if experiment is not None:
            _try_settings(experiment, cell | {"preset": _preset(cell, defaults)})


def _preset(cell: Mapping[str, Any], defaults: Mapping[str, str]) -> str:
    return cell.get("preset", _literal(defaults.get("preset", "'smoke'")))


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):  # an expression
        return None


def _check_type(name: str, value: Any, default: str) -> None:
    """Refuse a value that is no text, number, list ... as the default is."""
    known = _literal(default)
    if known is None or value is None:
        return
    kinds = (int, float) if isinstance(known, float) else type(known)
    is_wrong_bool = isinstance(value, bool) != isinstance(known, bool)
    if not isinstance(value, kinds) or is_wrong_bool:
        kind = type(known).__name__
        raise InputError(f"{name} is {value!r} in the grid, but its default {default} is of type "
                         f"{kind}: give a value of that type.")  # fmt: skip


def _try_settings(experiment: ModuleType, cell: Mapping[str, Any]) -> None:
    """Make the experiment's settings, which check values too."""
    from dataclasses import fields

    own = {field.name for field in fields(experiment.Settings)} - {"preset_name"}
    given = {name: value for name, value in cell.items() if name in own}
    experiment.Settings.preset(cell["preset"], **given)
