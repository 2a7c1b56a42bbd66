"""A pipeline's motion modules: they make a video model of its UNet, by which it then edits."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import Any

from diffusers import MotionAdapter, UNet2DConditionModel

from vala_research import InputError
from vala_research.diffusion.motion import load_motion_unet
from vala_research.diffusion.patching import lora_layers, one_call_at_a_time
from vala_research.editing.defaults import EditDefaults


class MotionMixin:
    """Lets a pipeline with an image UNet edit by a video model, as AnimateDiff makes one.

    image_unet: the UNet without motion modules, while `unet` has them. The two share their weights.
    """

    image_unet: UNet2DConditionModel | None = None
    unet: Any
    adapter: Any
    edit_defaults: EditDefaults

    @one_call_at_a_time
    def load_motion_adapter(self, where: str | PathLike | MotionAdapter) -> None:
        """Build motion modules into the UNet, in place of present ones. Later edits use them.

        Frames then meet in the motion modules: attention is "own" where a call says nothing. A clip
        that is longer than their positional encoding goes in overlapping windows.
        where: as in `load_motion_unet`. Raises InputError, also while the UNet has a temporal
        adapter or a LoRA, which may be loaded afterwards. Then nothing is changed.
        """
        self._check_bare()
        image = self.image_unet or self.unet
        self.unet, self.image_unet = load_motion_unet(image, where), image
        self.edit_defaults = replace(self.edit_defaults, attention="own")

    @one_call_at_a_time
    def unload_motion_adapter(self) -> None:
        """Edit by the image UNet again. Raises InputError as `load_motion_adapter`."""
        if self.image_unet is None:
            return
        self._check_bare()
        self.unet, self.image_unet = self.image_unet, None
        self.edit_defaults = replace(self.edit_defaults, attention=EditDefaults.attention)

    def _check_bare(self) -> None:
        if self.adapter is not None or lora_layers(self.unet):
            raise InputError(
                "The UNet carries a temporal adapter or a LoRA, which would be lost: take it off "
                "first (pipe.unload_adapter(), pipe.unload_lora_weights()), and load it afterwards."
            )

    @contextmanager
    def _without_motion(self):
        """Within the block, `unet` is the image UNet."""
        video = self.unet
        try:
            self.unet = self.image_unet or video
            yield
        finally:
            self.unet = video
