"""Image and video models denoise one clip together: each steps by itself, then they are mixed.

FLDM (arXiv 2310.16400) 3.2. A source keeps its own network, prompt, guidance, attention, adapter,
ControlNet, prediction type and noise schedule; what they share is the latent space. The levels of
an edit are those of source 0, and every other source is asked at the timestep whose alpha_bar is
nearest to them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.adapter.activation import Activation, activate
from vala_research.diffusion import codec
from vala_research.diffusion.attention import get_policy
from vala_research.diffusion.injection import Injection
from vala_research.diffusion.inversion import Inversion
from vala_research.diffusion.schedule import Schedule
from vala_research.editing.checks import check_source, check_steps
from vala_research.editing.source import Source, SourceBackbone, own_schedule, resolved, windows_of
from vala_research.editing.stream import InversionSettings, Stream
from vala_research.methods.fusion import FusionSchedule, fuse

STARTS = ("inverted", "shared", "noise")


@dataclass
class Fusion:
    """Sources, source 0 being the video model, and the schedule of their weights.

    image_start: where sources but the first begin. "inverted": every source inverts the clip
    itself; "shared": all begin at source 0's inversion; "noise": at noise from the call's generator
    (the released code). normalise: `fuse` matches the moments of the sources first.

    Differs from paper: it inverts by the video model alone and starts the image model from noise.
    """

    sources: Sequence[Source]
    schedule: FusionSchedule = field(default_factory=FusionSchedule)
    image_start: str = "inverted"
    normalise: bool = False

    def __post_init__(self):
        if self.image_start not in STARTS:
            raise InputError(
                f"Unknown image_start {self.image_start!r}: choose one of {', '.join(STARTS)}."
            )
        if len(self.sources) != len(self.schedule.initial):
            raise InputError(
                f"There are {len(self.sources)} sources and {len(self.schedule.initial)} fusion "
                "weights: give one weight a source."
            )

    def weights(self, n_steps: int) -> list[list[float] | None]:
        """Of every step, None before tau: all asked for, so that errors come before the first."""
        return [self.schedule.weights(i, n_steps) for i in range(n_steps)]


def streams_of(
    sources: Sequence[Source],
    pipe: Any,
    schedule: Schedule,
    shape: Sequence[int],
    call: dict[str, Any],
    injection: Injection,
    frames_per_chunk: int | None,
    video: Any,
    latents: Inversion | None = None,
) -> list[Stream]:
    """One stream a source, each checked before any network runs.

    schedule: the levels of the edit. shape: of the latents, f c h w. call: prompts, guidance,
    attention and adapter arguments of the edit, for what a source leaves open. latents: an
    inversion given to the call, which source 0's adapter goes on from.
    """
    streams = []
    for index, given in enumerate(sources):
        source = resolved(given, pipe, **call)
        codec.check_guidance(source.guidance_scale)
        get_policy(source.attention)
        check_source(source, index, pipe.vae, shape)
        if source.latents is not None:
            check_steps(source.latents, schedule)
        is_own = source.unet is pipe.unet
        device = pipe._execution_device if is_own else source.unet.device
        text = encoded_prompts(source, pipe).to(device)
        own = own_schedule(schedule, source.scheduler)
        known = source.latents or (latents if index == 0 else None)
        inverted = None if known is None else known.activation
        backbone = SourceBackbone(
            source.unet, frames_per_chunk,
            activation=activation_of(source, pipe, own, video, inverted),
            timesteps=dict(zip(schedule.timesteps, own.timesteps, strict=True)),
            windows=windows_of(shape[0], source.window, source.overlap), device=device,
            controlnet=source.controlnet, control=source.control,
            control_scale=source.control_scale,
        )  # fmt: skip
        levels = replace(schedule, prediction_type=own.prediction_type)
        scale, policy = source.guidance_scale, source.attention
        streams.append(Stream(backbone, levels, text, scale, policy, injection, source.latents))
    return streams


def encoded_prompts(source: Source, pipe: Any) -> Float[Tensor, "g n d"]:
    """Negative prompt, prompt and source prompt in the source's words."""
    is_own = source.text_encoder is pipe.text_encoder
    device = pipe._execution_device if is_own else source.text_encoder.device
    prompts = [source.negative_prompt or "", source.prompt, source.source_prompt or ""]
    return codec.encode_prompts(source.tokenizer, source.text_encoder, prompts, device)


def activation_of(
    source: Source, pipe: Any, own: Schedule, video: Any, inverted: Activation | None
) -> Activation | None:
    """Where the source's adapter acts; own: the source's levels."""

    def image_tokens() -> Tensor:
        return pipe.vision_encoder.tokens(codec.as_frames(video).to(pipe._execution_device))

    known = None if video is None or pipe.vision_encoder is None else image_tokens
    interval, scale = source.adapter_interval, source.adapter_scale
    return activate(source.adapter, own, interval, scale, known, inverted)


def begin(
    streams: Sequence[Stream],
    fusion: Fusion | None,
    z_0: Float[Tensor, "f c h w"] | None,
    latents: Inversion | None,
    settings: InversionSettings,
    generator: Any,
    progress: Callable[[Iterable], Iterable],
) -> None:
    """Give every stream its noisiest latent: its own if it has one, or by `image_start`.

    latents given to the call are everybody's.
    """
    image_start = "inverted" if fusion is None else fusion.image_start
    n_injected = max(streams[0].injection.n_steps(len(streams[0].schedule)))
    if n_injected and image_start == "noise":
        raise InputError(
            "Sources that start from noise have no features of the clip to inject: set injection "
            "to 0, or image_start to 'inverted'."
        )
    for m, stream in enumerate(streams):
        if stream.inverted is not None:
            known = stream.inverted
        elif latents is not None:
            known = latents if m == 0 else replace(latents, null_text=None)
        elif m == 0 or image_start == "inverted":
            known = stream.invert(z_0, settings, n_injected > 0, progress)
        elif image_start == "shared":
            known = Inversion(streams[0].inverted.latents)
        else:
            one = generator[0] if isinstance(generator, list) else generator
            known = Inversion(randn_tensor(z_0.shape, one, z_0.device, z_0.dtype))
        stream.start(known)


def mix(streams: Sequence[Stream], weights: Sequence[float] | None, fusion: Fusion | None) -> None:
    """Replace every stream's latent by the weighted sum of all; nothing without weights."""
    if weights is None:
        return
    z = fuse([stream.z for stream in streams], weights, fusion.normalise)
    for stream in streams:
        stream.z = z
