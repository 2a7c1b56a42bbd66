"""Fusions against their own sources: the settings, the claims, and what the rows say of them.

FLDM (arXiv 2310.16400): its claims, its ratio from 0 to 1, its schedules by kind of edit. A verdict
is read from differences on the same clips, never written down beforehand.
"""

from __future__ import annotations

from torch import nn

from vala_research.editing.fusion import Fusion
from vala_research.editing.plan import Plan
from vala_research.editing.source import Source
from vala_research.evaluation.benchmark import EditSetting
from vala_research.methods.fusion import FusionSchedule

IMAGE, VIDEO, FUSED = "image only", "video only", "fused"


# --- settings -----------------------------------------------------------------------------------


FRAMEWISE = ("own", "own")  # the image model frame by frame, as published


def single_models(motion: str = "miniature", **common) -> dict[str, EditSetting]:
    """Each source alone; common: arguments of every EditSetting."""
    never = Plan(attentions=FRAMEWISE, schedule=FusionSchedule(tau=1.0), motion=motion)
    return {IMAGE: EditSetting("own", **common), VIDEO: EditSetting(fusion=never, **common)}


def constant(a: float) -> FusionSchedule:
    """The video model's share is a at every step."""
    return FusionSchedule("constant", (a, 1 - a), 0.0)


NEVER = FusionSchedule(tau=1.0)


def source_fusions(
    video: nn.Module | None,
    schedule: FusionSchedule = FusionSchedule(),
    window: int | None = None,
    image_window: int | None = None,
) -> dict[str, Fusion]:
    """The image model alone, frame by frame, the video model alone, and both.

    window: frames that the video model sees at once; image_window: those of the image model, which
    change nothing but its memory.
    """
    image = Source(attention="own", window=image_window, overlap=0)
    models = {IMAGE: image, VIDEO: Source(video, window=window)}
    alone = {name: Fusion([source] * 2, NEVER) for name, source in models.items()}
    return alone | {FUSED: Fusion(list(models.values())[::-1], schedule)}
