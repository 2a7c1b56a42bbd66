"""The recipe of the miniature's temporal adapter: `python -m vala_research.miniature.adapter`.

A LoRA trained on sprite clips by the library's own training loop; the losses of every checkpoint on
held-out clips are written beside the weights.

Differs from paper: the diffusion loss weighs 1 and the temporal one 0.1 (0.01 and 1 there), so that
denoising hardly suffers; both count, and the LoRA is on, from 0.2 T, under `extended` attention;
the learning rate is higher. No prompt tokens: a frame's own image tokens say what the prompt is to
change.

Chosen among ten trainings on validation clips, where none lowered E_warp beyond doubt. What it does
to edits is in the adapter's README.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import Dataset

from vala_research.data.sprites import random_scene, render, split_generator
from vala_research.diffusion.adapter import TemporalAdapter
from vala_research.diffusion.adapter_loss import LossSettings
from vala_research.diffusion.adapter_settings import AdapterSettings
from vala_research.diffusion.editing import VideoEditPipeline
from vala_research.diffusion.finetuning import TrainingSettings, train
from vala_research.evaluation.adapter_curves import losses_of_checkpoints
from vala_research.miniature.configuration import SIZE, WORLD

ADAPTER = AdapterSettings(
    rank=8, alpha=8, n_shared=0, uses_frame_tokens=False, interval=(0.2, 1.0), scale=1.0
)
TRAINING = TrainingSettings(
    max_steps=300, learning_rate=1e-3, warmup_steps=20, accumulation=1, batch_size=4,
    checkpoint_every=100,
    loss=LossSettings(
        lambda_diffusion=1.0, lambda_temporal=0.1, temporal_from=0.2, attention="extended",
        caption_dropout=0.1,
    ),
)  # fmt: skip
CURVES = "curves.csv"


class SpriteGroups(Dataset):
    """Sample i is a clip of scene i of a split: {"frames": f 3 h w, "caption", "name"}."""

    def __init__(self, split: str = "train", n_frames: int = 4, n: int = 20_000):
        self.split, self.n_frames, self.n = split, n_frames, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self.n:
            raise IndexError(i)
        scene = random_scene(split_generator(self.split, i), world=WORLD)
        frames = render(scene, self.n_frames, SIZE).frames
        return {"frames": frames, "caption": scene.caption, "name": f"{self.split} {i}"}


def build_adapter(
    run: Path, training: TrainingSettings = TRAINING, n_held_out: int = 64, model: str = "miniature"
) -> list[dict]:
    """Train in `run`, from where it was; returns, and writes, the curves on validation clips."""
    pipe = VideoEditPipeline.from_pretrained(model)
    generator = torch.Generator().manual_seed(training.seed)
    adapter = TemporalAdapter.attach(pipe.unet, ADAPTER, generator=generator)
    train(pipe, adapter, SpriteGroups(), run, training)
    adapter.detach()
    held_out = SpriteGroups("validation", n=n_held_out)
    rows = losses_of_checkpoints(pipe, run, held_out, n_held_out, training.loss)
    with (run / CURVES).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vala_research.miniature.adapter")
    parser.add_argument("--work", type=Path, default=Path("runs/miniature_adapter"))
    parser.add_argument("--out", type=Path, help="the adapter alone (default: in --work)")
    parser.add_argument("--steps", type=int, default=TRAINING.max_steps)
    args = parser.parse_args()
    build_adapter(args.work, replace(TRAINING, max_steps=args.steps))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        for file in sorted(args.work.iterdir()):
            if file.is_file() and file.name != "state.safetensors":
                shutil.copyfile(file, args.out / file.name)


if __name__ == "__main__":
    main()
