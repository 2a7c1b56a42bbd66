"""What each part of the miniature learns from: rendered frames, captions, latents, in batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vala_research import InputError
from vala_research.files import write_tensors
from vala_research.frames import OPENAI_MEAN, OPENAI_STD, fit_to_size
from vala_research.miniature.configuration import SCHEDULE, VISION, training_scene
from vala_research.miniature.feeding import n_cores
from vala_research.sprites.captions import caption, vocabulary
from vala_research.sprites.render import render
from vala_research.sprites.scene import SIZE


def frame_pool(run: Path, n_scenes: int) -> dict[str, Tensor]:
    """Render two frames of each training scene, on all cores; they are kept in `run`.

    Returns pixels (n 3 h w, uint8), mask (n 1 h/4 w/4, uint8) and scene (n), the scene's index.
    Raises InputError when `run` holds another number of scenes.
    """
    path = run / "frames.safetensors"
    if not path.exists():
        chunks = list(tqdm(rendered(n_scenes, 2, chunk=100), "frames"))
        frames, masks = (torch.cat(made).flatten(0, 1) for made in zip(*chunks, strict=True))
        write_tensors(path, {
            "pixels": frames, "mask": F.avg_pool2d(masks, 4).mul(255).round().byte(),
            "scene": torch.arange(n_scenes).repeat_interleave(2),
        })  # fmt: skip
    pool = load_file(path)
    held = int(pool["scene"].max()) + 1
    if held != n_scenes:
        raise InputError(f"{path} holds {held} scenes: ask for those, or name another folder.")
    return pool


@dataclass(frozen=True)
class TrainingClips(Dataset):
    """Training scenes 0..n-1 as clips: frames (f 3 h w, uint8) and the object's mask (f 1 h w)."""

    n: int
    n_frames: int

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        clip = render(training_scene(index), self.n_frames, SIZE)
        return clip.frames.mul(255).round().byte(), clip.mask


def rendered(n: int, n_frames: int, chunk: int) -> DataLoader:
    """Chunks of training clips, rendered on all cores: frames (b f 3 h w, uint8), masks."""
    return DataLoader(TrainingClips(n, n_frames), chunk, num_workers=n_cores())


