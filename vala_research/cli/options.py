"""Options that commands share, and the settings they are gathered in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vala_research import InputError

DTYPES = ("float32", "float16", "bfloat16")

ClipPath = Annotated[
    Path, typer.Argument(metavar="CLIP", help="Read this video, gif or folder of frames.")
]
SourcePrompt = Annotated[str, typer.Option(help="Describe the clip as it is.")]
Model = Annotated[str, typer.Option(help="Use 'miniature', a local folder or a hub id.")]
Attention = Annotated[
    str, typer.Option(help="Let frames attend by own, first, sparse_causal, extended or anchors.")
]
Inversion = Annotated[str, typer.Option(help="Invert by ddim, exact, bilateral or null_text.")]
Injection = Annotated[
    float, typer.Option(help="Inject the source's attention in this first share of the steps.")
]
Steps = Annotated[int, typer.Option(help="Take this many diffusion steps each way.")]
Guidance = Annotated[
    float, typer.Option(help="Follow the prompt this strongly; 1 turns guidance off.")
]
Frames = Annotated[int | None, typer.Option(help="Use this many frames.", show_default="all")]
Stride = Annotated[int, typer.Option(help="Use every n-th frame.")]
Size = Annotated[
    str | None,
    typer.Option(help="Scale frames to SIDE or HEIGHTxWIDTH pixels.", show_default="the model's"),
]
Device = Annotated[str, typer.Option(help="Run on auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(help="Compute in float32, float16 or bfloat16.")]
Seed = Annotated[int, typer.Option(help="Seed all random draws.")]
Adapter = Annotated[
    str | None,
    typer.Option(help="Load 'miniature' or a folder of vala train.", show_default="none"),
]
AdapterInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Let the adapter act between these fractions of T.", show_default="its own"),
]
AdapterScale = Annotated[
    float | None,
    typer.Option(
        help="Let the adapter act this strongly; 0 turns it off.", show_default="its own"
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(help="Read the data as msrvtt, loveu, davis or folder.", show_default="found"),
]
Split = Annotated[
    str | None, typer.Option(help="Use this split of the data set.", show_default="all")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Fail on a clip that is missing or damaged.")
]


@dataclass(frozen=True)
class Place:
    """A model and its adapter, and the device and dtype they run in."""

    model: str = "miniature"
    device: str = "auto"
    dtype: str = "float32"
    adapter: str | None = None


@dataclass(frozen=True)
class Sampling:
    """The frames of a clip that are used, and their size as `sides` reads it."""

    n_frames: int | None = None
    stride: int = 1
    size: str | None = None


@dataclass(frozen=True, kw_only=True)
class Inverting:
    """Arguments of `VideoEditPipeline.invert`."""

    source_prompt: str
    num_inference_steps: int
    attention: str
    inversion: str = "ddim"
    adapter_interval: tuple[float, float] | None = None
    adapter_scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class Editing(Inverting):
    """Arguments of `VideoEditPipeline.__call__`."""

    prompt: str
    guidance_scale: float
    injection: float = 0.0
    negative_prompt: str | None = None


def sides(size: str | None) -> int | tuple[int, int] | None:
    """Read --size: SIDE or HEIGHTxWIDTH, in pixels."""
    if size is None:
        return None
    numbers = size.lower().split("x")
    if not (len(numbers) <= 2 and all(s.isdecimal() and int(s) for s in numbers)):
        raise InputError(f"--size is {size!r}: give SIDE or HEIGHTxWIDTH in pixels, as in 512x320.")
    return int(numbers[0]) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))
