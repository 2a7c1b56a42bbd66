"""Measure what the miniature can do: sample prompts, reconstruct clips."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.schedule import Schedule, sample
from vala_research.evaluation import metrics
from vala_research.evaluation.edit_rows import ATTRIBUTES
from vala_research.sprites.reader import read_attributes
from vala_research.sprites.render import render
from vala_research.sprites.scene import SIZE, World, random_scene, split_generator


@torch.no_grad()
def sample_images(
    pipe, prompts: list[str], generator: torch.Generator, steps: int = 25, guidance: float = 2.0
) -> Tensor:
    """Text to image by deterministic steps: one frame per prompt, n 3 h w in [0, 1]."""
    schedule = Schedule.from_scheduler(pipe.scheduler, steps)
    config, backbone = pipe.unet.config, Backbone(pipe.unet)
    side = config.get("sample_size") or SIZE // pipe.vae_scale_factor
    shape = (1, config.in_channels, side, side)
    frames = []
    for start in tqdm(range(0, len(prompts), 16), "samples"):
        batch = prompts[start : start + 16]
        text = pipe.encode_prompt([*batch, *[""] * len(batch)])

        def guided(z: Tensor, t: float, text: Tensor = text) -> Tensor:
            positive, empty = backbone(torch.cat([z, z]), t, text).chunk(2)
            return empty + guidance * (positive - empty)

        z = torch.randn(len(batch), *shape, generator=generator).to(pipe.device)
        z = sample(guided, z, schedule)
        frames.append(pipe.decode(rearrange(z, "g f c h w -> (g f) c h w")).cpu())
    return torch.cat(frames)


def prompt_accuracy(
    pipe,
    world: World,
    n: int,
    steps: int = 25,
    guidance: float = 2.0,
    held_out: bool = False,
    split: str = "test",
) -> dict[str, float]:
    """Share of prompts whose sample shows each attribute, and all four at once.

    split: the prompts are captions of its scenes. held_out: take the (shape, colour) pairs that
    training never saw instead of the others.
    """
    pairs = sorted(p for p in world.held_out if p[0] in world.shapes and p[1] in world.colours)
    scenes = [
        random_scene(
            split_generator(split, i), world=replace(world, empty=0.0),
            pair=pairs[i % len(pairs)] if held_out else None,
        )
        for i in range(n)
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    frames = sample_images(pipe, [s.caption for s in scenes], generator, steps, guidance)
    read = list(zip(read_attributes(frames), scenes, strict=True))
    right = {k: sum(r[k] == getattr(s, k) for r, s in read) / n for k in ATTRIBUTES}
    all_right = sum(r == s.attributes for r, s in read) / n
    return right | {"all": all_right, "n": n, "guidance": guidance, "steps": steps}


def reconstruction_quality(
    pipe, world: World, n_clips: int, n_frames: int = 4, steps: Iterable[int] = (10, 25, 50),
    attention: str = "own",
) -> list[dict]:  # fmt: skip
    """Invert and reconstruct test clips at guidance 1, by DDIM and exactly; one row per attempt.

    Columns: PSNR to the VAE round trip (to_vae) and to the source (to_source), in dB, and the
    network's evaluations.
    """
    rows = []
    for i in range(n_clips):
        scene = random_scene(split_generator("test", i), world=world)
        side = (pipe.unet.config.get("sample_size") or 0) * pipe.vae_scale_factor
        clip = render(scene, n_frames, side or SIZE)
        round_trip = pipe.decode(pipe.encode(clip.frames))
        for n in steps:
            for method in ("ddim", "exact"):
                inverted = pipe.invert(
                    clip.frames, scene.caption, n, method, attention, return_inversion=True
                )
                frames = pipe.reconstruct(inverted.latents, scene.caption, n, attention)
                row = {"clip": i, "inversion": method, "steps": n}
                row["evaluations"] = inverted.n_evaluations
                rows.append(row | metrics.inversion_psnr(frames, clip.frames, round_trip))
    return rows
