"""What an edit uses where its call says nothing. A checkpoint may carry its own values."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from vala_research import InputError, number_in
from vala_research.diffusion.attending import get_policy
from vala_research.diffusion.controlnet import ControlSettings
from vala_research.diffusion.difference import WITHOUT, DifferenceEdit
from vala_research.diffusion.guidance import check_guidance
from vala_research.diffusion.injection import Injection
from vala_research.diffusion.inversion import get_inversion
from vala_research.diffusion.loading import read_json
from vala_research.diffusion.records import is_transformer, record_of
from vala_research.files import write_json

FILE = "edit_defaults.json"  # in the folder of a checkpoint
BROUGHT = ("motion_adapter", "temporal_adapter")  # folders that it may bring


@dataclass(frozen=True)
class EditDefaults:
    """Values of `VideoEditPipeline.__call__`, by its names. These are the field's.

    inversion: a name, or a `DifferenceEdit`, which a file holds as an object of its values.
    control: how the checkpoint's ControlNet is used; None where it has none.
    motion_from: least frames of a clip in which the checkpoint's motion modules act. They learnt
        from longer clips, and displace what moves in shorter ones.
    """

    num_inference_steps: Any = 50  # a file may hold anything
    guidance_scale: float = 7.5
    inversion: str | DifferenceEdit = "ddim"
    attention: str = "anchors"
    injection: float | Injection = 0.0
    strength: float = 1.0
    control: ControlSettings | None = None
    motion_from: Any = 0

    def __post_init__(self):
        number_in("num_inference_steps", self.num_inference_steps, 1, 1000, whole=True)
        number_in("strength", self.strength, 0, 1)
        number_in("motion_from", self.motion_from, 0, 1000, whole=True)
        check_guidance(self.guidance_scale)
        get_inversion(self.inversion), get_policy(self.attention), Injection.of(self.injection)

    def filled(self, **given: Any) -> tuple:
        """The given values, in order, with the default for each that is None."""
        return tuple(getattr(self, k) if v is None else v for k, v in given.items())

    def save(self, folder: str | Path, brings: Collection[str] = ()) -> None:
        """Write the values beside a checkpoint; brings: which of BROUGHT it brings."""
        write_json(Path(folder) / FILE, asdict(self) | ({"brings": [*brings]} if brings else {}))


# Of a checkpoint with a video transformer: all frames meet natively. Steps and guidance of Wan-Edit
# (Li et al. 2025, FiVE), which edits without an inversion.
VIDEO_DEFAULTS = EditDefaults(guidance_scale=12.0, inversion="flow_edit", attention="extended")


# Of Stable Diffusion 3: FlowEdit's own steps and guidance (Kulikov et al. 2025).
IMAGE_FLOW_DEFAULTS = EditDefaults(guidance_scale=13.5, inversion="flow_edit")


def usual_defaults(network: Any) -> EditDefaults:
    """The field's values for a network's class, where a checkpoint carries none of its own."""
    if not is_transformer(network):
        return EditDefaults()
    return VIDEO_DEFAULTS if record_of(network).joins_frames else IMAGE_FLOW_DEFAULTS


def inverting_by(defaults: EditDefaults) -> EditDefaults:
    """The values of an inversion: plain, where edits by default invert nothing."""
    inverts = not isinstance(get_inversion(defaults.inversion), WITHOUT)
    return defaults if inverts else replace(defaults, inversion="ddim")


def read_defaults(folder: str | Path) -> tuple[EditDefaults, tuple[str, ...]]:
    """Read the values of a checkpoint's folder, and what it brings; the field's, where it has none.

    Raises InputError for unknown names and for values that no edit takes.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return EditDefaults(), ()
    given = read_json(path)
    brings = given.pop("brings", []) if isinstance(given, dict) else []
    if not isinstance(brings, list) or not all(name in BROUGHT for name in brings):
        raise InputError(
            f"{path} brings {str(brings)[:50]}: it may bring {', '.join(BROUGHT)}, in a list."
        )
    parts = {} if given.get("control") is None else {"control": ControlSettings}
    if isinstance(given.get("inversion"), dict):
        parts["inversion"] = DifferenceEdit
    for kind, content in ((EditDefaults, given), *((kind, given[k]) for k, kind in parts.items())):
        known = [field.name for field in fields(kind)]
        unknown = sorted(set(content) - set(known)) if isinstance(content, dict) else [content]
        if unknown:
            raise InputError(
                f"{path} holds {str(unknown[0])[:50]!r}: it may hold {', '.join(known)}."
            )
    try:
        made = {k: kind(**given[k]) for k, kind in parts.items()}
        return EditDefaults(**given | made), tuple(brings)
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error
