"""What each part learns from: loss modules, and the batches that feed them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from vala_research import InputError
from vala_research.files import written_whole
from vala_research.miniature.configuration import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    SCHEDULE,
    VISION,
    training_scene,
)
from vala_research.sprites.captions import caption, vocabulary
from vala_research.sprites.render import render
from vala_research.sprites.scene import SIZE


class VaeLoss(nn.Module):
    """Pixel MSE + KL 1e-7 (just enough noise to make latents smooth), at full size or on crops."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, progress: float = 1.0) -> dict[str, Tensor]:
        posterior = self.model.encode(pixels).latent_dist
        output = self.model.decode(posterior.sample()).sample
        mse = F.mse_loss(output, pixels)
        loss = mse + 0.02 * F.l1_loss(output, pixels) + 1e-7 * posterior.kl().mean()
        return {"loss": loss, "psnr": -10 * (mse.detach() / 4).log10()}


class ClipLoss(nn.Module):
    """Image-text contrast, where captions that say the same are not each other's negatives."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels, ids, mask, meaning, progress: float = 1.0) -> dict[str, Tensor]:
        out = self.model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
        logits = out.logits_per_image
        same = (meaning[:, None] == meaning).float()
        target = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        right = same.gather(1, logits.argmax(1, keepdim=True)).mean()
        return {"loss": loss, "right": right}


class DenoiserLoss(nn.Module):
    """Epsilon regression of UNet and text encoder together.

    Weight: min-SNR-5 (Hang et al. 2023) times that of the v-parametrisation, 1 / alpha_bar
    (Salimans and Ho 2022), bounded at 100. Pure epsilon regression hardly feels the high noise
    levels, where colours and layout are decided and the error to be explained is alpha_bar.
    `emphasis` counts the sites at and around the object (1 + emphasis) times at first and fades
    to nothing, so that shapes, a small part of the picture, are learnt early and nothing is biased
    in the end (the sites around it, too, or uncertain outlines would grow).
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, emphasis: float = 3.0):
        super().__init__()
        from diffusers import DDIMScheduler

        self.unet, self.text_encoder, self.emphasis = unet, text_encoder, emphasis
        self.register_buffer("ab", DDIMScheduler(**SCHEDULE).alphas_cumprod, persistent=False)

    def forward(self, z, eps, t, ids, site_mask, progress: float = 1.0) -> dict[str, Tensor]:
        ab = self.ab[t][:, None, None, None]
        z_t = (ab.sqrt() * z + (1 - ab).sqrt() * eps).to(memory_format=torch.channels_last)
        text = self.text_encoder(ids).last_hidden_state
        error = (self.unet(z_t, t, text).sample - eps).square()
        snr = ab / (1 - ab)
        weight = snr.clamp(max=5) / snr / (ab + 0.01)
        near = F.max_pool2d(site_mask, 5, 1, 2)
        focus = 1 + self.emphasis * max(0.0, 1 - progress / 0.7) * near
        focus = focus / focus.mean((1, 2, 3), keepdim=True)
        return {"loss": (error * weight * focus).mean(), "mse": error.detach().mean()}


def frame_pool(run: Path, n_scenes: int) -> dict[str, Tensor]:
    """Two frames of each training scene: pixels (uint8), object mask, index of the scene."""
    path = run / "frames.safetensors"
    if not path.exists():
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            starts = range(0, n_scenes, 500)
            counts = [min(500, n_scenes - start) for start in starts]
            chunks = list(tqdm(pool.map(_render_chunk, starts, counts), "frames", len(starts)))
        whole = {k: torch.cat([c[k] for c in chunks]) for k in chunks[0]}
        with written_whole(path) as unfinished:
            save_file(whole, unfinished)
    pool = load_file(path)
    found = int(pool["scene"].max()) + 1
    if found != n_scenes:
        raise InputError(f"{path} holds {found} scenes: ask for those, or name another folder.")
    return pool


def _render_chunk(start: int, n: int) -> dict[str, Tensor]:
    torch.set_num_threads(1)
    clips = [render(training_scene(i), 2, SIZE) for i in range(start, start + n)]
    frames = torch.cat([c.frames for c in clips])
    return {
        "pixels": frames.mul(255).round().byte(),
        "mask": F.avg_pool2d(torch.cat([c.mask for c in clips]), 4).mul(255).round().byte(),
        "scene": torch.arange(start, start + n).repeat_interleave(2),
    }


def vae_sampler(pool: dict[str, Tensor], device: str, crop: int = 32) -> Callable:
    """Pixels in [-1,1]: crops (four for a frame) in the first half, then whole frames."""
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
        return (x.to(device).to(memory_format=torch.channels_last) / 127.5 - 1,)

    return sample


