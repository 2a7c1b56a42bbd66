"""A call as it runs: what callbacks read and set, and how its clips are returned."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, number_in
from vala_research.diffusion import codec
from vala_research.diffusion.schedule import Step
from vala_research.editing.resolve import resolved
from vala_research.editing.source import Source
from vala_research.editing.stream import Stream
from vala_research.editing.words import edited_words, encoded_words, shared_words

CROSS_ATTENTION = ("scale", "ip_adapter_masks")


class CallState:
    """What diffusers' callbacks read of a running call, and may set by the names with `_`."""

    _guidance_scale: float = 1.0
    _num_timesteps: int = 0
    _interrupt: bool = False

    @property
    def guidance_scale(self) -> float:
        """The scale of the running or the last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the network is also asked with the negative prompt."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the running or the last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback stopped the call."""
        return self._interrupt


def check_guiding(guidance_rescale: float, cross_attention_kwargs: dict[str, Any] | None) -> None:
    """Check the arguments that change a prediction. Raises InputError."""
    number_in("guidance_rescale", guidance_rescale, 0, 1)
    unknown = sorted(set(cross_attention_kwargs or ()) - set(CROSS_ATTENTION))
    if unknown:
        raise InputError(
            f"cross_attention_kwargs holds {unknown[0]!r}, which no attention of an edit reads: "
            f"choose from {', '.join(CROSS_ATTENTION)}."
        )


def restarted(
    streams: Sequence[Stream], sources: Sequence[Source], call: Source | None, pipe: Any
) -> list[Stream]:
    """The streams of an inverted clip, again at its noisiest level.

    call: has other words than the streams.
    """
    again = []
    for stream, given in zip(streams, sources, strict=True):
        text, words, edited = stream.text, stream.words, stream.edited
        if call is not None:
            source = resolved(given, call, pipe)
            text = encoded_words(source, pipe).to(text)
            words = None if words is None else shared_words(source, stream.injection.weights)
            edited = None if edited is None else edited_words(source)
        again.append(replace(stream, text=text, words=words, edited=edited))
        again[-1].start(stream.inverted)
    return again


def call_back(
    pipe: Any, callback: Callable, tensor_inputs: Sequence[str], lead: Stream, i: int, step: Step
) -> None:
    """Show a callback the tensors it asks for, and take over those it returns."""
    state = {
        "latents": lead.z, "prompt_embeds": lead.text[1:2], "negative_prompt_embeds": lead.text[:1],
    }  # fmt: skip
    asked = {name: state[name] for name in tensor_inputs}
    state.update(callback(pipe, i, step.t, asked) or {})
    lead.z = state["latents"]
    lead.text = torch.cat([state["negative_prompt_embeds"], state["prompt_embeds"], lead.text[2:]])


def as_batch(
    pipe: Any, edited: Sequence[Float[Tensor, "f c h w"]], output_type: str,
    frames_per_chunk: int | None, n_pixel_frames: int | None = None,
) -> Any:  # fmt: skip
    """The edited clips as a batch: decoded, unless the latents are asked for.

    n_pixel_frames: of each clip, see `KnownClip`.
    """
    if output_type == "latent":
        return torch.stack(list(edited))
    clips = [
        codec.as_output(pipe.decode(z, frames_per_chunk, n_pixel_frames), output_type)
        for z in edited
    ]
    if output_type == "pil":
        return [clip for batch in clips for clip in batch]
    if len(clips) == 1:
        return clips[0]  # a long clip is not copied
    return torch.cat(clips) if output_type == "pt" else np.concatenate(clips)
