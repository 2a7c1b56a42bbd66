"""Encode frames by the VAE and prompts by CLIP; decode latents to frames.

Frames are floats in [0, 1] everywhere but inside the VAE, which takes [-1, 1]. Latents are scaled
by the VAE's config.
"""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import TextualInversionLoaderMixin
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, number_in
from vala_research.diffusion.patching import chunks
from vala_research.diffusion.pooled_text import with_pooled
from vala_research.diffusion.vae import (
    completed,
    decoded_clip,
    encoded_clip,
    is_temporal,
    moments,
    vae_factor,
)

# Pixels per call of the VAE: its decoder then needs about 1 GB (fp32), for any length of clip.
PIXELS_PER_CHUNK = 2**19
# A tokenizer with fewer tokens knows a toy world only; unknown words then deserve a warning.
SMALL_VOCABULARY = 4096
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_size(frames: Tensor, vae: Any) -> None:
    """Refuse sizes that the VAE cannot halve often enough; the UNet takes any latent size."""
    (h, w), k = frames.shape[-2:], vae_factor(vae)
    if h % k or w % k:
        near = f"{max(k, h // k * k)} high and {max(k, w // k * k)} wide"
        raise InputError(
            f"The video is {h} pixels high and {w} wide, but this model needs multiples of {k}: "
            f"crop or resize it, for example to {near}."
        )


def chunks_of(n_frames: int, height: int, width: int, frames_per_chunk: int | None) -> list[slice]:
    """Split frames for the VAE: as requested, or as fit in PIXELS_PER_CHUNK, at least one each."""
    auto = max(1, PIXELS_PER_CHUNK // (height * width))
    return chunks(n_frames, auto if frames_per_chunk is None else frames_per_chunk)


def encode_frames(
    vae: Any,
    frames: Float[Tensor, "f 3 h w"],
    frames_per_chunk: int | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    complete: bool = True,
) -> Float[Tensor, "g c y x"]:
    """Encode frames to scaled latents. The posterior's mode is taken.

    An AutoencoderTiny has no posterior. A temporal VAE makes fewer latent frames than there are
    pixel frames, g <= f, of the completed clip, see `vae`.
    device, dtype: of the latents; None is that of the frames. Frames of another device are moved
    chunk by chunk, so that no whole clip lies there.
    Raises FloatingPointError where the VAE returns NaN or infinity.
    """
    if is_temporal(vae):
        dtype = dtype or frames.dtype
        pixels = 2 * completed(vae, frames, complete).to(device or frames.device, dtype) - 1
        own = encoded_clip(vae, pixels.to(vae.dtype)).to(dtype)
        check_finite([torch.isfinite(own).all()], "encoding", vae.dtype)
        mean, scale = moments(vae, own)
        return (own - mean) / scale
    shift, dtype = getattr(vae.config, "shift_factor", None) or 0.0, dtype or frames.dtype
    z = []
    for part in chunks_of(len(frames), *frames.shape[-2:], frames_per_chunk):
        pixels = (2 * frames[part].to(device or frames.device, dtype) - 1).to(vae.dtype)
        z.append(latents_of(vae.encode(pixels)).to(dtype))
    check_finite([torch.isfinite(part).all() for part in z], "encoding", vae.dtype)
    return (torch.cat(z) - shift) * vae.config.scaling_factor


def latents_of(encoded: Any) -> Float[Tensor, "f c y x"]:
    """The latents of a VAE's output: the posterior's mode, or what an AutoencoderTiny returns."""
    return encoded.latents if "latents" in encoded else encoded.latent_dist.mode()


def check_finite(flags: list[Tensor], doing: str, dtype: torch.dtype) -> None:
    """Raise FloatingPointError where the VAE returned NaN or infinity, as half precision may.

    flags: whether each chunk is finite; they are read at once, for a device is waited for.
    """
    if torch.stack(flags).all():
        return
    overflows = ", whose numbers end at 65504" if dtype == torch.float16 else ""
    raise FloatingPointError(
        f"The VAE returned NaN or infinity when {doing} in {dtype}{overflows}: run it in "
        "torch.float32 or torch.bfloat16, such as with pipe.vae.to(torch.float32)."
    )


def decode_latents(
    vae: Any, z: Float[Tensor, "g c y x"], frames_per_chunk: int | None = None
) -> Float[Tensor, "f 3 h w"]:
    """Decode latents to frames in [0, 1], in the latents' precision.

    Of a temporal VAE come all frames of the completed clip.
    Raises FloatingPointError where the VAE returns NaN or infinity.
    """
    if is_temporal(vae):
        mean, scale = moments(vae, z)
        decoded = decoded_clip(vae, (z * scale + mean).to(vae.dtype)).to(z.dtype)
        check_finite([torch.isfinite(decoded).all()], "decoding", vae.dtype)
        return (decoded / 2 + 0.5).clamp(0, 1)
    z = z / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    k, dtype = vae_factor(vae), vae.dtype
    height, width = k * z.shape[-2], k * z.shape[-1]
    frames, are_finite = z.new_empty(len(z), 3, height, width), []
    for part in chunks_of(len(z), height, width, frames_per_chunk):
        decoded = vae.decode(z[part].to(dtype), return_dict=False)[0].to(z.dtype)
        are_finite.append(torch.isfinite(decoded).all())
        frames[part] = (decoded / 2 + 0.5).clamp(0, 1)
    check_finite(are_finite, "decoding", dtype)
    return frames


def as_output(frames: Float[Tensor, "f c h w"], output_type: str) -> Any:
    """Convert frames to a batch of one clip, as "pil", "np" or "pt"."""
    if output_type == "pt":
        return frames[None]
    array = rearrange(frames, "f c h w -> f h w c").cpu().float().numpy()
    if output_type == "np":
        return array[None]
    parts = chunks_of(len(array), *array.shape[1:3], None)
    return [[image for part in parts for image in VaeImageProcessor.numpy_to_pil(array[part])]]


def encode_prompts(
    tokenizer: Any,
    text_encoder: Any,
    prompts: list[str],
    device: torch.device,
    clip_skip: int | None = None,
    second: tuple[Any, Any] | None = None,
    n_words: int | None = None,
    zeroes_padding: bool = False,
) -> Float[Tensor, "g n d"]:
    """Encode prompts to one text embedding each; equal prompts are encoded once.

    n_words: most tokens that are read where the text encoder has no limit, as T5.
    zeroes_padding: of the embeddings behind a prompt's end, as transformers of videos read text.

    A word of a textual inversion is read with all of its vectors. second: tokenizer and text
    encoder that Stable Diffusion XL has beside the first; both outputs are joined in width, and the
    pooled text of the second is the last row, see `pooled_text`.
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
        encoders = text_encoder, second[1]
        hidden = joined_text(encoders, [x.to(device) for x in ids], clip_skip or 0)
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
