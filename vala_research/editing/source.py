"""A source is one denoiser and all that is its own: network, words, levels, windows, adapter."""

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
from vala_research.diffusion.attention import Attending
from vala_research.diffusion.backbone import VIDEO_UNETS, Backbone
from vala_research.diffusion.controlnet import control_residuals
from vala_research.diffusion.inversion import Inversion
from vala_research.diffusion.patching import chunks
from vala_research.diffusion.schedule import Schedule


@dataclass
class Source:
    """One denoiser and all that is its own. What is None comes from the pipeline, or its call.

    unet: UNet2DConditionModel, UNetMotionModel or UNet3DConditionModel, on any device.
    scheduler: its noise schedule and prediction type. tokenizer, text_encoder: its words.
    vae: compared with the pipeline's, to check that they share a latent space.
    prompt, source_prompt, negative_prompt, guidance_scale: as in an edit.
    attention: as in an edit; None is the call's for an image model and "own" for a video model.
    adapter, adapter_interval, adapter_scale: a temporal adapter attached to `unet`.
    controlnet, control, control_scale: a ControlNet, one picture per frame (f 3 h w in [0, 1]),
        and its strength.
    window, overlap: how many frames a video model sees at once (None: all), and how many
        neighbouring windows share at least. `shares_of` averages their predictions.
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
    attention: Attending | None = None
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
        """A source from a diffusers pipeline, such as AnimateDiffPipeline. own: other fields."""
        parts = ("unet", "scheduler", "tokenizer", "text_encoder", "vae")
        return cls(**{name: getattr(pipeline, name) for name in parts} | own)


def own_schedule(schedule: Schedule, scheduler: Any) -> Schedule:
    """The levels and prediction type of a source, at the timesteps nearest to the edit's levels.

    Nearest in sqrt(alpha_bar), the share of the signal. The edit's own levels map to themselves.
    """
    own = Schedule.from_scheduler(scheduler, 1)
    if own.alpha_bar == schedule.alpha_bar:
        return replace(own, timesteps=schedule.timesteps)
    levels = torch.tensor(own.alpha_bar, dtype=torch.float64).sqrt()
    asked = torch.tensor([schedule.alpha_bar[t] for t in schedule.timesteps]).double().sqrt()
    nearest = (asked[:, None] - levels).abs().argmin(1)
    return replace(own, timesteps=tuple(nearest.tolist()))


def windows_of(n_frames: int, window: int | None, overlap: int) -> tuple[slice, ...]:
    """The fewest evenly spread windows that share at least `overlap` frames.

    Empty where one window holds the whole clip.
    """
    if window is None or n_frames <= window:
        return ()
    n = len(chunks(n_frames - overlap, window - overlap))
    starts = (round(i * (n_frames - window) / (n - 1)) for i in range(n))
    return tuple(slice(start, start + window) for start in starts)


def shares_of(windows: Sequence[slice]) -> Float[Tensor, "windows f"]:
    """Shares of the windows in the prediction of each frame. They sum to one over the windows.

    A share is proportional to the distance from the window's border, as FreeNoise weighs windows of
    temporal attention (Qiu et al. 2023, arXiv 2310.15169). So one window gives way to the next
    frame by frame; equal shares would make a seam.
    """
    place = torch.arange(max(w.stop for w in windows)) + 0.5
    inside = [torch.minimum(place - w.start, w.stop - place).clamp(min=0) for w in windows]
    weights = torch.stack(inside)
    return weights / weights.sum(0)


def resolved(source: Source, call: Source, pipe: Any) -> Source:
    """The source with everything filled in that it leaves open.

    call: the prompts, guidance, attention and adapter arguments of the edit. The adapter arguments
    are meant for the pipeline's own model, and no other source takes them.
    Raises InputError for a tokenizer without a text encoder, and the reverse.
    """
    if (source.tokenizer is None) != (source.text_encoder is None):
        raise InputError("A source has a tokenizer or a text_encoder alone: give both, or none.")
    unet = first_known(source.unet, pipe.unet)
    adapter, interval, scale = source.adapter, source.adapter_interval, source.adapter_scale
    if unet is pipe.unet:
        adapter = first_known(adapter, pipe.adapter)
        interval = first_known(interval, call.adapter_interval)
        scale = first_known(scale, call.adapter_scale)

    # The frames of a video model meet in its motion modules, not in its spatial attention.
    usual = "own" if isinstance(unet, VIDEO_UNETS) else call.attention
    return replace(
        source,
        unet=unet,
        scheduler=first_known(source.scheduler, pipe.scheduler),
        tokenizer=first_known(source.tokenizer, pipe.tokenizer),
        text_encoder=first_known(source.text_encoder, pipe.text_encoder),
        prompt=first_known(source.prompt, call.prompt),
        source_prompt=first_known(source.source_prompt, call.source_prompt),
        negative_prompt=first_known(source.negative_prompt, call.negative_prompt),
        guidance_scale=first_known(source.guidance_scale, call.guidance_scale),
        attention=first_known(source.attention, usual),
        adapter=adapter,
        adapter_interval=interval,
        adapter_scale=scale,
    )


def first_known(own: Any, other: Any) -> Any:
    """The first value, or the second where the first is None."""
    return other if own is None else own


@dataclass
class SourceBackbone(Backbone):
    """A Backbone called as its source asks: timesteps, device, windows, adapter, ControlNet.

    On a device other than the CPU, the question whether predictions are finite is put off until
    `confirm_finite`, so that the CPU waits for the device once per step.
    timesteps: timestep of the edit -> timestep of this network. activation: where an adapter acts;
    it is off at all other timesteps.
    """

    timesteps: dict[int, int] = field(default_factory=dict)
    windows: tuple[slice, ...] = ()
    device: torch.device | None = None
    activation: Activation | None = None
    controlnet: ControlNetModel | None = None
    control: Tensor | None = None
    control_scale: float = 1.0
    unread: list[tuple[int, Tensor]] = field(default_factory=list)  # timestep, whether all finite

    @cached_property
    def shares(self) -> Float[Tensor, "windows f"]:
        """Shares of the windows in each frame."""
        return shares_of(self.windows)

    def frames_seen(self, x: Float[Tensor, "g f c h w"]) -> int:
        """Frames per chunk of the window that the network sees."""
        return super().frames_seen(x[:, self.windows[0]] if self.windows else x)

    def __call__(self, z, t, text, patches=(), added=None) -> Float[Tensor, "g f c h w"]:
        t, device = self.timesteps.get(t, t), self.device or z.device
        x, text = z.to(device), text.to(device)
        if not self.windows:
            out = self._adapted(x, t, text, patches, added, slice(None))
        else:
            out = torch.zeros_like(x)
            for frames, share in zip(self.windows, self.shares.to(x), strict=True):
                seen = self._adapted(x[:, frames], t, text, patches, added, frames)
                out[:, frames] += share[frames, None, None, None] * seen

        # A fetched prediction answers for itself.
        fetched = out.to(z.device)
        if fetched.is_cpu and not out.is_cpu:
            self.unread.clear()
            super().check_overflow(fetched, t)
        return fetched

    def check_overflow(self, out: Tensor, t: int) -> None:
        if out.is_cpu:
            super().check_overflow(out, t)
        else:
            self.unread.append((t, torch.isfinite(out).all()))

    def _adapted(self, x, t, text, patches, added, frames: slice) -> Tensor:
        """The prediction for frames that the network sees together, with its adapter on or off."""
        residuals = None
        if self.controlnet is not None:
            control = self.control[frames].to(x)
            residuals = control_residuals(self.controlnet, x, t, text, control, self.control_scale)
        a = self.activation
        if a is None:
            return super().__call__(x, t, text, patches, added, residuals)
        if a.holds(t, a.token_interval):
            vision = None if a.vision is None else a.vision.to(text.device)
            text = a.adapter.condition(text, vision)
        with a.adapter.active(a.holds(t, a.interval), a.scale):
            return super().__call__(x, t, text, patches, added, residuals)


def confirm_finite(backbones: Sequence[SourceBackbone]) -> None:
    """Refuse predictions since the last call that were not finite: one wait for all of them.

    Raises FloatingPointError, which names the network's precision and the timestep.
    """
    unread = [(b, t, flag) for b in backbones for t, flag in b.unread]
    for b in backbones:
        b.unread.clear()
    if not unread:
        return
    flags = [flag.to(unread[0][2].device) for _, _, flag in unread]
    for (b, t, _), is_finite in zip(unread, torch.stack(flags).tolist(), strict=True):
        if not is_finite:
            b.refuse_overflow(t)
