"""Checks before the long work, then the clip and the model."""

from __future__ import annotations

import os
from pathlib import Path

from vala_research import InputError, chosen_from
from vala_research.cli.options import DTYPES, Inverting, Place, Sampling, sides


def check_names(call: Inverting, guidance_scale: float = 1.0, injection: float = 0.0) -> None:
    """Refuse unknown names and numbers out of range, by the engine's own checks."""
    from vala_research.adapter.settings import checked_interval, checked_scale
    from vala_research.diffusion.attention import get_policy
    from vala_research.diffusion.codec import check_guidance
    from vala_research.diffusion.injection import Injection
    from vala_research.diffusion.inversion import get_inversion

    get_policy(call.attention), get_inversion(call.inversion)
    check_guidance(guidance_scale)
    Injection.of(injection)
    checked_interval(call.adapter_interval or (0, 1))
    checked_scale(call.adapter_scale or 0)
    if call.num_inference_steps < 1:
        raise InputError(f"--steps is {call.num_inference_steps}: give at least 1.")


def check_adapter(place: Place, call: Inverting) -> None:
    """Refuse options of an adapter where none is loaded."""
    if place.adapter is None and (call.adapter_interval, call.adapter_scale) != (None, None):
        raise InputError(
            "--adapter-interval and --adapter-scale belong to an adapter: give --adapter."
        )


def check_outputs(source: Path, *outputs: Path | None) -> None:
    """Check that every output can be written, and that none is the clip itself."""
    paths = [path for path in outputs if path is not None]
    for path in paths:
        if path.resolve() == source.resolve():
            raise InputError(f"{path} is the clip itself: write to another name.")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; create it first.")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"{path} cannot be written: the place is read-only, choose another.")
        if path.is_dir() and path.suffix:
            raise InputError(f"{path} is a folder: give the name of a file.")
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("Two outputs have one name: give each output a name of its own.")


def try_clip(path: Path, sampling: Sampling) -> None:
    """Read the clip's first frame, before anything heavy is imported."""
    from vala_research.data.clips import read_clip

    n = sampling.n_frames
    read_clip(path, 1 if n is None else min(n, 1), sampling.stride, sides(sampling.size))


def load_clip_and_model(path: Path, place: Place, sampling: Sampling):
    """Load the clip, at the size asked for or the model's; the model; and the device's name."""
    from vala_research.data.clips import read_clip

    pipe, device = load_model(place)
    size = sides(sampling.size) or model_side(pipe)
    return read_clip(path, sampling.n_frames, sampling.stride, size), pipe, device


def load_model(place: Place):
    """Load the pipeline on its device, with its adapter; returns it and the device's name."""
    chosen_from("dtype", place.dtype, DTYPES)
    import diffusers
    import huggingface_hub
    import torch
    import transformers

    from vala_research.editing.pipeline import VideoEditPipeline

    # The device: the first one there is, or the one asked for.
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    name = {"auto": devices[0], "cuda": "cuda:0"}.get(place.device, place.device)
    if name not in devices:
        raise InputError(
            f"There is no device {place.device!r} here: choose one of auto, {', '.join(devices)}."
        )

    # Libraries stay silent: the command says in one sentence what failed.
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
    dtype = getattr(torch, place.dtype)
    pipe = VideoEditPipeline.from_pretrained(place.model, dtype=dtype).to(name)
    if place.adapter is not None:
        pipe.load_adapter(place.adapter)
    return pipe, name


def model_side(pipe) -> int:
    """Side of the square pictures that the model was trained on, in pixels."""
    side = pipe.unet.config.sample_size
    if not isinstance(side, int):
        raise InputError("The model names no size of its pictures: give --size.")
    return side * pipe.vae_scale_factor
