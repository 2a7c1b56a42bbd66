"""A pipeline's ControlNet: load it, leave it out, and what an edit makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from diffusers import ControlNetModel

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

    @one_call_at_a_time
    def load_controlnet(
        self, where: str | PathLike, picture: str = "frames", scale: float = 1.0,
        interval: Sequence[float] = (0.0, 1.0), in_inversion: bool = True,
    ) -> None:  # fmt: skip
        """Load a ControlNet, which replaces all that are present. Later edits use it.

        where: "miniature", or a folder or hub id of a diffusers ControlNetModel. The others are
        those of `ControlSettings`. Raises InputError; then the one that was there stays in place.
        """
        settings = ControlSettings(picture, scale, interval, in_inversion)
        self.controlnet, self.more_controls = load_controlnet(where, self.unet), ()
        self.edit_defaults = replace(self.edit_defaults, control=settings)

    @one_call_at_a_time
    def add_controlnet(
        self, where: str | PathLike, picture: str = "canny", scale: float = 1.0,
        interval: Sequence[float] = (0.0, 1.0), in_inversion: bool = True,
    ) -> None:  # fmt: skip
        """Load a further ControlNet beside those that are present. Their residuals add up.

        The arguments are those of `load_controlnet`. It is not saved with the pipeline.
        """
        settings = ControlSettings(picture, scale, interval, in_inversion)
        added = Control(load_controlnet(where, self.unet), settings)
        self.more_controls = (*self.more_controls, added)

    @one_call_at_a_time
    def unload_controlnet(self) -> None:
        """Leave all ControlNets out of later edits."""
        self.controlnet, self.more_controls = None, ()
        self.edit_defaults = replace(self.edit_defaults, control=None)

    @property
    def controls(self) -> tuple[Control, ...]:
        """The ControlNets at work on the pipeline's own UNet."""
        if self.controlnet is None:
            return self.more_controls
        if self.edit_defaults.control is None:
            raise InputError(
                "The pipeline has a ControlNet, and nothing says what it sees: load it by "
                "pipe.load_controlnet, with `picture`."
            )
        return (Control(self.controlnet, self.edit_defaults.control), *self.more_controls)

    def controls_seeing(self, conditioning_frames: Any) -> tuple[Control, ...]:
        """The ControlNets, of which those that see given pictures have these.

        conditioning_frames: a clip of pictures, or a list of clips, one per such ControlNet, in the
            order of loading. Raises InputError where there are more or fewer.
        """
        controls = self.controls
        seeing = [i for i, c in enumerate(controls) if c.settings.picture == GIVEN]
        if conditioning_frames is None:
            return controls
        is_list = isinstance(conditioning_frames, list | tuple)
        clips = conditioning_frames if is_list and len(seeing) > 1 else [conditioning_frames]
        if len(clips) != len(seeing):
            raise InputError(
                f"conditioning_frames holds {len(clips)} clips, and {len(seeing)} ControlNets see "
                'given pictures (picture="given"): give one per such ControlNet.'
            )
        pictures = dict(zip(seeing, map(as_frames, clips), strict=True))
        return tuple(
            replace(c, pictures=pictures[i]) if i in pictures else c for i, c in enumerate(controls)
        )


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
