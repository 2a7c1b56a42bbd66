"""The recipe as one command; see the package's docstring."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vala_research.adapter.state import write_checkpoint
from vala_research.diffusion.loading import load_network
from vala_research.editing.defaults import EditDefaults
from vala_research.files import write_json, write_tensors
from vala_research.frames import OPENAI_MEAN, OPENAI_STD
from vala_research.miniature.batches import (
    Captions,
    clip_sampler,
    encode_pool,
    fold_whitening,
    frame_pool,
    latent_sampler,
    vae_sampler,
)
from vala_research.miniature.configuration import (
    DEFAULTS,
    SCHEDULE,
    VAE,
    VISION,
    build_clip,
    build_denoiser,
    build_tokenizer,
    build_vae,
    training_scene,
)
from vala_research.miniature.feeding import accelerator_on
from vala_research.miniature.objectives import ClipLoss, DenoiserLoss, VaeLoss
from vala_research.miniature.training import Stage, named_device, part_of, train

# Freed pages stay with the process: 10% faster than asking the system for them at every step.
CPU_SETTINGS = {
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_MMAP_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
STAGES = {
    "vae": Stage("vae", 0.15, batch=4, lr=2e-3, gpu_batch=64),
    "clip": Stage("clip", 0.04, batch=64, lr=1e-3, gpu_batch=512),
    "unet": Stage("unet", 0.81, batch=8, lr=1e-3, ema=0.998, gpu_batch=512),
}


def build(run: Path, minutes: float, device: str, n_scenes: int, until: str = "unet") -> None:
    """Run the recipe up to a stage. Each stage resumes from its checkpoint in `run`."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    accelerator = accelerator_on(device)
    with accelerator.main_process_first():
        pool = frame_pool(run, n_scenes)
    tokenizer = build_tokenizer()

    def stage(name: str, module: nn.Module, sample: Callable) -> dict:
        budget = minutes * STAGES[name].share
        return train(STAGES[name], module.to(device), sample, run, budget, accelerator)

    vae = build_vae()
    vae.load_state_dict(part_of(stage("vae", VaeLoss(vae), vae_sampler(pool)), "model."))
    with accelerator.main_process_first():
        latents = encode_pool(vae, pool, run, device)
    if until == "vae":
        return
    captions = Captions(tokenizer, [training_scene(i) for i in range(n_scenes)])
    clip = build_clip(tokenizer)
    ema = stage("clip", ClipLoss(clip), clip_sampler(pool, captions))
    clip.load_state_dict(part_of(ema, "model."))
    if until == "clip":
        return
    denoiser = DenoiserLoss(*build_denoiser(tokenizer))
    denoiser.text_encoder.load_state_dict(clip.text_model.state_dict())  # words are known at once
    stage("unet", denoiser, latent_sampler(latents, pool, captions))


