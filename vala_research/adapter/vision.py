"""A frame as a row of tokens: the hidden states of a CLIP vision encoder (Radford et al. 2021).

What frame-specific prompt tokens are made of: GE-Adapter (arXiv 2501.04606) 3.3.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vala_research.diffusion.loading import load_vision_tower
from vala_research.diffusion.patching import chunks
from vala_research.frames import OPENAI_MEAN, OPENAI_STD, fit_to_size

FRAMES_PER_CALL = 64


@dataclass(frozen=True)
class VisionEncoder:
    """The vision half of a CLIP model, and the name it is found by."""

    model: nn.Module
    name: str

    @classmethod
    def from_pretrained(cls, name_or_path: str, **hub: Any) -> "VisionEncoder":
        """By name: "miniature", a folder, or a hub id such as "openai/clip-vit-base-patch32".

        hub: such as `local_files_only`.
        """
        return cls(load_vision_tower(name_or_path, **hub), str(name_or_path))

    @property
    def width(self) -> int:
        """d of the tokens: 768 for ViT-B/32, 128 for the miniature's."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def tokens(
        self, frames: Float[Tensor, "f 3 h w"], device: torch.device | None = None
    ) -> Float[Tensor, "f n d"]:
        """Last hidden states, class token first; frames in [0, 1].

        A frame is scaled to cover the encoder's square and cropped at the centre.
        device: where it happens; None is that of the frames. Frames of another device are moved
        chunk by chunk; the encoder is moved and stays.
        """
        model = self.model.to(device or frames.device)
        side, tokens = model.config.image_size, []
        for part in chunks(len(frames), FRAMES_PER_CALL):
            pixels = fit_to_size(frames[part].to(model.device, model.dtype), (side, side))
            mean, std = (
                torch.tensor(v).to(pixels)[:, None, None] for v in (OPENAI_MEAN, OPENAI_STD)
            )
            tokens.append(model(pixel_values=(pixels - mean) / std).last_hidden_state)
        return torch.cat(tokens)
