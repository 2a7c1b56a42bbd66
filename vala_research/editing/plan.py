"""A fusion described by names: it can be printed, compared, and sent to another process."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.codec import as_frames
from vala_research.diffusion.inversion import InversionSettings, get_inversion
from vala_research.diffusion.motion import load_motion_unet
from vala_research.diffusion.schedule import Schedule
from vala_research.editing.clip import KnownClip, clip_attention
from vala_research.editing.fusion import Fusion
from vala_research.editing.source import Source
from vala_research.editing.stream import streams_of
from vala_research.methods.fusion import FusionSchedule

KINDS = ("video", "image")


@dataclass(frozen=True)
class Plan:
    """Sources by name: "video" (motion modules on the pipeline's UNet) or "image" (that UNet).

    attentions, guidances: of every source; () is None for all: "anchors", the default of an edit,
    for an image model, "own" for a video model, and the call's guidance. motion: "miniature", a
    folder or hub id. window, overlap: of video sources. The rest is that of `Fusion`. A schedule
    with tau = 1.0 leaves source 0 alone.
    """

    sources: tuple[str, ...] = ("video", "image")
    attentions: tuple[str | None, ...] = (None, None)
    schedule: FusionSchedule = field(default_factory=FusionSchedule)
    motion: str = "miniature"
    window: int | None = None
    overlap: int = 4
    image_start: str = "inverted"
    normalise: bool = False
    guidances: tuple[float | None, ...] = ()

    def __post_init__(self):
        if unknown := [s for s in self.sources if s not in KINDS]:
            raise InputError(f"Unknown source {unknown[0]!r}: choose one of {', '.join(KINDS)}.")
        for name in ("attentions", "guidances"):
            given = getattr(self, name) or (None,) * len(self.sources)
            if len(given) != len(self.sources):
                raise InputError(
                    f"There are {len(self.sources)} sources and {len(given)} {name}: give one a "
                    "source."
                )
            object.__setattr__(self, name, given)

    def inverting(self) -> str:
        """What the sources are and how they invert a clip: the same for all weights."""
        return repr(
            (self.sources, self.attentions, self.guidances, self.motion, self.window,
             self.overlap, self.image_start)
        )  # fmt: skip

    def built(self, pipe) -> list[Source]:
        """The sources; motion modules are loaded once a pipeline."""
        models = {"image": Source()}
        if "video" in self.sources:
            unet = video_unet(pipe.unet, self.motion)
            models["video"] = Source(unet, window=self.window, overlap=self.overlap)
        usual = {"image": "anchors", "video": "own"}
        parts = zip(self.sources, self.attentions, self.guidances, strict=True)
        return [replace(models[s], attention=a or usual[s], guidance_scale=g) for s, a, g in parts]

    def fusion(self, sources: list[Source]) -> Fusion:
        """The fusion of these sources."""
        return Fusion(sources, self.schedule, self.image_start, self.normalise)


@lru_cache(maxsize=1)
def video_unet(unet: torch.nn.Module, motion: str) -> torch.nn.Module:
    """The UNet with motion modules, kept for the next clip."""
    return load_motion_unet(unet, motion)


@torch.no_grad()
def inverted_sources(
    pipe, sources: list[Source], frames: Float[Tensor, "f c h w"], source_prompt: str,
    num_inference_steps: int, inversion: str | InversionSettings = "ddim",
    image_start: str = "inverted",
) -> tuple[list[Source], float]:  # fmt: skip
    """The sources with the clip's inversions, so that edits of it need not invert; and seconds.

    Of those that invert: source 0 alone unless image_start is "inverted". An image source that
    names no attention has anchors, as in an edit.
    """
    start = time.perf_counter()
    schedule = Schedule.from_scheduler(sources[0].scheduler or pipe.scheduler, num_inference_steps)
    z_0 = pipe.encode(frames)
    call = Source(prompt="", source_prompt=source_prompt, guidance_scale=1.0, attention="anchors")
    clip = KnownClip(as_frames(frames), None, tuple(z_0.shape))
    streams = streams_of(sources, call, pipe, schedule, clip)
    found = []
    for i, (source, stream) in enumerate(zip(sources, streams, strict=True)):
        if i == 0 or image_start == "inverted":
            stream.attention = clip_attention(stream.attention, clip, z_0)
            known = stream.invert(z_0, get_inversion(inversion))
            source = replace(source, latents=known, attention=stream.attention)
        found.append(source)
    return found, time.perf_counter() - start
