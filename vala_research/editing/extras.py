"""What a checkpoint may bring beside the parts of Stable Diffusion: load and save it.

A ControlNet, motion modules and a temporal adapter, each in a folder of its own, and the values of
an edit, which say what is there. Plain diffusers does not see them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vala_research import InputError, chosen_from
from vala_research.diffusion.options import LoadOptions
from vala_research.diffusion.parts import control_part
from vala_research.editing.defaults import EditDefaults, read_defaults

MOTION, ADAPTER = "motion_adapter", "temporal_adapter"
# Options of `from_pretrained`: another one, or None to leave it out.
EXTRAS = ("controlnet", "motion_adapter", "adapter")
BARE: dict[str, None] = dict.fromkeys(EXTRAS)
# Their short names, and the folder of each.
PARTS = {"controlnet": "controlnet", "motion": MOTION, "adapter": ADAPTER}


def load_extras(pipe: Any, name: str, folder: Path, asked: LoadOptions) -> None:
    """Give a pipeline what its checkpoint brings, and its values of an edit.

    asked: parts that come from elsewhere. Raises InputError.
    """
    own, brought = read_defaults(folder)
    given = {extra: asked.parts[extra] for extra in EXTRAS if extra in asked.parts}
    if own.control is not None:
        given = control_part(name, folder, asked, pipe.unet) | given
    pipe.controlnet, pipe.edit_defaults = given.get("controlnet"), own

    # The adapter was trained for the UNet with or without motion modules, and fits both.
    motion = given.get("motion_adapter", folder / MOTION if MOTION in brought else None)
    if motion is not None:
        pipe.load_motion_adapter(motion)
    if MOTION in brought:
        attention = EditDefaults.attention if motion is None else own.attention
        pipe.edit_defaults = replace(own, attention=attention)
    adapter = given.get("adapter", folder / ADAPTER if ADAPTER in brought else None)
    if adapter is not None:
        pipe.load_adapter(adapter)


def save_extras(pipe: Any, folder: Path) -> None:
    """Write them beside the parts, and the values of an edit, where they are not the usual ones."""
    control, brought = None, []
    if pipe.controlnet is not None:
        pipe.controlnet.save_pretrained(folder / "controlnet")
        control = pipe.edit_defaults.control
    if pipe.image_unet is not None:
        pipe.unet.save_motion_modules(str(folder / MOTION))
        brought.append(MOTION)
    if pipe.adapter is not None:
        pipe.adapter.save_pretrained(folder / ADAPTER)
        brought.append(ADAPTER)
    defaults = replace(pipe.edit_defaults, control=control)
    if brought or defaults != EditDefaults():
        defaults.save(folder, brought)


def own_parts(folder: str | Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Where these parts of a checkpoint lie, by their names in `PARTS`; control_scale beside.

    names: None is all that it brings. Raises InputError for a part that it does not bring.
    """
    own, brought = read_defaults(folder)
    known = ["controlnet"] * (own.control is not None)
    known += [name for name, place in PARTS.items() if place in brought]
    parts: dict[str, Any] = {}
    for name in known if names is None else names:
        chosen_from("part of an edit", name, PARTS)
        if name not in known:
            raise InputError(
                f"The model in {folder} brings no {name}: leave it out, or give a model that has "
                "one, such as 'miniature'."
            )
        parts[name] = str(Path(folder) / PARTS[name])
    return parts | ({"control_scale": own.control.scale} if "controlnet" in parts else {})
