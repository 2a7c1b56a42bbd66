"""Where the temporal adapter of a source acts in an edit."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from vala_research.adapter.activation import Activation, activate
from vala_research.diffusion.inversion import Inversion
from vala_research.diffusion.schedule import Schedule
from vala_research.editing.source import Source
from vala_research.methods.prompt_tokens import refuse_nan


def activation_of(
    source: Source,
    pipe: Any,
    own: Schedule,
    frames: Float[Tensor, "f 3 y x"] | None,
    inverted: Inversion | None,
) -> Activation | None:
    """Where the source's adapter acts; own: its levels; inverted: where sampling starts."""

    def image_tokens() -> Tensor:
        # Under offload the encoder goes back to where it was, as other networks do.
        encoder, device = pipe.vision_encoder, pipe._execution_device
        home = encoder.model.device if hasattr(pipe.unet, "_hf_hook") else device
        tokens = encoder.tokens(frames, device)
        encoder.model.to(home)
        refuse_nan(tokens, "image")
        return tokens

    has_pictures = frames is not None and pipe.vision_encoder is not None
    return activate(
        source.adapter, own, source.adapter_interval, source.adapter_scale,
        image_tokens if has_pictures else None, None if inverted is None else inverted.activation,
    )  # fmt: skip
