"""Settings that the FLDM experiments share: each model alone, and fusions of both.

FLDM (Lu et al. 2023, arXiv 2310.16400) mixes the latents of an image model and a video model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vala_research.editing.fusion import Fusion
from vala_research.editing.plan import Plan
from vala_research.editing.source import Source
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.experiments.contract import (
    CLIP,
    MOTION_MODULES,
    PUBLISHED,
    EditPreset,
)
from vala_research.methods.fusion import FusionSchedule

IMAGE, VIDEO, FUSED = "image only", "video only", "fused"
FRAMEWISE = ("own", "own")  # the image model frame by frame, as published
SHARED = ("controlnet", "adapter")  # parts of an edit that all sources may have
NEVER = FusionSchedule(tau=1.0)  # source 0 alone

# The preset "paper": published models, and clips of a folder.
FUSED_MODELS = PUBLISHED | dict(motion=MOTION_MODULES, clip_model=CLIP)


@dataclass(frozen=True, kw_only=True)
class FusionPreset(EditPreset):
    """Base of the settings of experiments that fuse an image model and a video model."""

    CHOICES = EditPreset.CHOICES | {"parts": SHARED}

    motion: str = "miniature"  # the video model's motion modules: "miniature", folder or hub id


def single_models(motion: str = "miniature", **common) -> dict[str, EditSetting]:
    """Return the settings of each source alone; common: arguments of every EditSetting."""
    alone = Plan(attentions=FRAMEWISE, schedule=NEVER, motion=motion)
    return {IMAGE: EditSetting("own", **common), VIDEO: EditSetting(fusion=alone, **common)}


def constant(a: float) -> FusionSchedule:
    """Return the schedule whose share of the video model is a at every step."""
    return FusionSchedule("constant", (a, 1 - a), 0.0)


def source_fusions(
    video: nn.Module | None,
    schedule: FusionSchedule = FusionSchedule(),
    window: int | None = None,
    image_window: int | None = None,
) -> dict[str, Fusion]:
    """Return the image model alone (frame by frame), the video model alone, and both.

    window, image_window: frames that the video and the image model see at once. The image model's
    window changes its memory only.
    """
    image = Source(attention="own", window=image_window, overlap=0)
    models = {IMAGE: image, VIDEO: Source(video, window=window)}
    alone = {name: Fusion([source] * 2, NEVER) for name, source in models.items()}
    return alone | {FUSED: Fusion(list(models.values())[::-1], schedule)}
