"""An adapter acts on a stretch of the diffusion steps, in inversion and edit alike.

Sampling undoes only the process that was inverted: both ask the network at the same timesteps, and
find the adapter on or off there together. GE-Adapter (arXiv 2501.04606), Figs. 11 and 14.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.adapter import TemporalAdapter
from vala_research.diffusion.adapter_files import StoredAdapter
from vala_research.diffusion.adapter_settings import checked_interval, checked_scale
from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.schedule import Schedule
from vala_research.diffusion.vision import VisionEncoder

Interval = tuple[float, float]


@dataclass(frozen=True)
class Activation:
    """Where an adapter acts in one edit: from and to these fractions of T, both included.

    interval: of the LoRA; token_interval: of the prompt tokens. vision: image tokens of the source
    frames, which frame tokens are made of.
    """

    adapter: TemporalAdapter
    interval: Interval
    token_interval: Interval
    scale: float
    n_timesteps: int
    vision: Float[Tensor, "f n d"] | None = None

    def holds(self, t: int, interval: Interval) -> bool:
        low, high = interval
        return low * self.n_timesteps <= t <= high * self.n_timesteps

    def acts_on(self, t: int) -> bool:
        """Whether anything of the adapter does."""
        return self.holds(t, self.interval) or self.holds(t, self.token_interval)


@dataclass
class AdaptedBackbone(Backbone):
    """A Backbone whose adapter is on at the timesteps of its activation, and off at all others."""

    activation: Activation | None = None

    def __call__(self, z, t, text, patches=(), added=None) -> Float[Tensor, "g f c h w"]:
        a = self.activation
        if a is None:
            return super().__call__(z, t, text, patches, added)
        if a.holds(t, a.token_interval):
            vision = None if a.vision is None else a.vision.to(text.device)
            text = a.adapter.condition(text, vision)
        with a.adapter.active(a.holds(t, a.interval), a.scale):
            return super().__call__(z, t, text, patches, added)


def vision_encoder_of(
    stored: StoredAdapter, given: str | VisionEncoder | None
) -> VisionEncoder | None:
    """What reads the frames' pictures for an adapter: the given one, or the one it names.

    Raises InputError when there is none, or its tokens are of another width.
    """
    if not stored.settings.uses_frame_tokens:
        return None
    given = given or stored.vision_encoder
    if given is None:
        raise InputError(
            "The adapter makes tokens of the clip's frames and does not name its vision encoder: "
            "give vision_encoder, the folder or hub id of a CLIP model."
        )
    encoder = given if isinstance(given, VisionEncoder) else VisionEncoder.from_pretrained(given)
    if encoder.width != stored.d_vision:
        raise InputError(
            f"The vision encoder {encoder.name!r} makes tokens of width {encoder.width} and the "
            f"adapter reads {stored.d_vision}: give the one it was trained with."
        )
    return encoder


def activate(
    adapter: TemporalAdapter | None,
    schedule: Schedule,
    interval: Interval | None,
    scale: float | None,
    image_tokens: Callable[[], Tensor] | None,
    inverted: Activation | None = None,
) -> Activation | None:
    """Where the adapter acts; None: nowhere, at scale 0 or without an adapter.

    interval, scale: None is that of the inversion, or the adapter's own. image_tokens: makes those
    of the clip, None when no clip is given. inverted: how the given inversion was made.
    Warns when no step lies in the interval. Raises InputError for arguments without an adapter, an
    inversion by an adapter that is not loaded, or frame tokens without a clip.
    """
    is_given = interval is not None or scale is not None
    if adapter is None and is_given:
        raise InputError("No adapter is loaded: call load_adapter before giving its arguments.")
    if inverted is not None and inverted.adapter is not adapter:
        if not is_given:
            raise InputError(
                "The inversion was made with an adapter that is not loaded now: load it, or "
                "invert again."
            )
        inverted = None
    if adapter is None:
        return None
    settings, like = adapter.settings, inverted or adapter.settings
    interval = like.interval if interval is None else checked_interval(interval)
    scale = like.scale if scale is None else checked_scale(scale)
    found = Activation(
        adapter, interval, settings.token_interval or interval, scale, len(schedule.alpha_bar)
    )
    if scale == 0:
        return None
    if not any(found.acts_on(t) for t in schedule.timesteps):
        warnings.warn(
            f"The adapter changes nothing: none of the {len(schedule)} steps lies in its interval "
            f"from {interval[0]:g} to {interval[1]:g}; widen it, or use more steps.",
            stacklevel=3,
        )
        return None
    if not settings.uses_frame_tokens:
        return found
    if image_tokens is not None:
        vision = image_tokens()
    elif inverted is not None:
        vision = inverted.vision
    else:
        raise InputError(
            "The adapter makes tokens of the clip's frames, and latents alone do not hold them: "
            "give the video, or the Inversion of invert(..., return_inversion=True)."
        )
    return replace(found, vision=vision)
