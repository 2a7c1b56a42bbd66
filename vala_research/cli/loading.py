"""Checks before the long work, then the clip and the model."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from vala_research import InputError, chosen_from, number_in
from vala_research.cli.options import DTYPES, Editing, Inverting, Place, Sampling, sides
from vala_research.files import check_output


def check_names(call: Inverting, guidance_scale: float = 1.0, injection: Any = 0.0) -> None:
    """Refuse unknown names and numbers out of range, by the engine's own checks."""
    from vala_research.adapter.settings import checked_interval, checked_scale
    from vala_research.diffusion.attending import get_policy
    from vala_research.diffusion.guidance import check_guidance
    from vala_research.diffusion.injection import Injection
    from vala_research.diffusion.inversion import get_inversion

    get_policy(call.attention), get_inversion(call.inversion)
    check_guidance(guidance_scale)
    Injection.of(injection)
    checked_interval(call.adapter_interval or (0, 1))
    checked_scale(call.adapter_scale or 0)
    if call.num_inference_steps < 1:
        raise InputError(f"--steps is {call.num_inference_steps}: give at least 1.")


def filled(call: Editing, defaults) -> Editing:
    """The call, filled in by its host and by a checkpoint's `EditDefaults` where it says nothing.

    Raises InputError for an unknown host.
    """
    from vala_research.diffusion.injection import Injection
    from vala_research.editing.hosts import defaults_of

    defaults = defaults_of(defaults, call.host)
    own = {k: v for k, v in vars(defaults).items() if getattr(call, k, ...) is None}
    filled = replace(call, **own)
    words = Injection.of(filled.injection).words if call.words is None else call.words
    return replace(filled, words=words)


def check_adapter(has_adapter: bool, call: Inverting) -> None:
    """Refuse options of an adapter where there is none."""
    if not has_adapter and (call.adapter_interval, call.adapter_scale) != (None, None):
        raise InputError(
            "--adapter-interval and --adapter-scale belong to an adapter: give --adapter."
        )


def checked_loras(given: list[str]) -> tuple[tuple[str, float], ...]:
    """The files and scales of --lora, which are FILE or FILE:SCALE. Raises InputError."""
    from vala_research.editing.loaders import checked_source

    loras = []
    for text in given:
        file, scale = text, 1.0
        head, _, tail = text.rpartition(":")
        if head and not Path(text).exists():
            with suppress(ValueError):
                file, scale = head, float(tail)
        number_in(f"The scale of --lora {text}", scale, -1e3, 1e3)
        loras.append((checked_source(file, "LoRA", {})[0], scale))
    return tuple(loras)


def check_outputs(source: Path, *files: Path | None, folder: Path | None = None) -> None:
    """Check that every output can be written, and that none is, or holds, another or the clip.

    folder: an output too, which is replaced as a whole.
    """
    outputs = [check_output(path) for path in files if path is not None]
    outputs += [] if folder is None else [check_output(folder, is_folder=True)]
    places = [path.resolve() for path in outputs if not path.is_char_device()]
    for path in outputs:
        if path.resolve() == source.resolve() or (path.exists() and path.samefile(source)):
            raise InputError(f"{path} is the clip itself: write to another name.")
    if len(set(places)) < len(places):
        raise InputError("Two outputs have one name: give each output a name of its own.")
    if folder is not None:
        within = [p for p in (source, *outputs) if folder.resolve() in p.resolve().parents]
        if within:
            raise InputError(f"{folder} is replaced, and {within[0]} in it: choose another name.")


def check_unnamed(record: Path, *files: Path) -> None:
    """Refuse to replace files that the user did not name, unless the record says they are ours."""
    ours = set()
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        known = json.loads(record.read_text(encoding="utf-8"))
        ours = {record.name, *(Path(f).name for f in known["versions"] and known["outputs"])}
    for path in (*files, record):
        if path.exists() and path.name not in ours:
            raise InputError(
                f"{path} exists, and was not written by this command: move it or choose another "
                "name for the output."
            )


def try_clip(path: Path, sampling: Sampling) -> float:
    """Read the clip's first frame, before anything heavy is imported; return its frame rate."""
    from vala_research.data.clips import read_clip

    n = sampling.n_frames
    first = 1 if n is None else min(n, 1)
    return read_clip(path, first, sampling.stride, sides(sampling.size)).fps


def load_clip_and_model(path: Path, place: Place, sampling: Sampling):
    """Load the clip, at the size asked for or the model's; the model; and the device's name."""
    from vala_research.data.clips import read_clip

    pipe, device = load_model(place)
    size = sides(sampling.size) or model_side(pipe)
    least = pipe.vae_scale_factor
    if min(size if isinstance(size, tuple) else (size,)) < least:
        raise InputError(f"--size is {sampling.size}: give at least {least} pixels per side.")
    return read_clip(path, sampling.n_frames, sampling.stride, size), pipe, device


def load_model(place: Place):
    """Load the pipeline on its device, with all extras; returns it and the device's name."""
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
    weights = {"variant": place.variant, "revision": place.revision}
    weights = {option: value for option, value in weights.items() if value is not None}
    is_file = Path(place.model).is_file()
    load = VideoEditPipeline.from_single_file if is_file else VideoEditPipeline.from_pretrained
    asked = {"controlnet": place.controlnet, "motion_adapter": place.motion,
             "adapter": place.adapter}  # fmt: skip
    if not is_file:  # what is asked for replaces the model's own
        weights |= {extra: None for extra, value in asked.items() if value is not None}
    pipe = load(place.model, dtype=dtype, **weights).to(name)
    if place.loras:
        load_loras(pipe, place.loras)
    if place.adapter not in (None, "none"):
        pipe.load_adapter(place.adapter)
    return pipe, name


def said_what_is_brought(
    pipe, place: Place, options: tuple[str, ...] = ("adapter", "controlnet", "motion")
) -> Place:
    """Print what the model brings and uses; return the place with a word where it said nothing.

    options: of the command, that leave such a part out.
    """
    brought = {"adapter": pipe.adapter, "controlnet": pipe.controlnet, "motion": pipe.image_unet}
    own = {extra: x is not None for extra, x in brought.items() if getattr(place, extra) is None}
    if names := [f"--{extra} none" for extra in options if own.get(extra)]:
        typer.echo(f"The model brings parts of its own; leave them out by {', '.join(names)}.")
    return replace(place, **{k: "the model's own" if v else "none" for k, v in own.items()})


def load_loras(pipe, loras: tuple[tuple[str, float], ...]) -> None:
    """Add LoRAs to the weights themselves, so that motion modules are built on them too."""
    names = [f"lora_{i}" for i in range(len(loras))]
    for name, (file, _) in zip(names, loras, strict=True):
        pipe.load_lora_weights(file, adapter_name=name)
    pipe.set_adapters(names, [scale for _, scale in loras])
    pipe.fuse_lora()
    pipe.unload_lora_weights()


def model_side(pipe) -> int:
    """Side of the square pictures that the model was trained on, in pixels.

    A video transformer names none; its VAE may.
    """
    from vala_research.diffusion.records import is_transformer

    side = pipe.unet.config.get("sample_size")
    if isinstance(side, int):
        return side * pipe.vae_scale_factor
    side = pipe.vae.config.get("sample_size") if is_transformer(pipe.unet) else None
    if not isinstance(side, int):
        raise InputError("The model names no size of its pictures: give --size.")
    return side
