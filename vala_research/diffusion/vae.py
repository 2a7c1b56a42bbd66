"""What a VAE makes of frames: latents of a frame each, or of several frames, on a smaller grid.

A temporal VAE encodes the first frame alone and then groups of frames: of pixel frames it makes
fewer latent frames. It reads whole groups only, so a clip is completed by its last frame before,
and cut after decoding.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLLTXVideo, AutoencoderKLWan, AutoencoderTiny
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError

Vae = AutoencoderKL | AutoencoderTiny | AutoencoderKLWan | AutoencoderKLLTXVideo | nn.Module
TEMPORAL_VAES = (AutoencoderKLWan, AutoencoderKLLTXVideo)
WAN_GROUP = 4  # frames that AutoencoderKLWan encodes at once, whatever its downsampling in time


def vae_factor(vae: Vae) -> int:
    """Side of a latent site in pixels: 8 for Stable Diffusion."""
    if isinstance(vae, AutoencoderKLWan):
        return vae.config.scale_factor_spatial
    if isinstance(vae, AutoencoderKLLTXVideo):
        return vae.spatial_compression_ratio
    return 2 ** (len(vae.config.block_out_channels) - 1)


def is_temporal(vae: Vae) -> bool:
    """Whether a VAE encodes clips rather than frames."""
    return isinstance(vae, TEMPORAL_VAES)


def latent_channels(vae: Vae) -> int:
    """Channels of its latents."""
    config = vae.config
    return config.z_dim if isinstance(vae, AutoencoderKLWan) else config.latent_channels


def group_of(vae: Vae) -> int:
    """Pixel frames that are encoded together after the first frame; 1 for an image VAE."""
    if isinstance(vae, AutoencoderKLWan):
        return WAN_GROUP
    return vae.temporal_compression_ratio if is_temporal(vae) else 1


def per_group(vae: Vae) -> int:
    """Latent frames of one group of pixel frames."""
    if isinstance(vae, AutoencoderKLWan):
        return WAN_GROUP // 2 ** sum(vae.config.temperal_downsample)
    return 1


def n_latent_frames(vae: Vae, n_frames: int) -> int:
    """Latent frames of a clip of so many pixel frames, once it is completed."""
    if not is_temporal(vae):
        return n_frames
    return 1 + per_group(vae) * -(-(n_frames - 1) // group_of(vae))


def n_pixel_frames(vae: Vae, n_latent: int) -> int:
    """Pixel frames that so many latent frames decode to."""
    if not is_temporal(vae):
        return n_latent
    return 1 + group_of(vae) * ((n_latent - 1) // per_group(vae))


def completed(
    vae: Vae, frames: Float[Tensor, "f c h w"], complete: bool = True
) -> Float[Tensor, "g c h w"]:
    """The clip with its last frame repeated, so that it ends with a whole group of frames.

    Raises InputError where that would be needed and `complete` is False.
    """
    needed = n_pixel_frames(vae, n_latent_frames(vae, len(frames)))
    if needed == len(frames):
        return frames
    if not complete:
        group = group_of(vae)
        raise InputError(
            f"The video has {len(frames)} frames, and this model's VAE encodes 1 frame and then "
            f"{group} at a time: give {needed - group} or {needed}, or leave complete=False out."
        )
    last = frames[-1:].expand(needed - len(frames), -1, -1, -1)
    return torch.cat([frames, last])


def latent_mask(vae: Vae, mask: Any, n_frames: int | None) -> Any:
    """A mask f h w of pixel frames as one of latent frames: the mean over what each stands for.

    Any other mask, and that of an image VAE, is returned as it is.
    """
    if not is_temporal(vae) or getattr(mask, "ndim", 0) != 3 or len(mask) != n_frames:
        return mask
    whole = completed(vae, torch.as_tensor(mask)[:, None].float())[:, 0]
    groups = whole[1:].unflatten(0, (-1, group_of(vae) // per_group(vae))).mean(1)
    return torch.cat([whole[:1], groups])


def moments(vae: Vae, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale (c 1 1) of a VAE's own latents, whose difference over it is what networks see.

    For latents f c h w.
    """
    n, config = latent_channels(vae), vae.config
    if isinstance(vae, AutoencoderKLWan):
        mean, scale = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
    elif isinstance(vae, AutoencoderKLLTXVideo):
        mean, scale = vae.latents_mean, vae.latents_std / config.scaling_factor
    else:
        mean = torch.full((n,), getattr(config, "shift_factor", None) or 0.0)
        scale = torch.full((n,), 1 / config.scaling_factor)
    return mean.to(like)[:, None, None], scale.to(like)[:, None, None]


def encoded_clip(vae: Vae, pixels: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "g c y x"]:
    """The mode of a temporal VAE's own latents; pixels in [-1, 1], a completed clip."""
    return vae.encode(pixels.transpose(0, 1)[None]).latent_dist.mode()[0].transpose(0, 1)


def decoded_clip(vae: Vae, z: Float[Tensor, "g c y x"]) -> Float[Tensor, "f 3 h w"]:
    """Pixels in [-1, 1] of a temporal VAE's own latents.

    A VAE of LTX that removes the last noise itself is told that there is none.
    """
    more = {}
    if getattr(vae.config, "timestep_conditioning", False):
        more["temb"] = torch.zeros(1, dtype=z.dtype, device=z.device)
    return vae.decode(z.transpose(0, 1)[None], return_dict=False, **more)[0][0].transpose(0, 1)
