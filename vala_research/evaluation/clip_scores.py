"""Unit vectors of frames and prompts by any CLIPModel, without torchvision or image processors.

Radford et al. 2021. Scores of two models do not compare: name the model beside every number.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, miniature_path, number_in
from vala_research.diffusion.loading import check_folder, load_network, read_json, reason_of
from vala_research.frames import OPENAI_MEAN, OPENAI_STD, fit_to_size


@dataclass(frozen=True)
class ClipScorer:
    """A loaded CLIPModel, its tokenizer and the normalisation of its pixels.

    Built from objects (`ClipScorer(model, tokenizer)`) or from a folder or hub id
    (`ClipScorer.from_pretrained(miniature_path("clip"))`); load once, pass to every metric.
    """

    model: Any  # transformers.CLIPModel
    tokenizer: Any
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike, tokenizer: str | os.PathLike | None = None
    ) -> "ClipScorer":
        """Load a CLIPModel in safetensors, and mean and std of preprocessor_config.json if any.

        tokenizer: its folder or hub id, if not that of the weights.
        Raises InputError when there is no CLIPModel of that name.
        """
        from transformers import AutoTokenizer, CLIPModel

        name = str(name_or_path)
        remedy = "give a folder or hub id of a CLIPModel with safetensors weights and a tokenizer."
        model = load_network(
            CLIPModel, name, f"{name} is no CLIPModel with all its weights: it", remedy
        )
        words = name if tokenizer is None else str(tokenizer)
        try:
            if Path(words).is_dir():
                check_folder(Path(words))
            tokens = AutoTokenizer.from_pretrained(words, trust_remote_code=False)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"The tokenizer {words!r} cannot be loaded ({reason_of(error)}): {remedy}"
            ) from error
        model = model.requires_grad_(False)
        return cls(model, tokens, *normalisation(name, (OPENAI_MEAN, OPENAI_STD)))

    @torch.no_grad()
    def images(self, frames: Float[Tensor, "f c h w"], batch: int = 64) -> Float[Tensor, "f d"]:
        """Unit vectors of frames, scaled to cover the tower's square and cropped at the centre."""
        vectors = []
        for part in frames.split(batch):
            pooled = self.model.vision_model(pixel_values=self._pixels(part)).pooler_output
            vectors.append(self.model.visual_projection(pooled).float().cpu())
        return F.normalize(torch.cat(vectors), dim=-1)

    @torch.no_grad()
    def layers(self, frames: Float[Tensor, "f c h w"]) -> list[Float[Tensor, "f n d"]]:
        """Tokens after each layer of the vision tower, class token first."""
        out = self.model.vision_model(self._pixels(frames), output_hidden_states=True)
        return [x.float().cpu() for x in out.hidden_states[1:]]

    def _pixels(self, frames: Tensor) -> Float[Tensor, "f 3 h w"]:
        side = self.model.config.vision_config.image_size
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        fitted = fit_to_size(frames.expand(-1, 3, -1, -1), (side, side))
        return ((fitted - mean) / std).to(self._like())

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> Float[Tensor, "n d"]:
        """Unit vectors of prompts. A prompt longer than the text tower is cut."""
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            prompts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        tokens = {k: tokens[k].to(self._like().device) for k in ("input_ids", "attention_mask")}
        pooled = self.model.text_model(**tokens).pooler_output
        return F.normalize(self.model.text_projection(pooled).float().cpu(), dim=-1)

    def _like(self) -> Tensor:
        return self.model.logit_scale  # any parameter: device and dtype of the model


@cache
def miniature_scorer() -> ClipScorer:
    """The miniature's CLIPModel, loaded once per process."""
    return ClipScorer.from_pretrained(miniature_path("clip"))


def normalisation(name: str, default: tuple) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the pixels, from the preprocessor_config.json of a folder.

    default: for folders without one, and for hub ids.
    """
    file = Path(name) / "preprocessor_config.json"
    if not file.is_file():
        return default
    config = read_json(file)
    mean, std = (config.get(key, value) for key, value in zip(
        ("image_mean", "image_std"), default, strict=True
    ))  # fmt: skip
    for name, values, least in (("image_mean", mean, -1e3), ("image_std", std, 1e-3)):
        if not isinstance(values, list | tuple) or len(values) != 3:
            raise InputError(f"{file} has {name} {str(values)[:50]}: give three numbers.")
        for value in values:
            number_in(f"{name} of {file}", value, least, 1e3)
    return tuple(mean), tuple(std)
