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
from vala_research.diffusion.activation import AdaptedBackbone
from vala_research.diffusion.adapter import TemporalAdapter
from vala_research.diffusion.attention import AnchorAttention, Policy
from vala_research.diffusion.backbone import VIDEO_UNETS, chunks, vae_factor
from vala_research.diffusion.inversion import Inversion
from vala_research.diffusion.motion import max_frames
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


def control_residuals(
    controlnet: ControlNetModel, x: Float[Tensor, "g f c h w"], t: int,
    text: Float[Tensor, "g n d"], control: Float[Tensor, "f 3 y x"], scale: float,
) -> dict[str, Any]:  # fmt: skip
    """What a ControlNet adds to a UNet, by the names of the UNet's arguments."""
    g, f = x.shape[:2]
    dtype = controlnet.dtype
    down, mid = controlnet(
        x.flatten(0, 1).to(dtype), t, text[:, None].expand(-1, f, -1, -1).flatten(0, 1).to(dtype),
        control.repeat(g, 1, 1, 1).to(dtype), conditioning_scale=scale, return_dict=False,
    )  # fmt: skip
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


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


def check_source(source: Source, index: int, vae: Any, shape: Sequence[int]) -> None:
    """Refuse a source that cannot share the latents of shape f c h w, before any step.

    vae: the pipeline's, with which the source's own is compared, if it has one.
    """
    name, unet = f"Source {index} ({type(source.unet).__name__})", source.unet
    n_frames, n_channels, h, w = shape
    config = unet.config
    for what, found in (("reads", config.in_channels), ("makes", config.out_channels)):
        if found != n_channels:
            raise InputError(
                f"{name} {what} latents of {found} channels and the pipeline's have {n_channels}: "
                "fuse models of one latent space."
            )
    if source.vae is not None:
        _check_vae(source.vae, vae, name)
    text_width = source.text_encoder.config.hidden_size
    if config.cross_attention_dim != text_width:
        raise InputError(
            f"{name} reads text of width {config.cross_attention_dim} and gets {text_width}: give "
            "the source its own tokenizer and text_encoder."
        )
    _check_windows(source, name, n_frames)
    if source.latents is not None and tuple(source.latents.latents.shape) != tuple(shape):
        raise InputError(
            f"{name} has latents of shape {tuple(source.latents.latents.shape)} and the clip's are "
            f"{tuple(shape)}: invert this clip."
        )
    if source.controlnet is not None:
        size = (n_frames, 3, h * vae_factor(vae), w * vae_factor(vae))
        found = None if source.control is None else tuple(source.control.shape)
        if found != size:
            raise InputError(
                f"{name} has a ControlNet and control pictures of shape {found}: give {size}."
            )


def _check_vae(vae: Any, own: Any, name: str) -> None:
    """Two latent spaces are taken for one when their scale, shift and resolution agree."""
    if vae_factor(vae) != vae_factor(own):
        raise InputError(
            f"{name} has latents {vae_factor(vae)} times smaller than the frames and the "
            f"pipeline's are {vae_factor(own)} times: fuse models of one spatial size."
        )
    for key in ("scaling_factor", "shift_factor", "latent_channels"):
        theirs, ours = (getattr(v.config, key, None) or 0 for v in (vae, own))
        if theirs != ours:
            raise InputError(
                f"{name} has a VAE of {key} {theirs} and the pipeline's is {ours}: fuse models of "
                "one latent space."
            )


def _check_windows(source: Source, name: str, n_frames: int) -> None:
    limit, window = max_frames(source.unet), source.window
    if window is not None and not (window > 0 and 0 <= source.overlap < window):
        raise InputError(
            f"{name} has a window of {window} frames with overlap {source.overlap}: give a "
            "positive window and an overlap smaller than it."
        )
    seen = min(n_frames, window or n_frames)
    if limit is not None and seen > limit:
        raise InputError(
            f"{name} is given {seen} frames and its positional encoding reaches {limit}: give the "
            f"source window={limit}, or a shorter clip."
        )
    if seen == n_frames:
        return
    if source.attention == "anchors" or isinstance(source.attention, AnchorAttention):
        raise InputError(
            f"{name} sees windows of {window} frames, and anchors are those of the whole clip: "
            "give the source another attention, such as 'own'."
        )
    if source.adapter is not None and source.adapter.settings.uses_frame_tokens:
        raise InputError(
            f"{name} sees windows of {window} frames, and its adapter makes tokens of all frames: "
            "leave the window or the adapter out."
        )


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
