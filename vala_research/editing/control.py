"""A pipeline's ControlNet: load it, leave it out, and what an edit makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.controlnet import GIVEN, Control, ControlSettings, load_controlnet
from vala_research.diffusion.patching import one_call_at_a_time
from vala_research.diffusion.video import as_frames
from vala_research.editing.clip import KnownClip
from vala_research.editing.defaults import EditDefaults
from vala_research.editing.source import Source


class ControlMixin:
    """Lets a pipeline with a `unet` host a ControlNet.

    It is no component of the pipeline: plain Stable Diffusion has no place for it.
    """

    controlnet: ControlNetModel | None
    edit_defaults: EditDefaults
    more_controls: tuple[Control, ...] = ()
    shown: Tensor | None = None

    @one_call_at_a_time
    def load_controlnet(
        self, where: str | PathLike, picture: Any = "frames", scale: float = 1.0,
        interval: Sequence[float] = (0.0, 1.0), in_inversion: bool = True,
    ) -> None:  # fmt: skip
        """Load a ControlNet, which replaces all that are present. Later edits use it.

        where: "miniature", or a folder or hub id of a diffusers ControlNetModel.
        picture: what it sees, as in `ControlSettings`; or pictures of your own, such as maps of
            depth or poses: a clip of the edited clip's length and size. These are not saved. For
            many clips, load it with "given" once, and `show` it the pictures of each.
        scale, interval, in_inversion: as in `ControlSettings`.
        Raises InputError; then what was there stays in place.
        """
        control = self._control(where, picture, scale, interval, in_inversion)
        is_usual = control.pictures is None
        self.controlnet = control.network if is_usual else None
        settings = control.settings if is_usual else None
        self.edit_defaults = replace(self.edit_defaults, control=settings)
        self.more_controls = () if is_usual else (control,)

    @one_call_at_a_time
    def add_controlnet(
        self, where: str | PathLike, picture: Any = "canny", scale: float = 1.0,
        interval: Sequence[float] = (0.0, 1.0), in_inversion: bool = True,
    ) -> None:  # fmt: skip
        """Load a further ControlNet beside those that are present. Their residuals add up.

        The arguments are those of `load_controlnet`. It is not saved with the pipeline.
        """
        control = self._control(where, picture, scale, interval, in_inversion)
        self.more_controls = (*self.more_controls, control)

    def _control(self, where: str | PathLike, picture: Any, *how: Any) -> Control:
        is_name = isinstance(picture, str)
        settings = ControlSettings(picture if is_name else GIVEN, *how)
        pictures = None if is_name else as_frames(picture)
        return Control(load_controlnet(where, self.unet), settings, pictures)

    def show(self, pictures: Any) -> None:
        """Show ControlNets that were loaded with picture "given" these; None shows them nothing.

        pictures: a clip of the length and size of the clips to be edited.
        """
        self.shown = None if pictures is None else as_frames(pictures)

    @one_call_at_a_time
    def unload_controlnet(self) -> None:
        """Leave all ControlNets out of later edits."""
        self.controlnet, self.more_controls = None, ()
        self.edit_defaults = replace(self.edit_defaults, control=None)

    @property
    def controls(self) -> tuple[Control, ...]:
        """The ControlNets at work on the pipeline's own UNet."""
        first = () if self.controlnet is None else (self._own_control,)
        return tuple(
            replace(c, pictures=self.shown)
            if c.settings.picture == GIVEN and c.pictures is None else c
            for c in (*first, *self.more_controls)
        )  # fmt: skip

    @property
    def _own_control(self) -> Control:
        if self.edit_defaults.control is None:
            raise InputError(
                "The pipeline has a ControlNet, and nothing says what it sees: load it by "
                "pipe.load_controlnet, with `picture`."
            )
        return Control(self.controlnet, self.edit_defaults.control)


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