def start_from(parts: Path, run: Path) -> None:
    """Turn exported weights (`parts`/miniature, `parts`/miniature_clip) into checkpoints in `run`.

    VAE and CLIP count as finished. The denoiser goes on from its weights with fresh Adam moments.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel

    whole = parts / "miniature"

    def load(cls: type, folder: Path) -> nn.Module:
        return load_network(cls, folder, f"The {cls.__name__} of {folder}")

    modules = {
        "vae": {"model.": load(AutoencoderKL, whole / "vae")},
        "clip": {"model.": load(CLIPModel, parts / "miniature_clip")},
        "unet": {
            "unet.": load(UNet2DConditionModel, whole / "unet"),
            "text_encoder.": load(CLIPTextModel, whole / "text_encoder"),
        },
    }
    run.mkdir(parents=True, exist_ok=True)
    n = VAE["latent_channels"]  # already white
    moments = {"mean": torch.zeros(n).double(), "covariance": torch.eye(n).double()}
    write_tensors(run / "whitening.safetensors", moments)
    for name, models in modules.items():
        path = run / f"{name}.safetensors"
        state = {f"{p}{k}": v for p, m in models.items() for k, v in m.state_dict().items()}
        tensors = {f"{kind}.{k}": v.float() for k, v in state.items() for kind in ("ema", "live")}
        if not path.exists():
            seconds = 0.0 if name == "unet" else 1e9
            write_checkpoint(path, tensors, None, {"step": 0, "seconds": seconds})


def export(run: Path, folder: Path, clip_folder: Path) -> None:
    """Write the checkpoints' averaged weights in fp16, in the Hugging Face layout."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPImageProcessor

    tokenizer, vae = build_tokenizer(), build_vae()

    def weights(name: str, prefix: str) -> dict[str, Tensor]:
        return part_of(load_file(run / f"{name}.safetensors"), f"ema.{prefix}")

    vae.load_state_dict(weights("vae", "model."))
    fold_whitening(vae, load_file(run / "whitening.safetensors"))
    denoiser, clip = DenoiserLoss(*build_denoiser(tokenizer)), build_clip(tokenizer)
    denoiser.load_state_dict(weights("unet", ""))
    clip.load_state_dict(weights("clip", "model."))
    pipe = StableDiffusionPipeline(
        vae, denoiser.text_encoder, tokenizer, denoiser.unet, DDIMScheduler(**SCHEDULE),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    processor = CLIPImageProcessor(
        size={"shortest_edge": VISION["image_size"]}, crop_size=VISION["image_size"],
        image_mean=OPENAI_MEAN, image_std=OPENAI_STD,
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    EditDefaults(**DEFAULTS).save(folder)
    for part in (clip.half(), tokenizer, processor):
        part.save_pretrained(clip_folder)
    for config in [*folder.rglob("*.json"), *clip_folder.rglob("*.json")]:
        content = json.loads(config.read_text())
        content.pop("_name_or_path", None)
        if "dtype" in content:  # stored in half, loaded in float32, as the UNet and VAE are
            content["dtype"] = "float32"
        write_json(config, content)


def measured(run: Path, folder: Path, n_prompts: int, n_clips: int) -> None:
    """Measure the exported checkpoint and write its card; the edits' rows stay in `run`."""
    from vala_research.miniature import card

    quality = card.measure(folder, run / "edits.csv", n_prompts, n_clips)
    card.write_card(folder, quality, card.training_log(run), card.hardware())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vala_research.miniature", description=__doc__)
    parser.add_argument("--minutes", type=float, default=150, help="of training, all stages")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--work", type=Path, default=Path("runs/miniature"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=None, help="the weights (default: in --work)")
    parser.add_argument("--scenes", type=int, default=20_000, help="rendered for training")
    parser.add_argument("--until", choices=["vae", "clip", "unet"], default="unet")
    parser.add_argument("--prompts", type=int, default=500, help="sampled for the card; 0: no card")
    parser.add_argument("--clips", type=int, default=32, help="edited for the card, per edit type")
    parser.add_argument("--start-from", type=Path, help="go on from exported weights in a folder")
    args = parser.parse_args()
    device = named_device(args.device)
    n = os.cpu_count() or 1
    if "LOCAL_RANK" in os.environ:
        return build(args.work, args.minutes, device, args.scenes, args.until)
    if args.start_from:
        start_from(args.start_from, args.work)
    if device == "cpu" and n > 1:
        # One single-threaded process per core is twice as fast as one process with n threads,
        # since small convolutions do not wait for each other.
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
        command += ["-m", "vala_research.miniature", *sys.argv[1:]]
        environment = {**CPU_SETTINGS, **os.environ}
        status = subprocess.run([sys.executable, *command], env=environment).returncode
        if status:
            sys.exit(status)
    else:
        build(args.work, args.minutes, device, args.scenes, args.until)
    if args.until == "unet":
        out = args.out or args.work
        export(args.work, out / "miniature", out / "miniature_clip")
        if args.prompts:
            measured(args.work, out / "miniature", args.prompts, args.clips)


if __name__ == "__main__":
    main()
