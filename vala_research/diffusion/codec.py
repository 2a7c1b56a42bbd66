"""Encode frames by the VAE and prompts by CLIP; decode latents to frames.

Frames are floats in [0, 1] everywhere but inside the VAE, which takes [-1, 1]. Latents are scaled
by the VAE's config.
"""

import re
import warnings
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.backbone import vae_factor
from vala_research.diffusion.patching import chunks

# Pixels per call of the VAE: its decoder then needs about 2 GB (fp32), for any length of clip.
PIXELS_PER_CHUNK = 2**20
# A tokenizer with fewer tokens knows a toy world only; unknown words then deserve a warning.
SMALL_VOCABULARY = 4096
MOST_GUIDANCE = 1000
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def as_frames(video: Any) -> Float[Tensor, "f 3 h w"]:
    """Convert a clip in any accepted form to one float tensor in [0, 1].

    video: one of
        a tensor f c h w, or a numpy array f h w c or f c h w, of floats in [0, 1] or of uint8;
        a list of PIL images;
        an object with `.frames` of such a form.
    Raises InputError for an empty clip, other channels than 3, other ranges.
    """
    # To a tensor f c h w.
    video = getattr(video, "frames", video)
    if isinstance(video, list | tuple):
        video = _stack(video)
    if isinstance(video, np.ndarray):
        is_channels_last = video.ndim == 4 and video.shape[-1] in (1, 2, 3, 4)
        video = torch.from_numpy(np.ascontiguousarray(video))
        video = video.permute(0, 3, 1, 2) if is_channels_last else video
    if not isinstance(video, Tensor):
        raise InputError(
            f"The video is a {type(video).__name__}: give a tensor or array of frames, a list of "
            "PIL images, or a clip from read_clip."
        )
    _check_shape(video)

    # To floats in [0, 1].
    if video.dtype == torch.uint8:
        return video.float() / 255
    video = video if video.is_floating_point() else video.float()
    low, high = video.min().item(), video.max().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # a codec's rounding is forgiven; NaN is not
        raise InputError(
            f"The video's pixels run from {low:.3g} to {high:.3g}: give finite values in [0, 1] "
            "(divide by 255), or uint8."
        )
    return video.clamp(0, 1)


def _check_shape(video: Tensor) -> None:
    """Refuse all but f 3 h w with at least one frame."""
    if video.ndim != 4:
        raise InputError(
            f"The video has shape {tuple(video.shape)}: give one clip with axes frame, channel, "
            "height, width."
        )
    if 0 in video.shape:
        raise InputError(
            f"The video of shape {tuple(video.shape)} is empty: give at least one frame."
        )
    if video.shape[1] != 3:
        raise InputError(
            f"The video has {video.shape[1]} channels: give 3 (repeat grey ones, drop or blend "
            "alpha)."
        )


def _stack(images: list | tuple) -> np.ndarray:
    """Stack PIL images to one uint8 array f h w c."""
    if not images:
        raise InputError("The video is an empty list: give at least one frame.")
    if not all(isinstance(image, PIL.Image.Image) for image in images):
        kinds = sorted({type(image).__name__ for image in images})
        raise InputError(f"The video is a list of {', '.join(kinds)}: give a list of PIL images.")
    if len({image.size for image in images}) > 1:
        sizes = sorted({image.size for image in images})
        raise InputError(f"The frames have different sizes {sizes[:3]}: resize them to one.")
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


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
    vae: Any, frames: Float[Tensor, "f 3 h w"], frames_per_chunk: int | None = None
) -> Float[Tensor, "f c y x"]:
    """Encode frames to scaled latents, in the frames' precision. The posterior's mode is taken."""
    shift, dtype = getattr(vae.config, "shift_factor", None) or 0.0, vae.dtype
    z = [
        vae.encode((2 * frames[part] - 1).to(dtype)).latent_dist.mode().to(frames.dtype)
        for part in chunks_of(len(frames), *frames.shape[-2:], frames_per_chunk)
    ]
    return (torch.cat(z) - shift) * vae.config.scaling_factor


def decode_latents(
    vae: Any, z: Float[Tensor, "f c y x"], frames_per_chunk: int | None = None
) -> Float[Tensor, "f 3 h w"]:
    """Decode latents to frames in [0, 1], in the latents' precision.

    Raises FloatingPointError where the VAE returns NaN or infinity.
    """
    z = z / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    k, dtype = vae_factor(vae), vae.dtype
    frames = torch.cat(
        [
            vae.decode(z[part].to(dtype), return_dict=False)[0].to(z.dtype)
            for part in chunks_of(len(z), k * z.shape[-2], k * z.shape[-1], frames_per_chunk)
        ]
    )
    if not torch.isfinite(frames).all():
        raise FloatingPointError(
            f"The VAE returned NaN or infinity when decoding in {dtype}: "
            "run it in torch.float32 or torch.bfloat16."
        )
    return (frames / 2 + 0.5).clamp(0, 1)


def as_output(frames: Float[Tensor, "f c h w"], output_type: str) -> Any:
    """Convert frames to a batch of one clip, as "pil", "np" or "pt"."""
    if output_type == "pt":
        return frames[None]
    array = rearrange(frames, "f c h w -> f h w c").cpu().float().numpy()
    return array[None] if output_type == "np" else [VaeImageProcessor.numpy_to_pil(array)]


def encode_prompts(
    tokenizer: Any, text_encoder: Any, prompts: list[str], device: torch.device
) -> Float[Tensor, "g n d"]:
    """Encode prompts to one text embedding each; equal prompts are encoded once.

    Warns of the end of a prompt that is beyond the tokenizer's limit. Warns of words that a small
    vocabulary does not hold. Raises InputError for a prompt that is not a string.
    """
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InputError(f"A prompt is a {type(prompt).__name__}: give one string.")
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise InputError(f"The prompt {prompt[:50]!r} is not UTF-8 text: type it again.")
    distinct = list(dict.fromkeys(prompts))
    limit = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    for prompt in distinct:
        _warn_of_losses(tokenizer, prompt, limit)

    # One batch of all different prompts, padded to the limit.
    inputs = tokenizer(
        distinct, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
    )
    if inputs.input_ids.max() >= text_encoder.config.vocab_size:
        raise InputError(
            "The tokenizer makes tokens that the text encoder does not know: give the tokenizer "
            "that it was trained with."
        )
    uses_mask = getattr(text_encoder.config, "use_attention_mask", False)  # as diffusers does
    mask = inputs.attention_mask.to(device) if uses_mask else None
    hidden = text_encoder(inputs.input_ids.to(device), attention_mask=mask)[0]
    return hidden[[distinct.index(prompt) for prompt in prompts]]


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


def check_guidance(guidance_scale: float) -> None:
    """Refuse a guidance scale that is negative, not finite or huge."""
    if not 0 <= guidance_scale <= MOST_GUIDANCE:
        raise InputError(
            f"guidance_scale is {guidance_scale!r}: give a finite number of at least 0 (1 turns it "
            f"off) and at most {MOST_GUIDANCE}."
        )
