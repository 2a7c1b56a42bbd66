"""The recipe of the depth ControlNet: `python -m vala_research.miniature.layout_control`.

It sees the depth of a frame, which the sprite world knows, and learns the frame. So it holds the
outlines and places of objects while a prompt changes colours and patterns, as
`control_v11f1p_sd15_depth` does beside Stable Diffusion 1.5. It sees no true edit.

ControlNet (Zhang et al. 2023, arXiv 2302.05543). Differs from the paper: 30% of the prompts are
empty instead of half.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from vala_research import InputError
from vala_research.diffusion.codec import encode_frames
from vala_research.files import write_tensors
from vala_research.miniature.batches import Captions, control_timesteps
from vala_research.miniature.configuration import training_scene
from vala_research.miniature.edit_control import ControlLoss, export, frozen_parts, new_controlnet
from vala_research.miniature.feeding import accelerator_on
from vala_research.miniature.training import Stage, named_device, train
from vala_research.sprites.render import depth_pictures, render
from vala_research.sprites.scene import SIZE

STAGE = Stage("layout", 1.0, batch=16, lr=8e-4, weight_decay=0.0, gpu_batch=512)
CHUNK = 60  # frames that are rendered and encoded at once


@torch.no_grad()
def layouts(run: Path, n: int, vae: Any, device: str) -> dict[str, Tensor]:
    """Latents (n c h w), depth (n 1 h w, uint8) and object mask (n 1 h w) of n training frames.

    Kept in `run`. Raises InputError when `run` holds another number of frames.
    """
    path = run / "layouts.safetensors"
    if not path.exists():
        parts = [
            _layouts(range(i, min(i + CHUNK, n)), vae, device)
            for i in tqdm(range(0, n, CHUNK), "frames", disable=None)
        ]
        write_tensors(path, {k: torch.cat([part[k] for part in parts]) for k in parts[0]})
    held = load_file(path)
    if len(held["depth"]) != n:
        raise InputError(
            f"{path} holds {len(held['depth'])} frames: ask for those, or name another folder."
        )
    return held


def _layouts(indices: range, vae: Any, device: str) -> dict[str, Tensor]:
    frames, depths, masks = [], [], []
    for index in indices:
        clip, at = render(training_scene(index), 3, SIZE), index % 3
        frames.append(clip.frames[at])
        depths.append(clip.depth[at])
        masks.append(F.avg_pool2d(clip.mask[at], 4))
    codes = encode_frames(vae, torch.stack(frames), device=torch.device(device))
    return {"codes": codes.half().cpu(), "depth": torch.stack(depths).byte(),
            "mask": torch.stack(masks)}  # fmt: skip


def layout_sampler(held: dict[str, Tensor], captions: Any) -> Callable:
    """Draw latents, noise, timesteps, captions (30% empty), pictures of the depth, object masks."""

    def sample(batch: int, generator: torch.Generator, progress: float):
        index = torch.randint(len(held["depth"]), (batch,), generator=generator)
        z = held["codes"][index].float()
        eps = torch.randn(z.shape, generator=generator)
        t = control_timesteps(batch, generator)
        ids = captions.ids(index, generator, dropout=0.3)
        pictures = depth_pictures(held["depth"][index].float())
        return z, eps, t, ids, pictures, held["mask"][index]

    return sample


def build(run: Path, minutes: float, n: int, device: str = "cpu", stage: Stage = STAGE) -> None:
    """Train in `run`, from where its last training stopped."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    accelerator = accelerator_on(device)
    tokenizer, vae, unet, text_encoder = frozen_parts(device)
    held = layouts(run, n, vae, device)
    captions = Captions(tokenizer, [training_scene(i) for i in range(n)])
    loss = ControlLoss(new_controlnet(unet, device), unet, text_encoder).to(device)
    sample = layout_sampler(held, captions)
    train(stage, loss, sample, run, stage.share * minutes, accelerator)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vala_research.miniature.layout_control")
    parser.add_argument("--minutes", type=float, default=60, help="of training")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/miniature_layout"))
    parser.add_argument("--out", type=Path, help="the weights (default: `depth` in --work)")
    parser.add_argument("--frames", type=int, default=6000, help="rendered for training")
    args = parser.parse_args()
    build(args.work, args.minutes, args.frames, named_device(args.device))
    export(args.work, args.out or args.work / "depth", STAGE)


if __name__ == "__main__":
    main()