def vae_sampler(pool: dict[str, Tensor], crop: int = 32) -> Callable:
    """Draw pixels in [-1, 1]: crops (four per frame) in the first half, then whole frames."""
    pixels = pool["pixels"]

    def sample(batch: int, generator: torch.Generator, progress: float):
        whole = progress > 0.5
        n = batch if whole else batch * (SIZE // crop) ** 2
        x = pixels[torch.randint(len(pixels), (n,), generator=generator)].float()
        if not whole:
            i, j = torch.randint(SIZE - crop + 1, (2,), generator=generator).tolist()
            x = x[..., i : i + crop, j : j + crop]
        if torch.rand((), generator=generator) < 0.5:
            x = x.flip(-1)
        return (x.to(memory_format=torch.channels_last) / 127.5 - 1,)

    return sample


class Captions:
    """Token ids of the training scenes' captions, in any paraphrase.

    meaning: one number per scene; scenes with equal attributes share it.
    """

    def __init__(self, tokenizer, scenes: list):
        self.tokenizer, self.scenes = tokenizer, scenes
        keys = [tuple(s.attributes.values()) for s in scenes]
        names = {k: i for i, k in enumerate(dict.fromkeys(keys))}
        self.meaning = torch.tensor([names[k] for k in keys])
        self.word = {w: tokenizer.convert_tokens_to_ids(f"{w}</w>") for w in vocabulary()}

    def ids(self, index: Tensor, generator: torch.Generator, dropout: float = 0.0) -> Tensor:
        """One padded row of ids per scene of `index`; a share `dropout` of the rows is empty."""
        wordings = torch.randint(1 << 16, index.shape, generator=generator).tolist()
        kept = (torch.rand(index.shape, generator=generator) >= dropout).tolist()
        rows = []
        for i, wording, keep in zip(index.tolist(), wordings, kept, strict=True):
            words = caption(replace(self.scenes[i], wording=wording)).split() if keep else []
            rows.append(self._pad([self.word[w] for w in words]))
        return torch.tensor(rows)

    def _pad(self, ids: list[int]) -> list[int]:
        t, n = self.tokenizer, self.tokenizer.model_max_length
        ids = [t.bos_token_id, *ids[: n - 2], t.eos_token_id]
        return ids + [t.pad_token_id] * (n - len(ids))


def clip_sampler(pool: dict[str, Tensor], captions: Captions) -> Callable:
    """Draw frames at the vision tower's size, normalised as for OpenAI's CLIP, with captions."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (OPENAI_MEAN, OPENAI_STD))
    side = VISION["image_size"]

    def sample(batch: int, generator: torch.Generator, progress: float):
        index = torch.randint(len(pool["pixels"]), (batch,), generator=generator)
        pixels = fit_to_size(pool["pixels"][index].float() / 255, (side, side))
        scene = pool["scene"][index]
        ids = captions.ids(scene, generator)
        n_words = (ids == captions.tokenizer.eos_token_id).int().argmax(1, keepdim=True)
        mask = (torch.arange(ids.shape[1]) <= n_words).long()
        return (pixels - mean) / std, ids, mask, captions.meaning[scene]

    return sample


def latent_sampler(latents: Tensor, pool: dict, captions: Captions) -> Callable:
    """Draw latents, noise, stratified timesteps, captions (10% of them empty) and object masks.

    Two thirds of the timesteps lie where shapes are decided. Below t = 150 little is left to
    denoise; above 650 (alpha_bar = .013) only colours and the layout show through.
    """

    def sample(batch: int, generator: torch.Generator, progress: float):
        index = torch.randint(len(latents), (batch,), generator=generator)
        z = latents[index].float()
        mask = pool["mask"][index].float() / 255
        eps = torch.randn(z.shape, generator=generator)
        strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = timesteps(strata, [0.0, 0.15, 0.65, 1.0], [0.0, 0.12, 0.78, 1.0])
        ids = captions.ids(pool["scene"][index], generator, dropout=0.1)
        return z, eps, t, ids, mask

    return sample


def timesteps(u: Tensor, edges: list[float], shares: list[float]) -> Tensor:
    """Timesteps whose distribution function rises linearly between (edges T, shares).

    u: uniform in [0, 1). edges: fractions of T. shares: of the timesteps below each edge.
    """
    n_t = SCHEDULE["num_train_timesteps"]
    edges, shares = torch.tensor(edges), torch.tensor(shares)
    i = torch.bucketize(u, shares[1:-1])
    place = (u - shares[i]) / (shares[i + 1] - shares[i])
    return (n_t * torch.lerp(edges[i], edges[i + 1], place)).long().clamp(max=n_t - 1)


def control_timesteps(batch: int, generator: torch.Generator) -> Tensor:
    """Timesteps of a ControlNet's batch, one per stratum: the ends of the range are drawn less."""
    strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    return timesteps(strata, [0.0, 0.2, 0.85, 1.0], [0.0, 0.12, 0.88, 1.0])


@torch.no_grad()
def encode_pool(vae: nn.Module, pool: dict, run: Path, device: str) -> Tensor:
    """Whiten the VAE's latents and encode every frame; returns the latents (modes, fp16).

    The moments of the whitening and the latents are kept in `run`.
    """
    path, moments = run / "latents.safetensors", run / "whitening.safetensors"
    vae = vae.to(device).eval()

    def encode(x: Tensor) -> Tensor:
        return vae.encode(x.to(device).float() / 127.5 - 1).latent_dist.mode().cpu()

    if not moments.exists():
        sites = torch.cat([encode(x) for x in pool["pixels"][:4096].split(64)])
        sites = sites.permute(0, 2, 3, 1).flatten(0, 2).double()
        write_tensors(moments, {"mean": sites.mean(0), "covariance": sites.T.cov()})
    fold_whitening(vae, load_file(moments))
    if not path.exists():
        threads = torch.get_num_threads()
        torch.set_num_threads(n_cores())  # the other processes wait for this one
        batches = tqdm(pool["pixels"].split(64), "latents")
        latents = torch.cat([encode(x).half() for x in batches])
        torch.set_num_threads(threads)
        write_tensors(path, {"latents": latents})
    return load_file(path)["latents"]


@torch.no_grad()
def fold_whitening(vae: nn.Module, moments: dict[str, Tensor]) -> None:
    """Rotate and scale the VAE's latents (ZCA) through its 1x1 quant and post-quant convolutions.

    Afterwards latents have zero mean, unit variance and uncorrelated channels at scaling factor 1.
    Pictures stay the same.
    """
    mean = moments["mean"]
    values, vectors = torch.linalg.eigh(moments["covariance"])
    white = (vectors / values.sqrt()) @ vectors.T
    colour = (vectors * values.sqrt()) @ vectors.T
    n, into, out = len(mean), vae.quant_conv, vae.post_quant_conv
    w, b = into.weight[:n, :, 0, 0].cpu().double(), into.bias[:n].cpu().double()
    into.weight[:n] = (white @ w)[..., None, None].to(into.weight)
    into.bias[:n] = (white @ (b - mean)).to(into.bias)
    # A log-variance can only follow channel by channel.
    into.bias[n:] += 2 * white.diagonal().log().to(into.bias)
    back = out.weight[:, :, 0, 0].cpu().double()
    out.bias += (back @ mean).to(out.bias)
    out.weight.copy_((back @ colour)[..., None, None].to(out.weight))
