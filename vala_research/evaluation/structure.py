"""Structure distance: does the layout stay while the look changes? By the keys of a ViT.

Tumanyan et al., CVPR 2022 (Splicing ViT features), with DINO ViT-B/8 (Caron et al., ICCV 2021).
"""

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError
from vala_research.diffusion.loading import load_network
from vala_research.evaluation.checks import paired
from vala_research.evaluation.clip_scores import ClipScorer, miniature_scorer, normalisation
from vala_research.frames import fit_to_size

DINO = "facebook/dino-vitb8"  # a hub id of the published metric's network
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KEYS = ("k_proj", "key")  # names of the layer in transformers 5 and 4


@dataclass(frozen=True)
class KeyEncoder:
    """A vision transformer and the normalisation of its pixels. Load once."""

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike) -> "KeyEncoder":
        """A ViT of transformers (ViT, DINOv2, ...) by folder or hub id, in safetensors."""
        from transformers import AutoModel

        name = str(name_or_path)
        what = f"{name} is no vision transformer with all its weights: it"
        remedy = f"give the folder or hub id of one with safetensors weights, such as {DINO}."
        # A pooler is never called here, and DINO's file has none.
        model = load_network(AutoModel, name, what, remedy, unused=("pooler.",))
        model = model.requires_grad_(False)
        return cls(model, *normalisation(name, IMAGENET))._checked(name)

    @classmethod
    def of_clip(cls, scorer: ClipScorer) -> "KeyEncoder":
        """The vision tower of a CLIP."""
        return cls(scorer.model.vision_model, scorer.mean, scorer.std)

    def _checked(self, name: str) -> "KeyEncoder":
        if not isinstance(getattr(self.model.config, "image_size", None), int) or not self._last():
            raise InputError(f"{name} is no vision transformer with keys: give one such as {DINO}.")
        return self

    def _last(self) -> nn.Module | None:
        """The layer that makes the last block's keys."""
        found = [m for n, m in self.model.named_modules() if n.rpartition(".")[2] in KEYS]
        return found[-1] if found else None

    @torch.no_grad()
    def keys(self, frames: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "f n d"]:
        """Keys of the last block, heads side by side, class token included."""
        side = self.model.config.image_size
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        found = []
        hook = self._last().register_forward_hook(lambda _m, _x, y: found.append(y.float().cpu()))
        try:
            for part in frames.split(16):
                pixels = (fit_to_size(part, (side, side)) - mean) / std
                self.model(pixel_values=pixels.to(next(self.model.parameters())))
        finally:
            hook.remove()
        return torch.cat(found)


def structure_distance(
    frames: Float[Tensor, "..."],
    reference: Float[Tensor, "..."],
    model: str | os.PathLike | KeyEncoder = DINO,
) -> float:
    """Mean over frames and token pairs of (S_ij - S'_ij)^2, S_ij = cos(key_i, key_j).

    In [0, 4]; smaller means that the layout is nearer that of the reference, usually the source.
    Frames are scaled to cover the model's square and cropped. Papers print it x 1000.
    Raises InputError when there is no such model.
    """
    frames, reference = (x.expand(-1, 3, -1, -1) for x in paired(frames, reference))
    encoder = model if isinstance(model, KeyEncoder) else KeyEncoder.from_pretrained(model)
    ours, theirs = (_self_similarity(encoder.keys(x)) for x in (frames, reference))
    return (ours - theirs).square().mean().item()


def structure_distance_miniature(
    frames: Float[Tensor, "..."], reference: Float[Tensor, "..."]
) -> float:
    """Structure distance on the keys of the miniature's CLIP vision tower; runs anywhere.

    In [0, 4]. Never compare it with DINO's. It separates look from layout less well: in 86 % of 200
    scenes another colour of the object moves it less than half a turn of the frame does.
    """
    scorer = miniature_scorer()
    return structure_distance(frames, reference, KeyEncoder.of_clip(scorer))


def _self_similarity(keys: Tensor) -> Float[Tensor, "f n n"]:
    keys = F.normalize(keys, dim=-1)
    return keys @ keys.mT
