"""Text-driven video editing with image diffusion models: VALA, FLDM, GE-Adapter and their theory.

Importing this package is instant: torch and diffusers are loaded when a name below is first used.
"""

import logging
from collections.abc import Iterable
from importlib import import_module
from numbers import Integral, Real

__version__ = "0.2.0"

# Nothing here uses torchvision. Without it, an import of diffusers prints two warnings of
# transformers; they are left out, and no others.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision" not in record.getMessage()
)

_HOMES = {
    "VideoEditPipeline": "vala_research.editing.pipeline",
    "read_clip": "vala_research.data.clips",
    "write_clip": "vala_research.data.clips",
    "Clip": "vala_research.data.clips",
    "miniature_path": "vala_research.assets",
}
__all__ = ["InputError", "chosen_from", "number_in", *_HOMES]


class InputError(ValueError):
    """Bad input: one sentence that names the input, the problem and the remedy."""


def chosen_from(what: str, value: object, known: Iterable) -> None:
    """Raise InputError unless `value` is one of the `known` values; `what`: its name."""
    names = list(known)
    if value not in names:
        listed = [str(name) for name in names]
        mark = "; " if any("," in name for name in listed) else ", "
        raise InputError(f"Unknown {what} {value!r}: choose one of {mark.join(listed)}.")


def number_in(what: str, value: object, low: float, high: float, whole: bool = False) -> None:
    """Raise InputError unless `value` is a number from low to high; `what`: its name."""
    kind = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        number = "a whole number" if whole else "a finite number"
        raise InputError(f"{what} is {str(value)[:50]}: give {number} from {low:g} to {high:g}.")


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
