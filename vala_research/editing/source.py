"""A source of a fusion is one denoiser and all that is its own: network, words, levels, windows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from diffusers import ControlNetModel
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError
from vala_research.adapter.activation import Activation
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.attention import Policy
from vala_research.diffusion.backbone import VIDEO_UNETS, Backbone
from vala_research.diffusion.controlnet import control_residuals
from vala_research.diffusion.inversion import Inversion
from vala_research.diffusion.patching import chunks
from vala_research.diffusion.schedule import Schedule


@dataclass
class Source:
    """One denoiser of a fusion; what is None is taken from the pipeline, or from its call.

    unet: a UNet2DConditionModel, UNetMotionModel or UNet3DConditionModel, on any device. scheduler:
    its noise schedule and prediction type. tokenizer, text_encoder: its own words. vae: only to
    check that its latents are the pipeline's. prompt, source_prompt, negative_prompt,
    guidance_scale: its own. attention: a policy; None is the call's for an image model, "own" for a
    video model, whose frames meet in its motion modules.
    adapter, adapter_interval, adapter_scale: a temporal adapter attached to `unet`. controlnet,
    control, control_scale: a ControlNet, one picture a frame (f 3 h w in [0, 1]), its strength.
    window, overlap: frames that a video model sees at once (None: all), and how many of them
    neighbouring windows share at least; what several windows predict of a frame is averaged, see
    `shares_of`.
    latents: the clip's inversion by this source, to skip inverting.
    """

    unet: nn.Module | None = None
    scheduler: Any = None
    tokenizer: Any = None
    text_encoder: nn.Module | None = None
    vae: nn.Module | None = None
    prompt: str | None = None
    source_prompt: str | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    attention: str | Policy | None = None
    adapter: TemporalAdapter | None = None
    adapter_interval: Sequence[float] | None = None
    adapter_scale: float | None = None
    controlnet: ControlNetModel | None = None
    control: Float[Tensor, "f 3 h w"] | None = None
    control_scale: float = 1.0
    window: int | None = None
    overlap: int = 4
    latents: Inversion | None = None

    @classmethod
    def of(cls, pipeline: Any, **own: Any) -> "Source":
        """The models of a diffusers pipeline, such as AnimateDiffPipeline; own: other fields."""
        parts = ("unet", "scheduler", "tokenizer", "text_encoder", "vae")
        return cls(**{name: getattr(pipeline, name) for name in parts} | own)


def own_schedule(schedule: Schedule, scheduler: Any) -> Schedule:
    """A source's own levels and prediction type, at the timesteps nearest to the edit's levels.

    Nearest in sqrt(alpha_bar), the share of the signal; the levels of the edit map to themselves.
    """
    own = Schedule.from_scheduler(scheduler, 1)
    if own.alpha_bar == schedule.alpha_bar:
        return replace(own, timesteps=schedule.timesteps)
    levels = torch.tensor(own.alpha_bar, dtype=torch.float64).sqrt()
    asked = torch.tensor([schedule.alpha_bar[t] for t in schedule.timesteps]).double().sqrt()
    nearest = (asked[:, None] - levels).abs().argmin(1)
    return replace(own, timesteps=tuple(nearest.tolist()))


def windows_of(n_frames: int, window: int | None, overlap: int) -> tuple[slice, ...]:
    """The fewest windows that share `overlap` frames or more, evenly spread; none if one does."""
    if window is None or n_frames <= window:
        return ()
    n = len(chunks(n_frames - overlap, window - overlap))
    starts = (round(i * (n_frames - window) / (n - 1)) for i in range(n))
    return tuple(slice(start, start + window) for start in starts)


def shares_of(windows: Sequence[slice]) -> Float[Tensor, "windows f"]:
    """Shares of the windows in the prediction of each frame: they sum to one over the windows.

    Proportional to the distance from the window's border, as FreeNoise weighs windows of temporal
    attention (Qiu et al. 2023, arXiv 2310.15169): from frame to frame one window gives way to the
    next by degrees, where equal shares make a seam.
    """
    place = torch.arange(max(w.stop for w in windows)) + 0.5
    inside = [torch.minimum(place - w.start, w.stop - place).clamp(min=0) for w in windows]
    weights = torch.stack(inside)
    return weights / weights.sum(0)


def resolved(source: Source, pipe: Any, **call: Any) -> Source:
    """The source with what it left open filled in.

    call: prompts, guidance, attention, and adapter arguments, which are the pipeline's model's.
    """
    unet = pipe.unet if source.unet is None else source.unet
    filled = {k: v for k, v in call.items() if getattr(source, k) is None and v is not None}
    if unet is not pipe.unet:
        filled = {k: v for k, v in filled.items() if not k.startswith("adapter")}
    if source.attention is None and isinstance(unet, VIDEO_UNETS):
        filled["attention"] = "own"
    if (source.tokenizer is None) != (source.text_encoder is None):
        raise InputError("A source has a tokenizer or a text_encoder alone: give both, or none.")
    if source.text_encoder is None:
        filled |= {"tokenizer": pipe.tokenizer, "text_encoder": pipe.text_encoder}
    if unet is pipe.unet:
        filled |= {"adapter": pipe.adapter} if source.adapter is None else {}
    return replace(source, unet=unet, scheduler=source.scheduler or pipe.scheduler, **filled)


@dataclass
class AdaptedBackbone(Backbone):
    """A Backbone whose adapter is on at the timesteps of its activation, and off at all others."""

    activation: Activation | None = None

    def __call__(
        self, z, t, text, patches=(), added=None, residuals=None
    ) -> Float[Tensor, "g f c h w"]:
        a = self.activation
        if a is None:
            return super().__call__(z, t, text, patches, added, residuals)
        if a.holds(t, a.token_interval):
            vision = None if a.vision is None else a.vision.to(text.device)
            text = a.adapter.condition(text, vision)
        with a.adapter.active(a.holds(t, a.interval), a.scale):
            return super().__call__(z, t, text, patches, added, residuals)


@dataclass
class SourceBackbone(AdaptedBackbone):
    """A Backbone asked at the timesteps, on the device, and in the windows of its own source.

    timesteps: the edit's -> its own.
    """

    timesteps: dict[int, int] = field(default_factory=dict)
    windows: tuple[slice, ...] = ()
    device: torch.device | None = None
    controlnet: ControlNetModel | None = None
    control: Tensor | None = None
    control_scale: float = 1.0

    @cached_property
    def shares(self) -> Float[Tensor, "windows f"]:
        """Of the windows in each frame."""
        return shares_of(self.windows)

    def frames_seen(self, x: Float[Tensor, "g f c h w"]) -> int:
        """Frames a chunk, of the window that the network sees."""
        return super().frames_seen(x[:, self.windows[0]] if self.windows else x)

    def __call__(self, z, t, text, patches=(), added=None) -> Float[Tensor, "g f c h w"]:
        t, device = self.timesteps.get(t, t), self.device or z.device
        x, text = z.to(device), text.to(device)
        if not self.windows:
            return self._seen(x, t, text, patches, added, slice(None)).to(z.device)
        mean = torch.zeros_like(x)
        for frames, share in zip(self.windows, self.shares.to(x), strict=True):
            seen = self._seen(x[:, frames], t, text, patches, added, frames)
            mean[:, frames] += share[frames, None, None, None] * seen
        return mean.to(z.device)

    def _seen(self, x, t, text, patches, added, frames: slice) -> Tensor:
        """The prediction for frames that the network sees together."""
        residuals = None
        if self.controlnet is not None:
            control = self.control[frames].to(x)
            residuals = control_residuals(self.controlnet, x, t, text, control, self.control_scale)
        return super().__call__(x, t, text, patches, added, residuals)
