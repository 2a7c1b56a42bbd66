"""What a source leaves open is filled in by the pipeline and its call."""

from dataclasses import replace
from typing import Any

from vala_research import InputError
from vala_research.diffusion.motion import max_frames
from vala_research.diffusion.records import is_video_model
from vala_research.editing.source import WORDS, Source

OF_CALL = ("guidance_scale", "guidance_rescale", "clip_skip")
OF_PIPE = ("scheduler",)
OF_UNET = ("controls", "adapter_interval", "adapter_scale", "cross_attention_kwargs", "pictures")
PROMPTS = ("prompt", "source_prompt", "negative_prompt")


def resolved(source: Source, call: Source, pipe: Any) -> Source:
    """The source with everything filled in that it leaves open.

    call: the prompts, guidance, attention and adapter arguments of the edit. The adapter arguments
    are meant for the pipeline's own model, and no other source takes them.
    Raises InputError for a tokenizer without a text encoder, and the reverse.
    """
    if (source.tokenizer is None) != (source.text_encoder is None):
        raise InputError("A source has a tokenizer or a text_encoder alone: give both, or none.")
    unet = first_known(source.unet, pipe.unet)
    filled = {name: first_known(getattr(source, name), getattr(call, name)) for name in OF_CALL}
    filled |= {name: first_known(getattr(source, name), getattr(pipe, name)) for name in OF_PIPE}
    reader = pipe if source.text_encoder is None else source
    filled |= {name: getattr(reader, name) for name in WORDS}

    # Embeddings stand in place of a prompt. Those of the call belong to the pipeline's encoder.
    has_own_words = source.text_encoder is not None and source.text_encoder is not pipe.text_encoder
    for name in PROMPTS:
        text, embeds = getattr(source, name), getattr(source, f"{name}_embeds")
        if text is None and embeds is None:
            text, embeds = getattr(call, name), getattr(call, f"{name}_embeds")
            embeds = None if has_own_words else embeds
        filled |= {name: text, f"{name}_embeds": embeds}
    if filled["prompt"] is None and filled["prompt_embeds"] is None:
        raise InputError("A source with its own text_encoder has no prompt: give it one.")

    # An adapter and a LoRA belong to the pipeline's own network.
    if unet is pipe.unet:
        filled |= {n: first_known(getattr(source, n), getattr(call, n)) for n in OF_UNET}
        filled["adapter"] = first_known(source.adapter, pipe.adapter)
        # A pipeline is not asked for windows: those of its motion modules hold all they can.
        if source.window is None and pipe.image_unet is not None:
            filled["window"] = max_frames(unet)

    # The frames of another video model meet in its motion modules, not in its spatial attention.
    is_other_video = unet is not pipe.unet and is_video_model(unet)
    usual = "own" if is_other_video else call.attention
    return replace(source, unet=unet, attention=first_known(source.attention, usual), **filled)


def first_known(own: Any, other: Any) -> Any:
    """The first value, or the second where the first is None."""
    return other if own is None else own
