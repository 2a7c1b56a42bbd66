"""The words of a call: prompts or their embeddings. A list of prompts asks for one edit each."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.backbone import device_of
from vala_research.diffusion.patching import one_call_at_a_time, scaled_lora
from vala_research.diffusion.prompts import encode_prompts, tokens_of, with_all_vectors
from vala_research.diffusion.records import record_of, text_width
from vala_research.diffusion.word_maps import SharedWords, places_of
from vala_research.diffusion.word_masks import edited_places

Words = dict[str, Any]  # fields of a `Source`: prompts, or embeddings in their place


def words_of(
    prompt: Any, source_prompt: Any, negative_prompt: Any, prompt_embeds: Any = None,
    negative_prompt_embeds: Any = None, source_prompt_embeds: Any = None,
) -> list[Words]:  # fmt: skip
    """The words of every edit that a call asks for, one per prompt.

    Each of the three is a string, a list of strings, or embeddings with one row per prompt. One
    negative prompt serves all; the source prompt is one, since the clip is inverted once.
    Raises InputError.
    """
    edits = _rows("prompt", prompt, prompt_embeds)
    negative = _rows("negative_prompt", negative_prompt, negative_prompt_embeds)
    source = _rows("source_prompt", source_prompt, source_prompt_embeds)
    if edits == [None]:
        raise InputError("There is no prompt: give prompt or prompt_embeds.")
    for name, rows, allowed in (("negative", negative, {1, len(edits)}), ("source", source, {1})):
        if len(rows) not in allowed:
            raise InputError(
                f"There are {len(edits)} prompts and {len(rows)} {name} prompts: give "
                f"{' or '.join(map(str, sorted(allowed)))}."
            )
    names = ("prompt", "negative_prompt", "source_prompt")
    words = []
    for i, edit in enumerate(edits):
        given = dict(zip(names, (edit, negative[i % len(negative)], source[0]), strict=True))
        words.append(
            {n: None if isinstance(row, Tensor) else row for n, row in given.items()}
            | {f"{n}_embeds": row for n, row in given.items() if isinstance(row, Tensor)}
        )
    return words


def _rows(name: str, text: Any, embeds: Tensor | None) -> list[Any]:
    """One string or embedding (n d) per prompt; [None] where nothing is given."""
    if embeds is not None:
        if text not in (None, ""):
            raise InputError(f"{name} and {name}_embeds are both given: give one of them.")
        if embeds.ndim != 3 or 0 in embeds.shape:
            raise InputError(
                f"{name}_embeds has shape {tuple(embeds.shape)}: give prompts x tokens x width."
            )
        return list(embeds)
    rows = list(text) if isinstance(text, list | tuple) else [text]
    if not rows:
        raise InputError(f"{name} is an empty list: give at least one string.")
    for row in rows:
        if not isinstance(row, str) and (row is not None or len(rows) > 1):
            raise InputError(f"A prompt is a {type(row).__name__}: give one string.")
    return rows


def encoded_words(source: Any, pipe: Any) -> Float[Tensor, "g n d"]:
    """Embeddings of negative prompt, prompt and source prompt, in a resolved source's words.

    Raises InputError: no text encoder, or embeddings of other shapes.
    """
    names = ("negative_prompt", "prompt", "source_prompt")
    texts = {n: getattr(source, n) or "" for n in names if embeds_of(source, n) is None}
    known = {n: embeds_of(source, n) for n in names if n not in texts}
    second = second_reader(source)
    # Stable Diffusion XL was trained to read zeros where there is no negative prompt.
    is_zero = second is not None and source.negative_prompt is None and pipe.zeros_are_empty
    if texts:
        if source.text_encoder is None:
            raise InputError(
                f"There is no text encoder for {', '.join(texts)}: give the pipeline one, or give "
                f"{', '.join(f'{n}_embeds' for n in texts)}."
            )
        is_own = source.text_encoder is pipe.text_encoder
        device = pipe._execution_device if is_own else device_of(source.text_encoder)
        scale = (source.cross_attention_kwargs or {}).get("scale")
        with scaled_lora(source.text_encoder, scale):
            rows = encode_prompts(
                source.tokenizer, source.text_encoder, list(texts.values()), device,
                source.clip_skip, second, *reading(source.unet), *joining(source, source.unet),
            )  # fmt: skip
        known |= dict(zip(texts, rows, strict=True))
        if is_zero and "negative_prompt" in texts:
            known["negative_prompt"] = torch.zeros_like(known["negative_prompt"])

    shapes = {n: tuple(row.shape) for n, row in known.items()}
    width = text_width(source.unet)
    if len(set(shapes.values())) > 1 or known["prompt"].shape[1] != width:
        raise InputError(
            f"The embeddings have shapes {shapes}: give tokens x {width}, as many tokens in all."
        )
    like = known["prompt"]
    return torch.stack([known[n].to(like) for n in names])


def shared_words(source: Any, weights: Sequence[tuple[str, float]] = ()) -> SharedWords:
    """The words that prompt and source prompt of a resolved source share, for prompt-to-prompt.

    weights: words of the prompt, one or several in a row, and the factors of their maps.
    Raises InputError for embeddings, which have no words, and for words that the prompt lacks.
    """
    names = ("source_prompt", "prompt")
    for name in names:
        if embeds_of(source, name) is not None:
            raise InputError(
                f"The injection (words) aligns the words of two prompts, and {name}_embeds has "
                f"none: give {name}, or set words to 0."
            )
    prompts = with_all_vectors(source.tokenizer, [getattr(source, n) or "" for n in names])
    ids = tokens_of(source.tokenizer, source.text_encoder, prompts).input_ids.tolist()
    places = []
    for word, factor in weights:
        wanted = source.tokenizer(word, add_special_tokens=False).input_ids
        found = places_of(wanted, ids[1])
        if not found:
            raise InputError(
                f"The word {word!r} is weighted and not in what the model reads of the prompt "
                f"{source.prompt!r}: choose words from it, in the same spelling."
            )
        places += [(place, factor) for place in found]
    return SharedWords.of(*ids, tuple(places))


def edited_words(source: Any) -> tuple[list[int], list[int]]:
    """Places of the words in which source prompt and prompt of a resolved source differ.

    Raises InputError for embeddings, which have no words.
    """
    names = ("source_prompt", "prompt")
    if any(embeds_of(source, name) is not None for name in names):
        raise InputError(
            "The mask 'words' compares the words of two prompts, and embeddings have none: give "
            "prompts, or a mask of your own."
        )
    prompts = with_all_vectors(source.tokenizer, [getattr(source, n) or "" for n in names])
    limit = reading(source.unet)[0]
    ids = tokens_of(source.tokenizer, source.text_encoder, prompts, limit).input_ids.tolist()
    return edited_places(*ids, source.tokenizer.all_special_ids)


def reading(network: Any) -> tuple[int | None, bool]:
    """How a network reads its text: `n_words` and `zeroes_padding` of `encode_prompts`."""
    if network is None:
        return None, False
    record = record_of(network)
    return record.n_words, record.zeroes_padding


def joining(owner: Any, network: Any) -> tuple[tuple[Any, Any] | None, int | None]:
    """Third tokenizer and text encoder of a source or a pipeline, and the width of the joint text.

    Stable Diffusion 3 has them, perhaps without the third.
    """
    if network is None or not record_of(network).joins_texts:
        return None, None
    third = None if owner.text_encoder_3 is None else (owner.tokenizer_3, owner.text_encoder_3)
    return third, text_width(network)


def second_reader(owner: Any) -> tuple[Any, Any] | None:
    """Second tokenizer and text encoder of a source or a pipeline: Stable Diffusion XL has them."""
    return None if owner.text_encoder_2 is None else (owner.tokenizer_2, owner.text_encoder_2)


def embeds_of(source: Any, name: str) -> Tensor | None:
    """The embeddings that stand in place of this prompt."""
    return getattr(source, f"{name}_embeds")


@torch.no_grad()
@one_call_at_a_time
def encode_prompt(
    pipe: Any, prompt: str | list[str] | None = None, device: Any = None,
    num_images_per_prompt: int = 1, do_classifier_free_guidance: bool | None = None,
    negative_prompt: str | list[str] | None = None, prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None, lora_scale: float | None = None,
    clip_skip: int | None = None, source_prompt: str | None = None,
) -> Tensor | tuple[Tensor | None, ...]:  # fmt: skip
    """Encode prompts as in diffusers, for the arguments of an edit that have these names.

    A list of prompts and nothing of the negative prompt gives their embeddings alone, g n d. Every
    other call gives prompt_embeds and negative_prompt_embeds, and where a source_prompt is given,
    source_prompt_embeds.
    do_classifier_free_guidance: False leaves the negative prompt out.
    lora_scale, clip_skip: act on all prompts, as in an edit.
    Warns of words that are cut off or unknown. Raises InputError.
    """
    others = (do_classifier_free_guidance, negative_prompt, negative_prompt_embeds, source_prompt)
    is_alone = isinstance(prompt, list | tuple) and all(other is None for other in others)
    device = torch.device(device or pipe._execution_device)
    encoded = partial(_embedded, pipe, device, lora_scale, clip_skip)
    prompt_embeds = encoded("prompt", prompt, prompt_embeds)
    n_prompts = len(prompt_embeds)
    prompt_embeds = prompt_embeds.repeat_interleave(num_images_per_prompt, dim=0)

    # One negative prompt serves all prompts.
    if not is_alone and do_classifier_free_guidance is not False:
        text = negative_prompt or ("" if negative_prompt_embeds is None else None)
        negative_prompt_embeds = encoded("negative_prompt", text, negative_prompt_embeds)
        n_negative = len(negative_prompt_embeds)
        if n_negative not in (1, n_prompts):
            raise InputError(
                f"There are {n_prompts} prompts and {n_negative} negative prompts: give as many."
            )
        negative_prompt_embeds = negative_prompt_embeds.repeat_interleave(
            len(prompt_embeds) // n_negative, dim=0
        )
    if source_prompt is not None:
        source_prompt_embeds = encoded("source_prompt", source_prompt, None)
        return prompt_embeds, negative_prompt_embeds, source_prompt_embeds
    if not is_alone:
        return prompt_embeds, negative_prompt_embeds
    return prompt_embeds


def _embedded(
    pipe: Any, device: torch.device, lora_scale: float | None, clip_skip: int | None, name: str,
    text: Any, embeds: Tensor | None,
) -> Float[Tensor, "g n d"]:  # fmt: skip
    """The embeddings that are given, or those of the text."""
    rows = _rows(name, text, embeds)
    if embeds is not None:
        return embeds.to(device)
    if rows == [None]:
        raise InputError(f"There is no {name}: give {name} or {name}_embeds.")
    if pipe.text_encoder is None:
        raise InputError(f"There is no text encoder for {name}: give the pipeline one.")
    readers = pipe.tokenizer, pipe.text_encoder
    with scaled_lora(pipe.text_encoder, lora_scale):
        return encode_prompts(
            *readers, rows, device, clip_skip, second_reader(pipe), *reading(pipe.unet),
            *joining(pipe, pipe.unet),
        )
