"""Options by which `vala edit` fuses a model with a video model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fusing:
    """Motion modules to fuse with, and the weight of the video model that they make."""

    motion: str
    video_weight: float
    fusion_schedule: str
    tau: float

    def schedule(self) -> Any:
        """The weights of a video model and an image model. Raises InputError."""
        from vala_research.methods.fusion import FusionSchedule

        weights = (self.video_weight, 1 - self.video_weight)
        return FusionSchedule(self.fusion_schedule, weights, self.tau)

    def fusion(self, pipe: Any, schedule: Any) -> Any:
        """The model with motion modules and the model itself; long clips go in windows."""
        from vala_research.diffusion.motion import load_motion_unet, max_frames
        from vala_research.editing.fusion import Fusion
        from vala_research.editing.source import Source

        video = load_motion_unet(pipe.unet, self.motion)
        source = Source(video, window=max_frames(video), controls=pipe.controls)
        return Fusion([source, Source()], schedule)
