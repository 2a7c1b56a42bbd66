"""Encode prompts by the text encoders of a checkpoint, as diffusers does."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.loaders import TextualInversionLoaderMixin
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, number_in
from vala_research.diffusion.pooled_text import with_pooled

# A tokenizer with fewer tokens knows a toy world only; unknown words then deserve a warning.
SMALL_VOCABULARY = 4096


def encode_prompts(
    tokenizer: Any,
    text_encoder: Any,
    prompts: list[str],
    device: torch.device,
    clip_skip: int | None = None,
    second: tuple[Any, Any] | None = None,
    n_words: int | None = None,
    zeroes_padding: bool = False,
    third: tuple[Any, Any] | None = None,
    joint_width: int | None = None,
) -> Float[Tensor, "g n d"]:
    """Encode prompts to one text embedding each; equal prompts are encoded once.

    n_words: most tokens that are read where the text encoder has no limit, as T5.
    zeroes_padding: of the embeddings behind a prompt's end, as transformers of videos read text.

    A word of a textual inversion is read with all of its vectors. second: tokenizer and text
    encoder that Stable Diffusion XL has beside the first; both outputs are joined in width, and the
    pooled text of the second is the last row, see `pooled_text`. third, joint_width: of Stable
    Diffusion 3, see `three_texts`.
    Warns of the end of a prompt that is beyond the tokenizer's limit. Warns of words that a small
    vocabulary does not hold. Raises InputError for a prompt that is not a string.
    """
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InputError(f"A prompt is a {type(prompt).__name__}: give one string.")
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise InputError(f"The prompt {prompt[:50]!r} is not UTF-8 text: type it again.")
    prompts = with_all_vectors(tokenizer, prompts)
    distinct = list(dict.fromkeys(prompts))

    # One batch of all different prompts, padded to the limit.
    inputs = tokens_of(tokenizer, text_encoder, distinct, n_words)
    for prompt in distinct:
        _warn_of_losses(tokenizer, prompt, inputs.input_ids.shape[1])
    if inputs.input_ids.max() >= text_encoder.config.vocab_size:
        raise InputError(
            "The tokenizer makes tokens that the text encoder does not know: give the tokenizer "
            "that it was trained with."
        )
    if second is None:
        # As diffusers does: of CLIP where it says so, and of UMT5.
        uses_mask = getattr(text_encoder.config, "use_attention_mask", False)
        uses_mask |= text_encoder.config.model_type == "umt5"
        mask = inputs.attention_mask.to(device) if uses_mask else None
        hidden = hidden_text(text_encoder, inputs.input_ids.to(device), mask, clip_skip)
    else:
        ids = inputs.input_ids, tokens_of(*second, distinct).input_ids
        encoders, ids = (text_encoder, second[1]), [x.to(device) for x in ids]
        if joint_width is None:
            hidden = joined_text(encoders, ids, clip_skip or 0)
        else:
            long = None if third is None else tokens_of(*third, distinct, n_words).input_ids
            given = None if third is None else (third[1], long.to(device))
            hidden = three_texts(encoders, ids, given, joint_width, n_words, clip_skip or 0)
    if zeroes_padding:
        hidden = hidden * inputs.attention_mask.to(hidden)[..., None]
    return hidden[[distinct.index(prompt) for prompt in prompts]]


def with_all_vectors(tokenizer: Any, prompts: list[str]) -> list[str]:
    """The prompts with one token per vector for each word of a textual inversion."""
    return TextualInversionLoaderMixin().maybe_convert_prompt(prompts, tokenizer)


def tokens_of(
    tokenizer: Any, text_encoder: Any, prompts: list[str], n_words: int | None = None
) -> Any:
    """The tokenizer's output for prompts: each cut or padded to the limit, `input_ids` g n."""
    limit = getattr(text_encoder.config, "max_position_embeddings", None) or n_words
    limit = min(tokenizer.model_max_length, limit)
    return tokenizer(
        prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
    )


