"""Encode frames by the VAE, and decode latents to frames.

Frames are floats in [0, 1] everywhere but inside the VAE, which takes [-1, 1]. Latents are scaled
by the VAE's config.
"""

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.patching import chunks
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
