"""One contract for every network: `(z, t, text) -> prediction`, frames and branches as axes.

Frames `f` and guidance branches `g` are explicit axes everywhere. What a class of networks makes of
them is in its record alone, see `records`. Heavy per-frame modules are looped over chunks of
frames, which bounds the peak memory and changes nothing in the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError
from vala_research.diffusion.patching import Patch, chunking, patched
from vala_research.diffusion.records import Record, record_of

UNet = nn.Module  # a denoiser of one of the classes in RECORDS, perhaps compiled

# Latent sites (images x height x width) that one call of a per-frame module may see. The
# feed-forward layers of Stable Diffusion 1.5 then work in about 0.7 GB (fp16), for any clip.
SITES_PER_CHUNK = 2**16


@dataclass
class Backbone:
    """A denoiser as `(z, t, text) -> prediction`, with frames and guidance branches as axes.

    frames_per_chunk: how many frames the heavy modules see at once; None chooses from the
        resolution.
    n_frame_forwards: counts single frames through the network, in all branches.
    vae_factor: side of a latent site in pixels, for Stable Diffusion XL and LTX, which read sizes.
    time_factor: frames of a latent frame, for LTX.
    """

    unet: UNet
    frames_per_chunk: int | None = None
    n_frame_forwards: int = 0
    vae_factor: int = 8
    time_factor: int = 1

    def __call__(
        self,
        z: Float[Tensor, "g f c h w"],
        t: float,
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
        (g, f), record = z.shape[:2], self.record
        rows = (text[:, None] if text.ndim == 3 else text).to(self.dtype)
        if rows.shape[1] not in (1, f):
            raise InputError(
                f"There are {rows.shape[1]} rows of text for {f} frames: give one per frame or one."
            )
        if record.reads_one_prompt and rows.shape[1] > 1:
            raise InputError(
                f"A {type(self.unet).__name__} reads one prompt for all frames: leave tokens of "
                "single frames out."
            )

        # Call it, with the heavy modules of a UNet looped over chunks of frames.
        size = self.chunk_size(f, g, *z.shape[-2:])
        if size < f and record.is_unet:
            patches = [*patches, chunking(g, size)]
        pixels = (self.vae_factor * z.shape[-2], self.vae_factor * z.shape[-1], self.time_factor)
        with patched(self.unet, *patches):
            out = record.call(self.unet, z.to(self.dtype), t, rows, pixels, residuals or {})
        self.n_frame_forwards += g * f
        out = out.to(z.dtype)
        self.check_overflow(out, t)
        return out

    def check_overflow(self, out: Tensor, t: float) -> None:
        """Refuse a prediction at timestep t that is not finite."""
        if not torch.isfinite(out).all():
            self.refuse_overflow(t)

    def refuse_overflow(self, t: float) -> None:
        """Say that the network overflowed at timestep t."""
        raise FloatingPointError(
            f"The network returned NaN or infinity at diffusion step t={t} in {self.dtype}: "
            "run it in torch.float32 or torch.bfloat16, or check the checkpoint's weights."
        )

    @cached_property
    def record(self) -> Record:
        """What is particular to the network's class."""
        return record_of(self.unet)

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


def device_of(network: Any) -> torch.device:
    """Where a network computes: under offload its weights lie elsewhere, or nowhere ("meta")."""
    for module in network.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return network.device
