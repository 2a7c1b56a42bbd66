"""Train variants of an adapter on the same clips, and measure edits perceptually.

Ablations of GE-Adapter (arXiv 2501.04606), Figs. 11 to 15 and Table 1: notebooks 32, 33 and 35.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.adapter.training import TrainingSettings, train
from vala_research.adapter.vision import VisionEncoder
from vala_research.data.streaming import open_groups
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.cases import Material
from vala_research.evaluation.frechet import Inception, fid, fid_miniature_clip
from vala_research.evaluation.kept_rows import hash_of
from vala_research.evaluation.perceptual import Lpips, lpips, lpips_miniature
from vala_research.evaluation.provenance import revision
from vala_research.experiments.contract import ATTENTIONS, CLIP, POINT, PUBLISHED, EditPreset
from vala_research.miniature.adapter import ADAPTER, TRAINING, SpriteGroups

BESIDE = ("controlnet", "motion")  # parts of an edit beside an adapter
ADAPTERS = "adapters"  # folder of the trained adapters, in the output
SPRITES = POINT | dict(training_steps=150, n_clips=8)
PAPER = PUBLISHED | dict(
    clip_model=CLIP, training_steps=10_000, learning_rate=3e-5, n_processes=0
)


@dataclass(frozen=True)
class Variant:
    """An adapter and its training."""

    adapter: AdapterSettings
    training: TrainingSettings


@dataclass(frozen=True, kw_only=True)
class VariantPreset(EditPreset):
    """Base of the settings of experiments that train adapters and edit with them."""

    CHOICES = EditPreset.CHOICES | {"attention": ATTENTIONS, "parts": BESIDE}

    data: str = ""  # a captioned data set or shards to train on; "": sprite clips
    training_steps: int = 2  # of each adapter
    learning_rate: float = 1e-3
    attention: str = "own"  # attention policy of the edits
    kinds: Sequence[str] = ("several",)

    @property
    def variant(self) -> Variant:
        """The recipe of the miniature's adapter, trained for so many steps at that rate."""
        training = replace(
            TRAINING, max_steps=self.training_steps, learning_rate=self.learning_rate
        )
        return Variant(ADAPTER, training)

    @property
    def vision_encoder(self) -> str:
        """Encoder of the frame tokens."""
        return "miniature" if self.model == "miniature" else self.clip_model

    def trained_in(self, output: str | Path) -> Path:
        """The folder in `output` of trainings with these settings; others have another one."""
        data = self.data and str(Path(self.data).resolve())
        key = hash_of(
            model=revision(self.model), encoder=revision(self.vision_encoder, "clip"), data=data,
            size=self.size, variant=self.variant,
        )  # fmt: skip
        return Path(output) / f"trained_{key[:12]}"

    def train(self, variants: Mapping[str, Variant], output: str | Path) -> None:
        """`train_variants` on the data, in `trained_in(output)`."""
        self.cases()  # before the training, so that missing clips are told first
        groups = open_groups(self.data, size=self.size) if self.data else SpriteGroups()
        folder = self.trained_in(output) / ADAPTERS
        train_variants(self.model, variants, groups, folder, self.vision_encoder)


def adapter_folders(names: Iterable[str], folder: str | os.PathLike) -> dict[str, str]:
    """name -> folder of that adapter, in `folder`."""
    return {name: str(Path(folder) / name.replace(" ", "_")) for name in names}


def train_variants(
    model: str | Path,
    variants: Mapping[str, Variant],
    dataset: Any,
    folder: str | os.PathLike,
    vision_encoder: str | None = None,
) -> dict[str, str]:
    """Train each variant on the same samples, in `folder`/name; a finished training is kept.

    dataset: see `adapter.training.train`. vision_encoder: encoder of the frame tokens.
    Returns: name -> folder.
    Raises InputError when a folder holds a training with other settings.
    """
    pipe = quiet_pipeline(model)
    encoder = VisionEncoder.from_pretrained(vision_encoder) if vision_encoder else None
    folders = adapter_folders(variants, folder)
    for name, variant in variants.items():
        # Only frame tokens need the encoder.
        pictures = encoder if variant.adapter.uses_frame_tokens else None
        width, called = (pictures.width, pictures.name) if pictures else (None, None)
        generator = torch.Generator().manual_seed(variant.training.seed)
        adapter = TemporalAdapter.attach(pipe.unet, variant.adapter, width, generator, called)

        # The next variant starts from the bare network.
        try:
            tokens = pictures.tokens if pictures else None
            train(pipe, adapter, dataset, folders[name], variant.training, tokens)
        finally:
            adapter.detach()
    return folders


def perceptual_measure(
    frames: Float[Tensor, "f c h w"],
    material: Material,
    lpips_weights: str = "",
    inception_weights: str = "",
) -> dict[str, float]:
    """LPIPS of neighbouring frames and FID to the source, as in Table 1; smaller is better.

    Without weights the miniature's CLIP replaces the network, and the name ends in "_miniature".
    The FID is that of the frames of one clip. These are far too few for its covariance, so the FID
    is biased: compare it only between edits of the same clips.
    """
    row, source = {}, material.frames
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*rank.*")
        if lpips_weights:
            row["lpips"] = lpips(frames[1:], frames[:-1], _lpips(lpips_weights))
        else:
            row["lpips_miniature"] = lpips_miniature(frames[1:], frames[:-1])
        if inception_weights:
            row["fid"] = fid(frames, source, _inception(inception_weights))
        else:
            row["fid_miniature"] = fid_miniature_clip(frames, source)
    return row


_lpips, _inception = cache(Lpips.from_pretrained), cache(Inception.from_pretrained)
