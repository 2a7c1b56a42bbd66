"""Checks before the long work, then the clip and the model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vala_research import InputError
from vala_research.cli.options import DTYPES, sides

# What is tried before the long work.


def check_names(settings: dict[str, Any]) -> None:
    """Unknown names and numbers out of range, by the engine's own checks."""
    from vala_research.adapter.settings import checked_interval, checked_scale
    from vala_research.diffusion.attention import get_policy
    from vala_research.diffusion.codec import check_guidance
    from vala_research.diffusion.injection import Injection
    from vala_research.diffusion.inversion import get_inversion

    get_policy(settings["attention"]), get_inversion(settings["inversion"])
    check_guidance(settings.get("guidance_scale", 1.0))
    Injection.of(settings.get("injection", 0.0))
    checked_interval(settings.get("adapter_interval") or (0, 1))
    checked_scale(settings.get("adapter_scale") or 0)
    if settings["num_inference_steps"] < 1:
        raise InputError(f"--steps is {settings['num_inference_steps']}: give at least 1.")


def check_adapter(adapter: str | None, *how: object) -> None:
    if adapter is None and any(x is not None for x in how):
        raise InputError("--adapter-interval and --adapter-scale are an adapter's: give --adapter.")


def check_outputs(source: Path, *outputs: Path | None) -> None:
    """Every output can be written, and none is the clip itself."""
    given = [path for path in outputs if path is not None]
    for path in given:
        if path.resolve() == source.resolve():
            raise InputError(f"{path} is the clip itself: write to another name.")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; create it first.")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"{path} cannot be written: the place is read-only, choose another.")
        if path.is_dir() and path.suffix:
            raise InputError(f"{path} is a folder: give the name of a file.")
    if len({path.resolve() for path in given}) < len(given):
        raise InputError("Two outputs have one name: give each its own.")


def try_clip(path: Path, n_frames: int | None, stride: int, size: str | None) -> None:
    """Its first frame can be read; before anything heavy is imported."""
    from vala_research.data.clips import read_clip

    read_clip(path, n_frames if n_frames is not None and n_frames < 1 else 1, stride, sides(size))


def load_clip_and_model(path: Path, place: dict[str, str], sampling: tuple):
    """The clip at the size asked for or the model's own, the model, and the device's name."""
    from vala_research.data.clips import read_clip

    n_frames, stride, size = sampling
    pipe, device = load_model(**place)
    return read_clip(path, n_frames, stride, sides(size) or model_side(pipe)), pipe, device


def load_model(model: str, device: str, dtype: str, adapter: str | None = None):
    """The pipeline on its device, its adapter loaded, and the device's name."""
    if dtype not in DTYPES:
        raise InputError(f"Unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
    import diffusers
    import huggingface_hub
    import torch
    import transformers

    from vala_research.editing.pipeline import VideoEditPipeline

    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    name = {"auto": devices[0], "cuda": "cuda:0"}.get(device, device)
    if name not in devices:
        raise InputError(f"No device {device!r} here: choose one of auto, {', '.join(devices)}.")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # of its retries: we say what came of them
    pipe = VideoEditPipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(name)
    if adapter is not None:
        pipe.load_adapter(adapter)
    return pipe, name


def model_side(pipe) -> int:
    """The side of the pictures that the model was trained on, in pixels."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor
