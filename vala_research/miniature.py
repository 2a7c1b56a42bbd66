"""The recipe of the miniature: a Stable-Diffusion-class checkpoint trained on the sprite world.

One command, `python -m vala_research.miniature`, renders the frames, trains the VAE, the CLIP model
and the denoiser (with its text encoder, jointly), and writes the Hugging Face layout with a model
card. Every stage resumes from its last checkpoint; every stage writes a csv log.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from vala_research.data.sprite_captions import caption, vocabulary
from vala_research.data.sprites import HELD_OUT, World, random_scene, render, split_generator

SIZE = 64  # pixels
WORLD = World(
    shapes=("circle", "square", "triangle", "star", "ring"),
    colours=("red", "yellow", "green", "cyan", "blue", "purple", "white", "black"),
    backgrounds=("red", "yellow", "green", "cyan", "blue", "purple", "white", "black"),
    size=(0.21, 0.28),
    held_out=HELD_OUT,
)
VAE = dict(
    down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=4, norm_num_groups=8,
    sample_size=SIZE, mid_block_add_attention=False, scaling_factor=1.0,
)  # fmt: skip
UNET = dict(
    sample_size=SIZE // 4, in_channels=4, out_channels=4, block_out_channels=(48, 128),
    down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    layers_per_block=1, cross_attention_dim=128, attention_head_dim=4, norm_num_groups=16,
)  # fmt: skip
TEXT = dict(
    hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
    projection_dim=64, max_position_embeddings=32, hidden_act="gelu",
)  # fmt: skip
VISION = dict(
    hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
    projection_dim=64, image_size=56, patch_size=8, hidden_act="gelu",
)  # fmt: skip
# A linear schedule ends at alpha_bar_T = 4e-5, where Stable Diffusion's .0047 would leak the mean
# colour of so small a latent into the first step and tint every sample.
SCHEDULE = dict(
    num_train_timesteps=1000, beta_start=1e-4, beta_end=2e-2, beta_schedule="linear",
    prediction_type="epsilon", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
)  # fmt: skip


OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Stage:
    """One training run; `share` is its part of the recipe's minutes."""

    name: str
    share: float
    batch: int  # a process
    lr: float
    ema: float = 0.999
    warmup: float = 0.01  # of the time
    weight_decay: float = 1e-2


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


def train(
    stage: Stage, module: nn.Module, sample: Callable, run: Path, minutes: float,
    accelerator: Accelerator,
) -> dict:  # fmt: skip
    """Train `module` (returns a dict with `loss`) for `minutes` of its own time; returns the EMA.

    The learning rate follows the clock (warm-up, then cosine), so any machine finishes the recipe
    in the time it was given. State is written every two minutes, and nothing else is needed to
    resume after a kill.
    """
    optimizer = torch.optim.AdamW(
        module.parameters(), stage.lr, betas=(0.9, 0.99), weight_decay=stage.weight_decay,
        fused=True,
    )  # fmt: skip
    state, path = {"step": 0, "seconds": 0.0}, run / f"{stage.name}.safetensors"
    ema = {k: v.detach().clone() for k, v in module.state_dict().items()}
    if path.exists():
        ema, state = _resume(path, module, optimizer)
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    main = accelerator.is_main_process
    generator = torch.Generator().manual_seed(1000 * state["step"] + accelerator.process_index)
    bar = tqdm(total=int(minutes * 60), initial=int(state["seconds"]), desc=stage.name,
               unit="s", disable=not main)  # fmt: skip
    clock = saved = logged = time.monotonic()
    logs: list[dict] = []
    progress = torch.tensor(state["seconds"] / (60 * minutes))
    while progress < 1:
        factor = min(1.0, progress.item() / stage.warmup + 1e-2) * 0.5
        factor *= 1.02 + math.cos(math.pi * progress.item()) * 0.98
        optimizer.param_groups[0]["lr"] = stage.lr * factor
        out = wrapped(*sample(stage.batch, generator, progress.item()), progress=progress.item())
        accelerator.backward(out["loss"])
        norm = accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        state["step"] += 1
        decay = min(stage.ema, (1 + state["step"]) / (10 + state["step"]))
        if main:
            live = module.state_dict()
            torch._foreach_lerp_(list(ema.values()), [live[k].detach() for k in ema], 1 - decay)
        logs.append({k: v.item() for k, v in out.items()} | {"norm": norm.item()})
        now = time.monotonic()
        gap = now - clock
        # A pause (a suspended machine) is not training time.
        state["seconds"] += gap if gap < 20 else 0.0
        clock = now
        progress = torch.tensor(state["seconds"] / (60 * minutes))
        if accelerator.num_processes > 1:  # one clock for all, or their learning rates drift apart
            torch.distributed.broadcast(progress, 0)
        if main and (now - logged > 20 or progress >= 1):
            logged = now
            row = {k: sum(d[k] for d in logs) / len(logs) for k in logs[0]}
            row = {"step": state["step"], "seconds": round(state["seconds"], 1), **row}
            _log(run / f"{stage.name}.csv", row)
            bar.n = int(state["seconds"])
            bar.set_postfix({k: f"{v:.4g}" for k, v in row.items() if k != "seconds"})
            logs = []
        if main and (now - saved > 120 or progress >= 1):
            saved = now
            _checkpoint(path, module, optimizer, ema, state)
    bar.close()
    return ema


def _log(path: Path, row: dict) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def _checkpoint(path: Path, module, optimizer, ema: dict, state: dict) -> None:
    """Weights, EMA and Adam moments in one safetensors file, renamed into place."""
    tensors = {f"live.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.items()}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in moments.items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    save_file(tensors, path.with_suffix(".tmp"), {k: str(v) for k, v in state.items()})
    path.with_suffix(".tmp").replace(path)


def _resume(path: Path, module, optimizer) -> tuple[dict, dict]:
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    group = {p: {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)}
             for p in ("live.", "ema.", "adam.")}  # fmt: skip
    module.load_state_dict(group["live."])
    moments: dict[int, dict] = {}
    for key, value in group["adam."].items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = value
    whole = optimizer.state_dict()
    optimizer.load_state_dict({**whole, "state": moments})
    return group["ema."], {"step": int(meta["step"]), "seconds": float(meta["seconds"])}


def frame_pool(run: Path, n_scenes: int) -> dict[str, Tensor]:
    """Two frames of each training scene: pixels (uint8), object mask, index of the scene."""
    path = run / "frames.safetensors"
    if not path.exists():
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            starts = range(0, n_scenes, 500)
            chunks = list(tqdm(pool.map(_render_chunk, starts), "frames", len(starts)))
        whole = {k: torch.cat([c[k] for c in chunks]) for k in chunks[0]}
        save_file(whole, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    return load_file(path)


def training_scene(index: int):
    """Scene `index` of the training split."""
    return random_scene(split_generator("train", index), world=WORLD)


def _render_chunk(start: int, n: int = 500) -> dict[str, Tensor]:
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


def build_vae() -> nn.Module:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(**VAE)
    for name, module in vae.named_modules():
        if name.endswith("conv2"):  # residual branches start closed, which trains faster
            nn.init.zeros_(module.weight)
    return vae.to(memory_format=torch.channels_last)


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
    """Epsilon regression of UNet and text encoder together, weighted by min-SNR-5.

    `emphasis` counts the object's sites (1 + emphasis) times at first and fades to nothing, so
    that shapes, a small part of the picture, are learnt early and nothing is biased in the end.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, emphasis: float = 3.0):
        super().__init__()
        from diffusers import DDIMScheduler

        self.unet, self.text_encoder, self.emphasis = unet, text_encoder, emphasis
        self.register_buffer("ab", DDIMScheduler(**SCHEDULE).alphas_cumprod, persistent=False)

    def forward(self, z, eps, t, ids, site_mask, progress: float = 1.0) -> dict[str, Tensor]:
        ab = self.ab[t][:, None, None, None]
        z_t = ab.sqrt() * z + (1 - ab).sqrt() * eps
        text = self.text_encoder(ids).last_hidden_state
        error = (self.unet(z_t, t, text).sample - eps).square()
        snr = ab / (1 - ab)
        weight = snr.clamp(max=5) / snr
        focus = 1 + self.emphasis * max(0.0, 1 - progress / 0.7) * site_mask
        focus = focus / focus.mean((1, 2, 3), keepdim=True)
        return {"loss": (error * weight * focus).mean(), "mse": error.detach().mean()}


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


def build_tokenizer():
    """A CLIPTokenizer in which every word of the sprite world is one token."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list(",.!?'-0123456789")
    tokens = letters + [f"{c}</w>" for c in letters]
    merges: dict[tuple[str, str], None] = {}
    for word in vocabulary():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:  # from the right, so that endings are shared
            merges[(parts[-2], parts[-1])] = None
            parts[-2:] = [parts[-2] + parts[-1]]
            tokens.append(parts[-1])
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(tokens), *special])}
    return CLIPTokenizer(
        vocab=vocab, merges=list(merges), unk_token="<|endoftext|>", pad_token="<|endoftext|>",
        model_max_length=TEXT["max_position_embeddings"],
    )  # fmt: skip