def hidden_text(
    text_encoder: Any, ids: Tensor, mask: Tensor | None, clip_skip: int | None
) -> Float[Tensor, "g n d"]:
    """The text encoder's output, or its output without the last `clip_skip` layers."""
    if clip_skip is None:
        return text_encoder(ids, attention_mask=mask)[0]
    n_layers = text_encoder.config.num_hidden_layers
    number_in("clip_skip", clip_skip, 0, n_layers, whole=True)
    states = text_encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    norm = getattr(text_encoder, "text_model", text_encoder).final_layer_norm
    return norm(states[n_layers - clip_skip])


def joined_text(
    text_encoders: Sequence[Any], ids: Sequence[Tensor], clip_skip: int
) -> Float[Tensor, "g m d"]:
    """The last layer but one of two text encoders, joined in width; the pooled text is a last row.

    clip_skip: as in diffusers, so many layers more are left out.
    """
    states = []
    for encoder, tokens in zip(text_encoders, ids, strict=True):
        number_in("clip_skip", clip_skip, 0, encoder.config.num_hidden_layers - 1, whole=True)
        answer = encoder(tokens, output_hidden_states=True)
        states.append(answer.hidden_states[-2 - clip_skip])
    return with_pooled(torch.cat(states, dim=-1), answer.text_embeds)


def three_texts(
    clips: Sequence[Any], ids: Sequence[Tensor], long: tuple[Any, Tensor] | None, width: int,
    n_words: int, clip_skip: int,
) -> Float[Tensor, "g m d"]:  # fmt: skip
    """The text of Stable Diffusion 3 (Esser et al. 2024): two of CLIP beside that of T5.

    The two of CLIP are joined in width and filled up with zeros; the tokens of T5 follow, or zeros
    where there is none. The last row holds both pooled texts.
    long: T5 and its token ids. width: of the joint text.
    """
    states, pooled = [], []
    for encoder, tokens in zip(clips, ids, strict=True):
        number_in("clip_skip", clip_skip, 0, encoder.config.num_hidden_layers - 1, whole=True)
        answer = encoder(tokens, output_hidden_states=True)
        states.append(answer.hidden_states[-2 - clip_skip])
        pooled.append(answer.text_embeds)
    short = torch.cat(states, dim=-1)
    short = F.pad(short, (0, width - short.shape[-1]))
    more = short.new_zeros(len(short), n_words, width) if long is None else long[0](long[1])[0]
    return with_pooled(torch.cat([short, more.to(short)], dim=1), torch.cat(pooled, dim=-1))


def _warn_of_losses(tokenizer: Any, prompt: str, limit: int) -> None:
    """Warn of words that the tokenizer cuts off, or does not know."""
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    if len(ids) > limit:
        # The last position that is read belongs to the end token.
        cut = tokenizer.decode(ids[limit - 1 :], skip_special_tokens=True).strip()
        warnings.warn(
            f"The prompt has {len(ids) - 2} tokens and the model reads {limit - 2}: cut off "
            f"{cut!r}.",
            stacklevel=3,
        )

    # Words of the prompt outside a small vocabulary.
    if len(tokenizer) >= SMALL_VOCABULARY:
        return
    for word in sorted(tokenizer.added_tokens_encoder, key=len, reverse=True):
        prompt = prompt.replace(word, " ")
    words = dict.fromkeys(re.findall(r"[^\W_]+", prompt.lower()))
    unknown = [word for word in words if not _is_known(tokenizer, word)]
    if unknown:
        warnings.warn(
            f"The model's vocabulary does not hold {', '.join(map(repr, unknown))} in the prompt "
            f"{prompt!r}: the edit will not follow these words.",
            stacklevel=3,
        )


def _is_known(tokenizer: Any, word: str) -> bool:
    """Whether the word is one token. A word in pieces was never seen in training."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id
