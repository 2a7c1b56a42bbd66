"""A fusion described by names: it can be printed, compared, and sent to another process."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError, chosen_from
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.inversion import InversionSettings, get_inversion
from vala_research.diffusion.motion import load_motion_unet
from vala_research.diffusion.schedule import Schedule
from vala_research.diffusion.video import as_frames
from vala_research.editing.clip import KnownClip, clip_attention
from vala_research.editing.fusion import Fusion
from vala_research.editing.ip_adapter import picture_embeds
from vala_research.editing.source import Source
from vala_research.editing.stream import streams_of
from vala_research.methods.fusion import FusionSchedule

KINDS = ("video", "image", "flow")


@dataclass(frozen=True)
class Plan:
    """A `Fusion` whose sources are named: "video", "image" or "flow".

    * sources: "image" is the pipeline's UNet, "video" the same UNet with motion modules, "flow" the
      network of another checkpoint in the same latent space. Source 0 says the levels.
    * attentions: one policy per source; None is "anchors" for an image model (the default of an
      edit), "own" for a video model and "extended" for a flow. () is None for all.
    * guidances: one scale per source; None is the call's. () is None for all.
    * motion: the motion modules: "miniature", a folder or a hub id. flow: the checkpoint of "flow".
    * window, overlap: frames per window of a video source, see `Source`.
    * schedule, image_start, normalise: as in `Fusion`. With tau = 1.0 source 0 edits alone.
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
    flow: str = "miniature_flow"

    def __post_init__(self):
        for source in self.sources:
            chosen_from("source", source, KINDS)
        for name in ("attentions", "guidances"):
            values = getattr(self, name) or (None,) * len(self.sources)
            if len(values) != len(self.sources):
                raise InputError(
                    f"There are {len(self.sources)} sources and {len(values)} {name}: give one "
                    "per source."
                )
            object.__setattr__(self, name, values)

    def inverting(self) -> str:
        """Describe how the sources invert a clip. Plans of one description share inversions."""
        return repr(
            (self.sources, self.attentions, self.guidances, self.motion, self.window,
             self.overlap, self.image_start, self.flow)
        )  # fmt: skip

    def built(self, pipe) -> list[Source]:
        """Build the sources. Motion modules are loaded once per pipeline.

        Every source has the ControlNet and the temporal adapter of the pipeline, but for a flow.
        """
        models = {"image": Source()}
        if "video" in self.sources:
            make = partial(_video_model, pipe=pipe, motion=self.motion)
            unet, adapter = kept_model(pipe, (self.motion, pipe.adapter), make)
            models["video"] = Source(
                unet, adapter=adapter, controls=pipe.controls, window=self.window,
                overlap=self.overlap,
            )  # fmt: skip
        if "flow" in self.sources:
            make = partial(_flow_model, pipe=pipe, name=self.flow)
            network, scheduler, vae = kept_model(pipe, self.flow, make)
            models["flow"] = Source(network, scheduler=scheduler, vae=vae, controls=())
        usual = {"image": "anchors", "video": "own", "flow": "extended"}
        parts = zip(self.sources, self.attentions, self.guidances, strict=True)
        return [replace(models[s], attention=a or usual[s], guidance_scale=g) for s, a, g in parts]

    def fusion(self, sources: list[Source]) -> Fusion:
        """Return the fusion of these sources."""
        return Fusion(sources, self.schedule, self.image_start, self.normalise)


def _video_model(
    unet: nn.Module, pipe, motion: str
) -> tuple[nn.Module, TemporalAdapter | None]:
    """The pipeline's UNet with motion modules, and the pipeline's adapter in it, if any."""
    with pipe._without_adapter():
        video = load_motion_unet(unet, motion)
    return video, pipe.adapter and pipe.adapter.in_other(video)


def _flow_model(unet: nn.Module, pipe, name: str) -> tuple[nn.Module, Any, nn.Module]:
    """The network, the scheduler and the VAE of another checkpoint, beside the pipeline's UNet."""
    other = type(pipe).from_pretrained(name, unet.dtype)
    return other.unet.to(unet.device), other.scheduler, other.vae


def kept_model(pipe, key: Hashable, make: Callable[[nn.Module], Any]) -> Any:
    """Make a model, or several, from the pipeline's UNet, or return what was made before.

    The pipeline keeps it under `key`, so that both are freed together. A pipeline that was given
    another UNet since then gets a new model.
    """
    models = vars(pipe).setdefault("models_of_plans", {})
    unet, model = models.get(key, (None, None))
    if unet is not pipe.unet:
        model = make(pipe.unet)
        models[key] = (pipe.unet, model)
    return model


@torch.no_grad()
def inverted_sources(
    pipe, sources: list[Source], frames: Float[Tensor, "f c h w"], source_prompt: str,
    num_inference_steps: int, inversion: str | InversionSettings = "ddim",
    image_start: str = "inverted",
) -> tuple[list[Source], float]:  # fmt: skip
    """Invert a clip by every source, so that edits of the clip need not invert.

    Unless image_start is "inverted", only source 0 inverts. An image source without attention
    gets anchors, as in an edit.

    Returns: the sources with their inversions, and the seconds that this took.
    """
    start = time.perf_counter()
    schedule = Schedule.from_scheduler(sources[0].scheduler or pipe.scheduler, num_inference_steps)
    z_0 = pipe.encode(frames)
    call = Source(
        prompt="", source_prompt=source_prompt, guidance_scale=1.0, attention="anchors",
        controls=pipe.controls,
    )  # fmt: skip
    call.pictures = picture_embeds(pipe, None, None, len(z_0), 1.0)
    clip = KnownClip(as_frames(frames), None, tuple(z_0.shape))
    streams = streams_of(sources, call, pipe, schedule, clip)
    n_inverting = len(sources) if image_start == "inverted" else 1
    for stream in streams[:n_inverting]:
        stream.attention = clip_attention(stream.attention, clip, z_0)
    clip = replace(clip, frames=None)  # nothing below needs the pictures
    inverted = []
    for i, (source, stream) in enumerate(zip(sources, streams, strict=True)):
        if i < n_inverting:
            known = stream.invert(z_0, get_inversion(inversion))
            source = replace(source, latents=known, attention=stream.attention)
        inverted.append(source)
    return inverted, time.perf_counter() - start