def text_config(tokenizer) -> dict:
    return TEXT | dict(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def build_clip(tokenizer) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(text_config=text_config(tokenizer), vision_config=VISION, projection_dim=64)
    model = CLIPModel(config)
    nn.init.normal_(model.text_model.embeddings.token_embedding.weight, std=0.5)
    return model


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
    """Noised-latent batches: stratified timesteps, 10% empty captions, random mirror images."""
    n_t = SCHEDULE["num_train_timesteps"]

    def sample(batch: int, generator: torch.Generator, progress: float):
        index = torch.randint(len(latents), (batch,), generator=generator)
        z = latents[index].float()
        mask = pool["mask"][index].float() / 255
        eps = torch.randn(z.shape, generator=generator)
        strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = (strata * n_t).long()
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
        save_file({"mean": sites.mean(0), "covariance": sites.T.cov()}, moments)
    fold_whitening(vae, load_file(moments))
    if not path.exists():
        batches = tqdm(pool["pixels"].split(64), "latents")
        latents = torch.cat([encode(x).half() for x in batches])
        save_file({"latents": latents.contiguous()}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
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


def build_denoiser(tokenizer) -> DenoiserLoss:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextModel(CLIPTextConfig(**text_config(tokenizer)))
    nn.init.normal_(text.embeddings.token_embedding.weight, std=0.5)
    return DenoiserLoss(UNet2DConditionModel(**UNET), text)


def stages(device: str) -> dict[str, Stage]:
    """What the recipe trains, in order; on a GPU with larger batches and the same clock."""
    gpu = device == "cuda"
    return {
        "vae": Stage("vae", 0.15, 64 if gpu else 4, 2e-3),
        "clip": Stage("clip", 0.04, 512 if gpu else 64, 1e-3),
        "unet": Stage("unet", 0.81, 512 if gpu else 8, 1e-3),
    }


def build(run: Path, minutes: float, device: str, n_scenes: int, until: str = "unet") -> None:
    """Run the recipe up to a stage, each stage resuming from its checkpoint in `run`."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    precision = "bf16" if device == "cuda" else "no"
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision)
    with accelerator.main_process_first():
        pool = frame_pool(run, n_scenes)
    todo, tokenizer = stages(device), build_tokenizer()

    def stage(name: str, module: nn.Module, sample: Callable) -> dict:
        budget = minutes * todo[name].share
        return train(todo[name], module.to(device), sample, run, budget, accelerator)

    vae = build_vae()
    vae.load_state_dict(_models(stage("vae", VaeLoss(vae), vae_sampler(pool, device)), "model."))
    with accelerator.main_process_first():
        latents = encode_pool(vae, pool, run, device)
    if until == "vae":
        return
    captions = Captions(tokenizer, [training_scene(i) for i in range(n_scenes)])
    clip = build_clip(tokenizer)
    ema = stage("clip", ClipLoss(clip), clip_sampler(pool, captions, device))
    clip.load_state_dict(_models(ema, "model."))
    if until == "clip":
        return
    denoiser = build_denoiser(tokenizer)
    denoiser.text_encoder.load_state_dict(clip.text_model.state_dict())  # words are known at once
    stage("unet", denoiser, latent_sampler(latents, pool, captions, device))


def _models(ema: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v.cpu() for k, v in ema.items() if k.startswith(prefix)}


def export(run: Path, folder: Path, clip_folder: Path) -> None:
    """Write the checkpoints' EMA weights in fp16 and the Hugging Face layout."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPImageProcessor

    tokenizer, vae = build_tokenizer(), build_vae()

    def weights(name: str, prefix: str) -> dict[str, Tensor]:
        return _models(load_file(run / f"{name}.safetensors"), f"ema.{prefix}")

    vae.load_state_dict(weights("vae", "model."))
    fold_whitening(vae, load_file(run / "whitening.safetensors"))
    denoiser, clip = build_denoiser(tokenizer), build_clip(tokenizer)
    denoiser.load_state_dict(weights("unet", ""))
    clip.load_state_dict(weights("clip", "model."))
    pipe = StableDiffusionPipeline(
        vae, denoiser.text_encoder, tokenizer, denoiser.unet, DDIMScheduler(**SCHEDULE),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    processor = CLIPImageProcessor(
        size={"shortest_edge": VISION["image_size"]}, crop_size=VISION["image_size"],
        image_mean=OPENAI_CLIP_MEAN, image_std=OPENAI_CLIP_STD,
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    for part in (clip.half(), tokenizer, processor):
        part.save_pretrained(clip_folder)
    for config in [*folder.rglob("*.json"), *clip_folder.rglob("*.json")]:
        content = json.loads(config.read_text())
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vala_research.miniature", description=__doc__)
    parser.add_argument("--minutes", type=float, default=150, help="of training, all stages")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/miniature"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=Path("runs/miniature"), help="the weights")
    parser.add_argument("--scenes", type=int, default=20_000)
    parser.add_argument("--until", choices=["vae", "clip", "unet"], default="unet")
    args = parser.parse_args()
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    n = os.cpu_count() or 1
    if device == "cpu" and n > 1 and "LOCAL_RANK" not in os.environ:
        # One single-threaded process a core: twice as fast as one process with n threads here,
        # since small convolutions do not wait for each other.
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
        module = ["-m", "vala_research.miniature", *sys.argv[1:]]
        sys.exit(subprocess.run([sys.executable, *command, *module]).returncode)
    build(args.work, args.minutes, device, args.scenes, args.until)


if __name__ == "__main__":
    main()
