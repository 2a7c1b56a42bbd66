"""A source is one denoiser and all that is its own: network, words, levels, windows, adapter."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import hypot
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vala_research.adapter.activation import Activation
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.attending import Attending
from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.controlnet import Control, control_residuals
from vala_research.diffusion.inversion import Inversion
from vala_research.diffusion.level import Level
from vala_research.diffusion.patching import Patch, chunks, scaled_lora
from vala_research.diffusion.schedule import Schedule
from vala_research.diffusion.solvers import check_scheduler, is_flow

WORDS = (
    "tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "tokenizer_3", "text_encoder_3",
)  # fmt: skip
Frames = slice | list[int]  # which frames of a clip


@dataclass
class Source:
    """One denoiser and all that is its own. What is None comes from the pipeline, or its call.

    unet: UNet2DConditionModel, UNetMotionModel or UNet3DConditionModel, on any device.
    scheduler: its noise schedule and prediction type. tokenizer, text_encoder: its words; also
    tokenizer_2, text_encoder_2 of Stable Diffusion XL, and tokenizer_3, text_encoder_3 of 3.
    vae: compared with the pipeline's, to check that they share a latent space.
    prompt, source_prompt, negative_prompt, guidance_scale, and what follows them: as in an edit.
    attention: as in an edit; None is the call's for an image model and "own" for a video model.
    adapter, adapter_interval, adapter_scale: a temporal adapter attached to `unet`.
    controls: ControlNets at work; () is none, and None is that of the pipeline for its own UNet.
    window, overlap: how many frames a video model sees at once (None: all, or all that the motion
        modules of `load_motion_adapter` can see), and how many
        neighbouring windows share at least. `shares_of` averages their predictions.
    latents: the clip's inversion by this source, to skip inverting.
    """

    unet: nn.Module | None = None
    scheduler: Any = None
    tokenizer: Any = None
    text_encoder: nn.Module | None = None
    tokenizer_2: Any = None
    text_encoder_2: nn.Module | None = None
    tokenizer_3: Any = None
    text_encoder_3: nn.Module | None = None
    vae: nn.Module | None = None
    prompt: str | None = None
    source_prompt: str | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    prompt_embeds: Float[Tensor, "n d"] | None = None
    source_prompt_embeds: Float[Tensor, "n d"] | None = None
    negative_prompt_embeds: Float[Tensor, "n d"] | None = None
    guidance_rescale: float | None = None
    clip_skip: int | None = None
    cross_attention_kwargs: dict[str, Any] | None = None
    pictures: list[Float[Tensor, "2 f ..."]] | None = None
    attention: Attending | None = None
    adapter: TemporalAdapter | None = None
    adapter_interval: Sequence[float] | None = None
    adapter_scale: float | None = None
    controls: Sequence[Control] | None = None
    window: int | None = None
    overlap: int = 4
    latents: Inversion | None = None

    @classmethod
    def of(cls, pipeline: Any, **own: Any) -> "Source":
        """A source from a diffusers pipeline, such as AnimateDiffPipeline. own: other fields."""
        parts = ("unet", "scheduler", "vae", *WORDS)
        return cls(**{name: getattr(pipeline, name, None) for name in parts} | own)


def own_schedule(schedule: Schedule, scheduler: Any) -> Schedule:
    """The levels and prediction type of a source, at the timesteps nearest to the edit's levels.

    The level of equal signal-to-noise ratio. A flow network knows each; a diffusion network knows
    T, of which the nearest in sqrt(alpha_bar), the share of the signal, is taken. The edit's own
    levels map to themselves.
    """
    if is_flow(scheduler):
        check_scheduler(scheduler)
        levels = schedule.flow or tuple(step.noisy.s for step in schedule)
        times = schedule.timesteps if schedule.flow else tuple(1000 * s for s in levels)
        return Schedule((), 1.0, "flow_prediction", times, levels)
    own = Schedule.from_scheduler(scheduler, 1)
    if own.alpha_bar == schedule.alpha_bar:
        return replace(own, timesteps=schedule.timesteps)
    levels = torch.tensor(own.alpha_bar, dtype=torch.float64).sqrt()
    asked = torch.tensor([step.alpha_bar_t for step in schedule]).double().sqrt()
    nearest = (asked[:, None] - levels).abs().argmin(1)
    return replace(own, timesteps=tuple(nearest.tolist()))


def own_scales(schedule: Schedule, own: Schedule) -> dict[float, float]:
    """Timestep of the edit -> factor that takes its latent to the path of a source.

    A latent a x0 + b n of diffusion has a^2 + b^2 = 1, one of a flow a + b = 1.
    """
    if bool(schedule.flow) == bool(own.flow):
        return {}
    ends = {step.t: (step.noisy.a, step.noisy.b) for step in schedule}
    return {t: 1 / (a + b if own.flow else hypot(a, b)) for t, (a, b) in ends.items()}


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


@dataclass
class SourceBackbone(Backbone):
    """A Backbone called as its source asks: timesteps, device, windows, adapter, ControlNet.

    On a device other than the CPU, the question whether predictions are finite is put off until
    `confirm_finite`, so that the CPU waits for the device once per step.
    timesteps: timestep of the edit -> timestep of this network. scales: timestep of the edit ->
    factor of the latents, where this network is of another path. as_flow: the schedule of a
    diffusion network in the edit of a flow, whose predictions become velocities. activation: where
    an adapter acts; it is off at all other timesteps. controls: with their pictures; n_timesteps: T
    of this network. pictures: what IP-Adapters read, without and with one. always: of every call.
    """

    timesteps: dict[float, float] = field(default_factory=dict)
    scales: dict[float, float] = field(default_factory=dict)
    as_flow: Schedule | None = None
    windows: tuple[slice, ...] = ()
    device: torch.device | None = None
    activation: Activation | None = None
    controls: Sequence[Control] = ()
    n_timesteps: int = 1000
    cross_attention_kwargs: dict[str, Any] | None = None
    pictures: list[Float[Tensor, "2 f ..."]] | None = None
    always: tuple[Patch, ...] = ()
    unread: list[tuple[float, Tensor]] = field(default_factory=list)  # timestep, whether all finite

    @cached_property
    def shares(self) -> Float[Tensor, "windows f"]:
        """Shares of the windows in each frame."""
        return shares_of(self.windows)

    def frames_seen(self, x: Float[Tensor, "g f c h w"]) -> int:
        """Frames per chunk of the window that the network sees."""
        return super().frames_seen(x[:, self.windows[0]] if self.windows else x)

    def __call__(
        self, z, t, text, patches=(), shown: Sequence[int] = (), frames: Frames = slice(None)
    ) -> Float[Tensor, "g f c h w"]:
        """As `Backbone`.

        shown: for each branch, 1 where it sees the pictures; () is nowhere. frames: which frames of
        the clip z holds; all, where there are windows.
        """
        device, scale = self.device or z.device, self.scales.get(t, 1.0)
        t, text = self.timesteps.get(t, t), text.to(device)
        x = z.to(device) if scale == 1 else scale * z.to(device)
        if not self.windows:
            out = self._adapted(x, t, text, patches, frames, shown)
        else:
            out = torch.zeros_like(x)
            for window, share in zip(self.windows, self.shares.to(x), strict=True):
                seen = self._adapted(x[:, window], t, text, patches, window, shown)
                out[:, window] += share[window, None, None, None] * seen
        if self.as_flow is not None:
            level = Level.preserving(self.as_flow.alpha_bar[t])
            x0, noise = self.as_flow.split(x, out, level)
            out = noise - x0

        # A fetched prediction answers for itself.
        fetched = out.to(z.device)
        if fetched.is_cpu and not out.is_cpu:
            self.unread.clear()
            super().check_overflow(fetched, t)
        return fetched

    def check_overflow(self, out: Tensor, t: float) -> None:
        if out.is_cpu:
            super().check_overflow(out, t)
        else:
            self.unread.append((t, torch.isfinite(out).all()))

    def _adapted(self, x, t, text, patches, frames: Frames, shown=()) -> Tensor:
        """The prediction for frames that the network sees together, with its adapter on or off."""
        residuals = control_residuals(self.controls, x, t, text, frames, self.n_timesteps)
        if self.cross_attention_kwargs:  # a UNet takes entries out of the dictionary
            residuals = {**residuals, "cross_attention_kwargs": dict(self.cross_attention_kwargs)}
        if self.pictures is not None:
            rows = [p[list(shown) or [0] * len(x)][:, frames].flatten(0, 1) for p in self.pictures]
            rows = [row.to(x.device, self.dtype) for row in rows]
            residuals = {**residuals, "added_cond_kwargs": {"image_embeds": rows}}
        a = self.activation
        if a is None:
            return self._asked(x, t, text, patches, residuals)
        if a.holds(t, a.token_interval):
            vision = None if a.vision is None else a.vision.to(text.device)
            text = a.adapter.condition(text, vision)
            text = text if text.shape[1] == 1 else text[:, frames]
        with a.adapter.active(a.holds(t, a.interval), a.scale):
            return self._asked(x, t, text, patches, residuals)

    def _asked(self, x: Tensor, t: float, text: Tensor, patches: Sequence[Patch], more) -> Tensor:
        # After a call at scale 0, diffusers would leave its LoRAs at weight 1.
        with scaled_lora(self.unet, 1.0 if self.cross_attention_kwargs else None):
            return super().__call__(x, t, text, [*patches, *self.always], more)


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
