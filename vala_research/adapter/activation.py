"""Where an adapter acts: an interval of the diffusion steps, the same in inversion and edit.

Sampling undoes only the process that was inverted. Inversion and edit call the network at the same
timesteps, so the adapter is on or off there in both. GE-Adapter (arXiv 2501.04606), Figs. 11, 14.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from os import PathLike

from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError
from vala_research.adapter.settings import checked_interval, checked_scale
from vala_research.adapter.storage import StoredAdapter, read_adapter
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.adapter.vision import VisionEncoder
from vala_research.diffusion.patching import one_call_at_a_time
from vala_research.diffusion.schedule import Schedule, is_within

Interval = Sequence[float]


@dataclass(frozen=True)
class Activation:
    """Where an adapter acts in one edit. Intervals are fractions of T, both ends included.

    interval: of the LoRA. token_interval: of the prompt tokens. scale: of the LoRA; at 0 neither
    acts. vision: image tokens of the source frames, from which frame tokens are made.
    """

    adapter: TemporalAdapter
    interval: Interval
    token_interval: Interval
    scale: float
    n_timesteps: int
    vision: Float[Tensor, "f n d"] | None = None

    def holds(self, t: float, interval: Interval) -> bool:
        """Whether the adapter acts at timestep t, by this interval."""
        return self.scale != 0 and is_within(t, interval, self.n_timesteps)

    def acts_on(self, t: float) -> bool:
        """Whether the LoRA or the tokens act at timestep t."""
        return self.holds(t, self.interval) or self.holds(t, self.token_interval)


class AdapterMixin:
    """Lets a pipeline with a `unet` host a temporal adapter."""

    adapter: TemporalAdapter | None = None
    vision_encoder: VisionEncoder | None = None

    @one_call_at_a_time
    def load_adapter(
        self, folder: str | PathLike, vision_encoder: str | VisionEncoder | None = None
    ) -> None:
        """Load a temporal adapter, which replaces the present one. Later edits use it.

        folder: written by `TemporalAdapter.save_pretrained`, or "miniature".
        vision_encoder: the CLIP model of its frame tokens, where its name differs from training.
        Raises InputError; then the adapter that was there stays in place.
        """
        stored = read_adapter(folder, self.unet)
        encoder = vision_encoder_of(stored, vision_encoder)
        self.unload_adapter()
        self.adapter, self.vision_encoder = TemporalAdapter.load(stored, self.unet), encoder

    @one_call_at_a_time
    def unload_adapter(self) -> None:
        """Restore the model as it was before `load_adapter`."""
        if self.adapter is not None:
            self.adapter.detach()
        self.adapter, self.vision_encoder = None, None

    @property
    def adapter_networks(self) -> dict[str, nn.Module]:
        """Networks of the adapter outside the UNet: prompt tokens and image encoder."""
        tokens = self.adapter and self.adapter.tokens
        vision = self.vision_encoder and self.vision_encoder.model
        return {k: m for k, m in (("tokens", tokens), ("vision", vision)) if m is not None}

    @contextmanager
    def _without_adapter(self) -> Iterator[None]:
        """Within the block, the UNet holds its own weights alone."""
        with nullcontext() if self.adapter is None else self.adapter.lora.away():
            yield


def activate(
    adapter: TemporalAdapter | None,
    schedule: Schedule,
    interval: Interval | None,
    scale: float | None,
    image_tokens: Callable[[], Tensor] | None,
    inverted: Activation | None = None,
) -> Activation | None:
    """Where the adapter acts in an edit; None without an adapter.

    interval, scale: None is that of the inversion, or the adapter's own.
    image_tokens: makes the image tokens of the clip; None when no clip is given.
    inverted: where the adapter acted in the inversion that the edit starts from.
    Warns when no step lies in the interval. Raises InputError for arguments without an adapter, an
    inversion by an adapter that is not loaded, or frame tokens without a clip.
    """
    # The adapter of the inversion is the adapter of the edit, unless the call says otherwise.
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
    settings, usual = adapter.settings, inverted or adapter.settings
    interval = usual.interval if interval is None else checked_interval(interval)
    scale = usual.scale if scale is None else checked_scale(scale)
    activation = Activation(
        adapter, interval, settings.token_interval or interval, scale, schedule.n_timesteps
    )

    # Warn if nothing will happen; else make the image tokens that frame tokens need.
    if scale == 0:
        return activation
    if not any(activation.acts_on(t) for t in schedule.timesteps):
        warnings.warn(
            f"The adapter changes nothing: none of the {len(schedule)} steps lies in its interval "
            f"from {interval[0]:g} to {interval[1]:g}; widen it, or use more steps.",
            stacklevel=6,  # the caller of the pipeline
        )
    elif settings.uses_frame_tokens:
        vision = inverted.vision if inverted and image_tokens is None else None
        if vision is None and image_tokens is None:
            raise InputError(
                "The adapter makes tokens of the clip's frames, which latents alone do not hold: "
                "give the video, or the Inversion of invert(..., return_inversion=True)."
            )
        return replace(activation, vision=image_tokens() if vision is None else vision)
    return activation


def vision_encoder_of(
    stored: StoredAdapter, given: str | VisionEncoder | None
) -> VisionEncoder | None:
    """The image encoder of an adapter: the given one, or the one that the adapter names.

    None for an adapter without frame tokens. Only a given name may be downloaded: the name in an
    adapter's file is someone else's word.
    Raises InputError when there is none, or its tokens have another width.
    """
    if not stored.settings.uses_frame_tokens:
        return None
    is_asked, given = given is not None, given or stored.vision_encoder
    if given is None:
        raise InputError(
            "The adapter makes tokens of the clip's frames and does not name its vision encoder: "
            "give vision_encoder, the folder or hub id of a CLIP model."
        )
    if isinstance(given, VisionEncoder):
        encoder = given
    else:
        encoder = VisionEncoder.from_pretrained(given, local_files_only=not is_asked)
    if encoder.width != stored.d_vision:
        raise InputError(
            f"The vision encoder {encoder.name!r} makes tokens of width {encoder.width} and the "
            f"adapter reads {stored.d_vision}: give the one it was trained with."
        )
    return encoder
