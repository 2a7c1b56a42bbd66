"""What a checkpoint may bring beside the parts of Stable Diffusion: load and save it.

A ControlNet, motion modules and a temporal adapter, each in a folder of its own, and the values of
an edit, which say what is there. Plain diffusers does not see them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vala_research import InputError, chosen_from
from vala_research.diffusion.checkpoint import resolve_checkpoint
from vala_research.diffusion.hub import Extras
from vala_research.diffusion.options import LoadOptions
from vala_research.diffusion.parts import control_part, motion_part
from vala_research.editing.defaults import FILE, EditDefaults, read_defaults, usual_defaults

MOTION, ADAPTER = "motion_adapter", "temporal_adapter"
# Options of `from_pretrained`: another one, or None to leave it out; and the checkpoint's folders.
EXTRAS = {"controlnet": "controlnet", "motion_adapter": MOTION, "adapter": ADAPTER}
BARE: dict[str, None] = dict.fromkeys(EXTRAS)
# Their short names, and the folder of each.
PARTS = {"controlnet": "controlnet", "motion": MOTION, "adapter": ADAPTER}


def find_checkpoint(name: str, asked: LoadOptions) -> tuple[Path, EditDefaults, tuple[str, ...]]:
    """Find a checkpoint and what it brings; from the hub, download what is asked for.

    Returns its folder, its values of an edit, and the folders that it brings.
    Raises InputError, also when one of them is not there.
    """

    def places(folder: Path) -> dict[str, str]:
        """The folders that are to be loaded, and the options that would leave them out."""
        _, brought = _read(folder)
        loaded = {place: extra for extra, place in EXTRAS.items() if extra not in asked.parts}
        return {place: extra for place, extra in loaded.items() if place in brought}

    extras = Extras(FILE, places)
    folder = Path(resolve_checkpoint(name, tuple(asked.parts), extras, **asked.hub))
    for place, extra in places(folder).items():
        if not (folder / place).is_dir():
            raise InputError(
                f"The {FILE} of {name!r} names a {place} folder, which is not there: fetch it "
                f"again, or leave it out by {extra}=None."
            )
    return folder, *_read(folder)


def _read(folder: Path) -> tuple[EditDefaults, tuple[str, ...]]:
    """The values of an edit of a checkpoint, and the folders that it brings."""
    own, brought = read_defaults(folder)
    return own, brought if own.control is None else ("controlnet", *brought)


def load_extras(
    pipe: Any, name: str, folder: Path, asked: LoadOptions, own: EditDefaults,
    brought: Collection[str],
) -> None:  # fmt: skip
    """Give a pipeline what its checkpoint brings, and its values of an edit.

    asked: parts that come from elsewhere. folder, own, brought: see `find_checkpoint`.
    Raises InputError.
    """
    given = {extra: asked.parts[extra] for extra in EXTRAS if extra in asked.parts}
    if "controlnet" in brought:
        given = control_part(name, folder, asked, pipe.unet) | given
    own = pipe.edit_defaults if own == EditDefaults() else own  # those of its family
    pipe.controlnet, pipe.edit_defaults = given.get("controlnet"), own

    # The adapter was trained for the UNet with or without motion modules, and fits both.
    if MOTION in brought and "motion_adapter" not in given:
        given["motion_adapter"] = motion_part(name, folder, asked)
    motion = given.get("motion_adapter")
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
    if brought or defaults != usual_defaults(pipe.unet):
        defaults.save(folder, brought)


def own_parts(model: str | Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Where these parts of a model lie, by their names in `PARTS`; control_scale beside.

    names: None is all that it brings; of none, the model is not looked for.
    Raises InputError for a part that it does not bring.
    """
    names = None if names is None else list(names)
    if names == []:
        return {}
    folder, own, brought = find_checkpoint(str(model), LoadOptions())
    known = [name for name, place in PARTS.items() if place in brought]
    parts: dict[str, Any] = {}
    for name in known if names is None else names:
        chosen_from("part of an edit", name, PARTS)
        if name not in known:
            raise InputError(
                f"The model {str(model)!r} brings no {name}: leave it out, or give a model that "
                "has one, such as 'miniature'."
            )
        parts[name] = str(folder / PARTS[name])
    return parts | ({"control_scale": own.control.scale} if "controlnet" in parts else {})
