"""What the edit ControlNet learns from: frames before and after edits, latents, inverted noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from vala_research import InputError
from vala_research.diffusion.codec import encode_frames
from vala_research.diffusion.inversion import invert
from vala_research.diffusion.schedule import Schedule
from vala_research.files import write_tensors
from vala_research.miniature.batches import control_timesteps
from vala_research.miniature.configuration import SCHEDULE
from vala_research.sprites.edits import EDITS, target_scene
from vala_research.sprites.render import render
from vala_research.sprites.scene import SIZE, WORLD, Scene, random_scene, split_generator

KINDS = {"shape": 0.35, "several": 0.3, "colour": 0.1, "background": 0.1, "pattern": 0.1}
N_EDITS = 4  # per frame; what KINDS leave of one is the frame itself
INVERSION_STEPS = 10
Edit = tuple[Scene, Scene]  # before and after


def edit_of(index: int, edit: int) -> Edit:
    """Training scene `index`, and one of its edits. Rings, which are hard, are drawn more often."""
    world = replace(WORLD, empty=0.0)
    generator = split_generator("train", index)
    source = random_scene(generator, world=world)
    generator = split_generator("train", 30_000_000 + N_EDITS * index + edit)
    place = torch.rand((), generator=generator).item()
    for kind, share in KINDS.items():
        if place < share:
            target = target_scene(source, kind, world, generator)
            again = "shape" in EDITS[kind] and "ring" not in (source.shape, target.shape)
            return source, target_scene(source, kind, world, generator) if again else target
        place -= share
    return source, source


@dataclass
class Pairs:
    """Frames before edits (n 3 h w, uint8) and their latents; latents after them (n edits c h w).

    noise: of the first frames, c h w each. mask: of the edited object (n edits 1 h w, uint8).
    """

    before: Tensor
    codes: Tensor
    after: Tensor
    noise: Tensor
    mask: Tensor


@torch.no_grad()
def edit_pairs(
    run: Path, edits: list[list[Edit]], n_inverted: int, vae, unet, text_encoder, captions,
    device: str,
) -> Pairs:  # fmt: skip
    """Render frames and their edits, encode both, invert the first frames; all is kept in `run`.

    edits: `edit_of` each frame. captions: of the frames before the edits. Raises InputError when
    `run` holds another number of frames.
    """
    path, n = run / "pairs.safetensors", len(edits)
    if not path.exists():
        parts = [
            _pairs(i, edits[i : i + 60], n_inverted, vae, unet, text_encoder, captions, device)
            for i in tqdm(range(0, n, 60), "pairs", disable=None)
        ]
        write_tensors(path, {k: torch.cat([vars(p)[k] for p in parts]) for k in vars(parts[0])})
    pairs = Pairs(**load_file(path))
    if len(pairs.before) != n:
        raise InputError(
            f"{path} holds {len(pairs.before)} frames: ask for those, or name another folder."
        )
    return pairs


def _pairs(
    first: int, edits: list[list[Edit]], n_inverted: int, vae, unet, text_encoder, captions,
    device: str,
) -> Pairs:  # fmt: skip
    """The pairs of the frames from number `first` on."""
    # Render.
    before, after, masks = [], [], []
    for index, of_one in enumerate(edits, first):
        at = index % 3
        for _, target in of_one:
            clip = render(target, 3, SIZE)
            after.append(clip.frames[at])
            masks.append(F.avg_pool2d(clip.mask[at], 4))
        before.append(render(of_one[0][0], 3, SIZE).frames[at])
    before, after = torch.stack(before), torch.stack(after)

    # Encode, and invert some.
    codes, edited = (encode_frames(vae, x, device=torch.device(device)) for x in (before, after))
    noise = inverted = codes[: max(0, n_inverted - first)]
    if len(noise):
        from diffusers import DDIMScheduler

        generator = torch.Generator().manual_seed(first)
        ids = captions.ids(first + torch.arange(len(noise)), generator)
        text = text_encoder(ids.to(device)).last_hidden_state
        schedule = Schedule.from_scheduler(DDIMScheduler(**SCHEDULE), INVERSION_STEPS)
        noise = invert(lambda z, t: unet(z, t, text).sample, inverted, schedule).latents
    return Pairs(
        before.mul(255).round().byte(), codes.half().cpu(),
        edited.half().cpu().unflatten(0, (-1, N_EDITS)), noise.half().cpu(),
        torch.stack(masks).unflatten(0, (-1, N_EDITS)).mul(255).round().byte(),
    )  # fmt: skip


def frame_sampler(pairs: Pairs) -> Callable:
    """Draw frames before an edit, and their latents."""

    def sample(batch: int, generator: torch.Generator, progress: float):
        index = torch.randint(len(pairs.before), (batch,), generator=generator)
        return pairs.before[index] / 255, pairs.codes[index].float()

    return sample


def pair_sampler(pairs: Pairs, captions: Any) -> Callable:
    """Draw edited latents, noise, timesteps, captions (10% empty), frames before, object masks.

    captions: `Captions` of all edits. Half of the noise is fresh.
    """

    def sample(batch: int, generator: torch.Generator, progress: float):
        is_inverted = torch.rand(batch, generator=generator) < 0.5
        index = torch.randint(len(pairs.before), (batch,), generator=generator)
        index = torch.where(is_inverted, index % len(pairs.noise), index)
        edit = torch.randint(N_EDITS, (batch,), generator=generator)
        z, mask = pairs.after[index, edit].float(), pairs.mask[index, edit].float() / 255
        eps = torch.randn(z.shape, generator=generator)
        eps[is_inverted] = pairs.noise[index[is_inverted]].float()
        t = control_timesteps(batch, generator)
        ids = captions.ids(N_EDITS * index + edit, generator, dropout=0.1)
        before = pairs.before[index].float() / 255
        return z, eps, t, ids, before, mask

    return sample
