"""The recipe of the miniature's temporal adapter: `python -m vala_research.miniature.adapter`.

The library's own training loop trains a LoRA on what it sees in an edit. The noise is the noise to
which the bare model inverts a clip. Frames and caption are those of the clip's true edit. The
losses of every checkpoint on held-out clips are written beside the weights.

Differs from paper:
* True edits are supervision that the paper does not have and real clips do not offer. The sprite
  world renders them for training clips. Ten trainings on clips as they are, with fresh noise, did
  not lower E_warp beyond doubt.
* The diffusion loss is the error of v. It has weight 1 and the temporal loss 10, in the paper 0.01
  and 1. Both count, and the LoRA is on, from 0.2 T, under `sparse_causal` attention.
* The learning rate is higher.
* There are no prompt tokens: a frame's own image tokens show what the prompt is to change.

The recipe was chosen among thirteen trainings by validation clips. The README of the weights says
what the adapter does to edits.

`--as-paper` trains beside it what the paper describes: on clips as they are, with fresh noise, the
weights of its text, and from 0.5 T. LoRA, length and learning rate are those of the other recipe.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from vala_research.adapter.loss import LossSettings
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.adapter.training import TrainingSettings, train
from vala_research.adapter.validation import losses_of_checkpoints
from vala_research.editing.extras import BARE
from vala_research.editing.pipeline import VideoEditPipeline
from vala_research.files import write_rows
from vala_research.sprites.edits import EDITS, target_scene
from vala_research.sprites.render import render
from vala_research.sprites.scene import SIZE, WORLD, Scene, random_scene, split_generator

ADAPTER = AdapterSettings(
    rank=8, alpha=8, n_shared=0, uses_frame_tokens=False, interval=(0.2, 1.0), scale=1.0
)
TRAINING = TrainingSettings(
    max_steps=1200, learning_rate=1e-3, warmup_steps=20, accumulation=1, batch_size=4,
    checkpoint_every=100,
    loss=LossSettings(
        lambda_diffusion=1.0, lambda_temporal=10.0, temporal_from=0.2, attention="sparse_causal",
        caption_dropout=0.1, weighting="velocity",
    ),
)  # fmt: skip
# As the paper trains.
PAPER_ADAPTER = replace(ADAPTER, interval=(0.5, 1.0))
PAPER_TRAINING = replace(TRAINING, loss=LossSettings())
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


class SpriteEdits(Dataset):
    """Sample i is a true edit of one of `n_clips` clips of a split; one in five is the clip itself.

    A sample is {"frames": f 3 h w, "caption", "name", "noise"}. The bare model of `pipe` inverts
    the clip before the edit to this noise.
    """

    def __init__(
        self, pipe, split: str = "train", n_clips: int = 256, n_frames: int = 4, n: int = 20_000,
        attention: str = "sparse_causal", steps: int = 10,
    ):  # fmt: skip
        self.split, self.n_frames, self.n = split, n_frames, n
        world = replace(WORLD, empty=0.0)
        generators = (split_generator(split, i) for i in range(n_clips))
        self.sources = [random_scene(g, world=world) for g in generators]
        self.noise = [
            pipe.invert(self._frames(s), s.caption, steps, "ddim", attention).cpu()
            for s in tqdm(self.sources, "inversions", disable=None)
        ]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self.n:
            raise IndexError(i)
        generator, clip = split_generator(self.split, 20_000_000 + i), i % len(self.sources)
        scene = self.sources[clip]
        if torch.rand((), generator=generator).item() >= 0.2:
            kind = list(EDITS)[torch.randint(len(EDITS), (), generator=generator).item()]
            scene = target_scene(scene, kind, WORLD, generator)
        return {"frames": self._frames(scene), "caption": scene.caption,
                "name": f"{self.split} {i}", "noise": self.noise[clip]}  # fmt: skip

    def _frames(self, scene: Scene) -> Tensor:
        return render(scene, self.n_frames, SIZE).frames


def build_adapter(
    run: Path, training: TrainingSettings = TRAINING, n_held_out: int = 64, n_clips: int = 256,
    model: str = "miniature", as_paper: bool = False,
) -> list[dict]:  # fmt: skip
    """Train in `run`, from where its last training stopped; write and return validation losses.

    n_clips: training clips whose true edits are seen. as_paper: see clips as they are instead.
    """
    pipe = VideoEditPipeline.from_pretrained(model, **BARE)
    pipe.set_progress_bar_config(disable=True)
    if as_paper:
        clips, held_out = SpriteGroups(), SpriteGroups("validation", n=n_held_out)
    else:
        clips = SpriteEdits(pipe, "train", n_clips)
        held_out = SpriteEdits(pipe, "validation", n_held_out, n=n_held_out)
    generator = torch.Generator().manual_seed(training.seed)
    settings = PAPER_ADAPTER if as_paper else ADAPTER
    adapter = TemporalAdapter.attach(pipe.unet, settings, generator=generator)
    train(pipe, adapter, clips, run, training)
    adapter.detach()
    rows = losses_of_checkpoints(pipe, run, held_out, n_held_out, training.loss)
    write_rows(run / CURVES, rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vala_research.miniature.adapter")
    parser.add_argument("--work", type=Path, default=Path("runs/miniature_adapter"))
    parser.add_argument("--out", type=Path, help="the adapter alone (default: in --work)")
    parser.add_argument("--steps", type=int, default=TRAINING.max_steps)
    parser.add_argument("--as-paper", action="store_true", help="on clips as they are")
    args = parser.parse_args()
    training = PAPER_TRAINING if args.as_paper else TRAINING
    build_adapter(args.work, replace(training, max_steps=args.steps), as_paper=args.as_paper)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        for file in sorted(args.work.iterdir()):
            if file.is_file() and file.name != "state.safetensors":
                shutil.copyfile(file, args.out / file.name)


if __name__ == "__main__":
    main()
