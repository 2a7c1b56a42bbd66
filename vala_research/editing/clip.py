"""What a call knows of its clip, and the attention that is found on it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research.diffusion.attending import Attending, depends_on_clip, policy_of_clip
from vala_research.diffusion.inversion import Inversion


@dataclass(frozen=True)
class KnownClip:
    """What a call knows of its clip, converted and checked once.

    frames: f 3 y x in [0, 1], if a video is given. latents: an inversion, if one is given. shape:
    of the latents, f c h w. n_pixel_frames: of the clip, which a temporal VAE makes fewer latent
    frames of; None: all that the latents decode to.
    """

    frames: Float[Tensor, "f 3 y x"] | None
    latents: Inversion | None
    shape: tuple[int, ...]
    n_pixel_frames: int | None = None


def clip_attention(
    attention: Attending,
    clip: KnownClip,
    z_0: Float[Tensor, "f c h w"] | None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Attending:
    """The attention with which this clip is edited.

    Anchors and key frames are found on the clean latents z_0; without these, on the cleanest
    latents that are known. Without z_0, "anchors" is whatever the clip was inverted with.
    """
    if not depends_on_clip(attention):
        return attention
    if z_0 is None:
        inverted = clip.latents
        if attention == "anchors":
            return inverted.attention
        z_0 = inverted.trajectory[-1] if inverted.trajectory else inverted.latents
    one = generator[0] if isinstance(generator, list) else generator
    return policy_of_clip(attention, z_0, one, clip.frames)