class Captions:
    """Token ids of any paraphrase of any training scene's caption, made on first use."""

    def __init__(self, tokenizer, scenes: list):
        self.tokenizer, self.scenes = tokenizer, scenes
        keys = [tuple(s.attributes.values()) for s in scenes]
        names = {k: i for i, k in enumerate(dict.fromkeys(keys))}
        self.meaning = torch.tensor([names[k] for k in keys])
        self.word = {w: tokenizer.convert_tokens_to_ids(f"{w}</w>") for w in vocabulary()}

    def ids(self, index: Tensor, generator: torch.Generator, dropout: float = 0.0) -> Tensor:
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


def clip_sampler(pool: dict[str, Tensor], captions: Captions, device: str) -> Callable:
    """Frames resized to the vision tower's size and normalised as OpenAI's CLIP, with captions."""
    mean = torch.tensor(OPENAI_CLIP_MEAN)[:, None, None]
    std = torch.tensor(OPENAI_CLIP_STD)[:, None, None]

    def sample(batch: int, generator: torch.Generator, progress: float):
        index = torch.randint(len(pool["pixels"]), (batch,), generator=generator)
        pixels = pool["pixels"][index].float() / 255
        size = VISION["image_size"]
        pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        scene = pool["scene"][index]
        ids = captions.ids(scene, generator)
        n_words = (ids == captions.tokenizer.eos_token_id).int().argmax(1, keepdim=True)
        mask = (torch.arange(ids.shape[1]) <= n_words).long()
        batch = ((pixels - mean) / std, ids, mask, captions.meaning[scene])
        return tuple(x.to(device) for x in batch)

    return sample


def latent_sampler(latents: Tensor, pool: dict, captions: Captions, device: str) -> Callable:
    """Latents, noise, stratified timesteps, captions (10% of them empty) and object masks.

    Two thirds of the timesteps lie where shapes are decided: below t = 150 little is left to
    denoise, above 650 (alpha_bar = .013) only colours and the layout show through.
    """
    n_t = SCHEDULE["num_train_timesteps"]
    edges = torch.tensor([0.0, 0.15, 0.65, 1.0])  # of t / n_t
    shares = torch.tensor([0.0, 0.12, 0.78, 1.0])  # of the samples below them

    def sample(batch: int, generator: torch.Generator, progress: float):
        index = torch.randint(len(latents), (batch,), generator=generator)
        z = latents[index].float()
        mask = pool["mask"][index].float() / 255
        eps = torch.randn(z.shape, generator=generator)
        strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        i = torch.bucketize(strata, shares[1:-1])
        place = (strata - shares[i]) / (shares[i + 1] - shares[i])
        t = (n_t * torch.lerp(edges[i], edges[i + 1], place)).long().clamp(max=n_t - 1)
        ids = captions.ids(pool["scene"][index], generator, dropout=0.1)
        return tuple(x.to(device) for x in (z, eps, t, ids, mask))

    return sample


@torch.no_grad()
def encode_pool(vae: nn.Module, pool: dict, run: Path, device: str) -> Tensor:
    """Latents (modes, fp16) of every frame, from the VAE with its latents whitened."""
    path, moments = run / "latents.safetensors", run / "whitening.safetensors"
    vae = vae.to(device).eval()

    def encode(x: Tensor) -> Tensor:
        return vae.encode(x.to(device).float() / 127.5 - 1).latent_dist.mode().cpu()

    if not moments.exists():
        sites = torch.cat([encode(x) for x in pool["pixels"][:4096].split(64)])
        sites = sites.permute(0, 2, 3, 1).flatten(0, 2).double()
        with written_whole(moments) as unfinished:
            save_file({"mean": sites.mean(0), "covariance": sites.T.cov()}, unfinished)
    fold_whitening(vae, load_file(moments))
    if not path.exists():
        threads = torch.get_num_threads()
        torch.set_num_threads(os.cpu_count() or 1)  # the other processes wait for this one
        batches = tqdm(pool["pixels"].split(64), "latents")
        latents = torch.cat([encode(x).half() for x in batches])
        torch.set_num_threads(threads)
        with written_whole(path) as unfinished:
            save_file({"latents": latents.contiguous()}, unfinished)
    return load_file(path)["latents"]


@torch.no_grad()
def fold_whitening(vae: nn.Module, moments: dict[str, Tensor]) -> None:
    """Rotate and scale the VAE's latents (ZCA) through its 1x1 quant and post-quant convolutions.

    Afterwards latents have zero mean, unit variance and uncorrelated channels at scaling factor 1;
    pictures stay what they were.
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
