"""A pipeline's ControlNet: load it, leave it out, and what an edit makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from diffusers import ControlNetModel

from vala_research import InputError
from vala_research.diffusion.controlnet import Control, ControlSettings, load_controlnet
from vala_research.diffusion.patching import one_call_at_a_time
from vala_research.editing.clip import KnownClip
from vala_research.editing.defaults import EditDefaults
from vala_research.editing.source import Source


class ControlMixin:
    """Lets a pipeline with a `unet` host a ControlNet.

    It is no component of the pipeline: plain Stable Diffusion has no place for it.
    """

    controlnet: ControlNetModel | None
    edit_defaults: EditDefaults

    @one_call_at_a_time
    def load_controlnet(
        self, where: str | PathLike, picture: str = "frames", scale: float = 1.0,
        interval: Sequence[float] = (0.0, 1.0), in_inversion: bool = True,
    ) -> None:  # fmt: skip
        """Load a ControlNet, which replaces the present one. Later edits use it.

        where: "miniature", or a folder or hub id of a diffusers ControlNetModel. The others are
        those of `ControlSettings`. Raises InputError; then the one that was there stays in place.
        """
        settings = ControlSettings(picture, scale, interval, in_inversion)
        self.controlnet = load_controlnet(where, self.unet)
        self.edit_defaults = replace(self.edit_defaults, control=settings)

    @one_call_at_a_time
    def unload_controlnet(self) -> None:
        """Leave the ControlNet out of later edits."""
        self.controlnet = None
        self.edit_defaults = replace(self.edit_defaults, control=None)

    @property
    def controls(self) -> tuple[Control, ...]:
        """The ControlNet at work on the pipeline's own UNet, if there is one."""
        if self.controlnet is None:
            return ()
        if self.edit_defaults.control is None:
            raise InputError(
                "The pipeline has a ControlNet, and nothing says what it sees: load it by "
                "pipe.load_controlnet, with `picture`."
            )
        return (Control(self.controlnet, self.edit_defaults.control),)

    @property
    def controls_of_inversion(self) -> tuple[Control, ...]:
        """Those that act in the inversion too."""
        return tuple(c for c in self.controls if c.settings.in_inversion)


def controls_of(
    source: Source, pipe: Any, clip: KnownClip, device: torch.device
) -> list[Control]:
    """The source's ControlNets on its device, with pictures of the clip, inverted or not."""
    frames, controls = clip.frames, source.controls or ()
    if frames is None and controls and clip.latents.trajectory:
        frames = pipe.decode(clip.latents.trajectory[-1])
    for control in controls:
        control.network.to(device)
    return [control.of_clip(frames) for control in controls]
