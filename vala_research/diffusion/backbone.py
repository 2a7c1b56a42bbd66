"""One contract for every UNet: `(z, t, text) -> prediction`, with frames and branches as axes.

Frames `f` and guidance branches `g` are explicit axes everywhere else. They are flattened here and
nowhere else. Heavy per-frame modules are looped over chunks of frames, which bounds the peak memory
and changes nothing in the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
)
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError
from vala_research.diffusion.patching import Patch, chunking, patched
from vala_research.diffusion.pooled_text import conditions

UNet = UNet2DConditionModel | UNetMotionModel | UNet3DConditionModel | nn.Module  # compiled
VIDEO_UNETS = (UNetMotionModel, UNet3DConditionModel)

# Latent sites (images x height x width) that one call of a per-frame module may see. The
# feed-forward layers of Stable Diffusion 1.5 then work in about 0.7 GB (fp16), for any clip.
SITES_PER_CHUNK = 2**16


@dataclass
class Backbone:
    """A UNet as `(z, t, text) -> prediction`, with frames and guidance branches as axes.

    frames_per_chunk: how many frames the heavy modules see at once; None chooses from the
        resolution.
    n_frame_forwards: counts single frames through the network, in all branches.
    vae_factor: side of a latent site in pixels, for Stable Diffusion XL, which reads sizes.
    """

    unet: UNet
    frames_per_chunk: int | None = None
    n_frame_forwards: int = 0
    vae_factor: int = 8

    def __call__(
        self,
        z: Float[Tensor, "g f c h w"],
        t: int,
        text: Float[Tensor, "g n d"] | Float[Tensor, "g rows n d"],
        patches: Sequence[Patch] = (),
        residuals: dict[str, Any] | None = None,
    ) -> Float[Tensor, "g f c h w"]:
        """The network's prediction at timestep t, in the precision of z.

        text: one prompt per branch, or one per frame (rows = f, or 1 that all frames share). For
            Stable Diffusion XL its last row is the pooled text, see `pooled_text`.
        residuals: of a ControlNet, (g f) rows each, by the UNet's argument names.
        Raises FloatingPointError when the network returns NaN or infinity.
        """
        # Lay out frames and branches as this class of UNet wants them.
        (g, f), dtype = z.shape[:2], self.dtype
        has_time_axis = is_video_model(self.unet)
        x = rearrange(z, "g f c h w -> g c f h w" if has_time_axis else "g f c h w -> (g f) c h w")
        rows = (text[:, None] if text.ndim == 3 else text).to(dtype)
        if rows.shape[1] not in (1, f):
            raise InputError(
                f"There are {rows.shape[1]} rows of text for {f} frames: give one per frame or one."
            )
        if is_video_model(self.unet, UNet3DConditionModel):  # it repeats the prompt for every frame
            if rows.shape[1] > 1:
                raise InputError(
                    "A UNet3DConditionModel reads one prompt for all frames: leave tokens of "
                    "single frames out."
                )
            kwargs = {"encoder_hidden_states": rows[:, 0]}
        else:
            size = (self.vae_factor * z.shape[-2], self.vae_factor * z.shape[-1])
            kwargs = conditions(self.unet, rows.expand(-1, f, -1, -1).flatten(0, 1), size)
        added = kwargs.get("added_cond_kwargs", {})
        kwargs |= residuals or {}
        if added:  # beside the pictures of an IP-Adapter
            kwargs["added_cond_kwargs"] = added | kwargs["added_cond_kwargs"]

        # Call it, with the heavy modules looped over chunks of frames.
        size = self.chunk_size(f, g, *z.shape[-2:])
        if size < f:
            patches = [*patches, chunking(g, size)]
        with patched(self.unet, *patches):
            out = self.unet(x.to(dtype), t, return_dict=False, **kwargs)[0].to(z.dtype)
        self.n_frame_forwards += g * f
        self.check_overflow(out, t)
        if has_time_axis:
            return rearrange(out, "g c f h w -> g f c h w")
        return rearrange(out, "(g f) c h w -> g f c h w", f=f)

    def check_overflow(self, out: Tensor, t: int) -> None:
        """Refuse a prediction at timestep t that is not finite."""
        if not torch.isfinite(out).all():
            self.refuse_overflow(t)

    def refuse_overflow(self, t: int) -> None:
        """Say that the network overflowed at timestep t."""
        raise FloatingPointError(
            f"The network returned NaN or infinity at diffusion step t={t} in {self.dtype}: "
            "run it in torch.float32 or torch.bfloat16, or check the checkpoint's weights."
        )

    @cached_property
    def dtype(self) -> torch.dtype:
        """Precision of the network. diffusers walks over all of its modules to find it."""
        return self.unet.dtype

    def frames_seen(self, x: Float[Tensor, "g f c h w"]) -> int:
        """Frames per chunk of this input."""
        return self.chunk_size(x.shape[1], x.shape[0], *x.shape[3:])

    def chunk_size(self, n_frames: int, n_branches: int, height: int, width: int) -> int:
        """Frames per chunk: as asked, or as many as SITES_PER_CHUNK allows, at least one."""
        if self.frames_per_chunk is not None:
            return min(n_frames, self.frames_per_chunk)
        return min(n_frames, max(1, SITES_PER_CHUNK // (n_branches * height * width)))


def vae_factor(vae: AutoencoderKL | AutoencoderTiny | nn.Module) -> int:
    """Side of a latent site in pixels: 8 for Stable Diffusion."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def device_of(network: Any) -> torch.device:
    """Where a network computes: under offload its weights lie elsewhere, or nowhere ("meta")."""
    for module in network.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return network.device


def is_video_model(unet: nn.Module, kinds: type | tuple[type, ...] = VIDEO_UNETS) -> bool:
    """Whether a UNet sees frames as an axis, also one that torch.compile wraps."""
    return isinstance(getattr(unet, "_orig_mod", unet), kinds)
