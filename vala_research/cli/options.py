"""Options that commands share, and the settings they are gathered in."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vala_research import InputError
from vala_research.data.container import MAX_PIXELS

MOST_SIDE = 16384  # pixels that H.264 holds
OWN = "the model's own"
DTYPES = ("float32", "float16", "bfloat16")


def option(
    kind: Any, text: str, *names: str, default: str | bool = True, **more: int | str | None
) -> Any:
    """Type of an option; default: shown in its help in place of None; more: min, max, metavar."""
    return Annotated[kind, typer.Option(*names, help=text, show_default=default, **more)]


ClipPath = Annotated[
    Path, typer.Argument(metavar="CLIP", help="Read this video, gif or folder of frames.")
]
SourcePrompt = option(str, "Describe the clip as it is.")
Model = option(str, "Use 'miniature', a folder, a .safetensors file or a hub id.")
Variant = option(str | None, "Load weights of this variant, such as fp16.", default="found")
Revision = option(str | None, "Use this branch, tag or commit of a hub id.", default="main")
ATTEND = (
    "Let frames attend by own, first, sparse_causal, extended, anchors, token_flow, token_merging, "
    "grid_shuffle, trajectories or layered."
)
INVERT = (
    "Invert by ddim, exact, bilateral or null_text; start from noise or motion_field; or edit the "
    "clip itself by flow_edit or flow_align."
)
TAKE = "Take this many diffusion steps each way."
Attention, Inversion, Steps = option(str, ATTEND), option(str, INVERT), option(int, TAKE)
Injection = option(
    float | None, "Inject the source's attention in this first share of the steps.", default=OWN
)
Words = option(
    float | None, "Inject the source's maps of the words that both prompts share in this first "
    "share of the steps.", metavar="FRACTION", default="0, or the host's",
)  # fmt: skip
Host = option(
    str | None, "Edit as text2video_zero, token_flow, vid2vid_zero, vid_to_me, rave or flatten do, "
    "in all that you do not give.", default="none",
)  # fmt: skip
Guidance = option(
    float | None, "Follow the prompt this strongly; 1 or less turns guidance off.", default=OWN
)
Frames = option(int | None, "Use this many frames.", default="all")
Stride = option(int, "Use every n-th frame.")
Size = option(str | None, "Scale frames to SIDE or HEIGHTxWIDTH pixels.", default="the model's")
Device = option(str, "Run on auto, cpu, cuda, cuda:1 or mps.")
Dtype = option(str, "Compute in float32, float16 or bfloat16.")
ControlNet = option(
    list[str] | None, "Keep the layout by a ControlNet: 'miniature', a folder, a hub id, or none; "
    "repeat it for several.", "--controlnet", default=OWN,
)  # fmt: skip
Control = option(
    list[str] | None, "Show it the clip's frames, its canny outlines, its depth, or a clip or "
    "folder of pictures, such as poses.", default="frames",
)  # fmt: skip
ControlScale = option(list[float] | None, "Let it act this strongly.", default="1")
ControlInterval = option(
    list[str] | None, "Let it act between these fractions of T.", metavar="FROM:TO", default="0:1"
)
DepthModel = option(
    str | None, "Estimate the depth by this model of transformers: a folder or a hub id.",
    default="none",
)  # fmt: skip
Seed = option(int, "Seed all random draws.", min=0, max=2**63 - 1)
Adapter = option(
    str | None, "Load a temporal adapter: 'miniature', a folder of vala train, or none.",
    default=OWN,
)  # fmt: skip
AdapterInterval = option(
    tuple[float, float] | None, "Let the adapter act between these fractions of T.",
    default="its own",
)  # fmt: skip
AdapterScale = option(
    float | None, "Let the adapter act this strongly; 0 turns it off.", default="its own"
)
Lora = option(
    list[str] | None, "Load a LoRA, FILE or FILE:SCALE; repeat it for several.", "--lora",
    default="none",
)  # fmt: skip
Layout = option(str | None, "Read the data as msrvtt, loveu, davis or folder.", default="found")
Split = option(str | None, "Use this split of the data set.", default="all")
Strict = option(bool, "Fail on a clip that is missing or damaged.", "--strict")


@dataclass(frozen=True)
class Place:
    """A model, which weights of it, its adapter and LoRAs, and the device and dtype they run in.

    loras: file and scale of each. adapter, controlnet, motion: None is the model's own, and "none"
    is none; other ControlNets are loaded when the clip is known (`Controls`).
    """

    model: str = "miniature"
    device: str = "auto"
    dtype: str = "float32"
    adapter: str | None = None
    variant: str | None = None
    revision: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    controlnet: str | None = None
    motion: str | None = None


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
    """Arguments of `VideoEditPipeline.__call__`; None is the model's own value.

    words: a part of the injection. host: an editor of another paper.
    """

    prompt: str
    num_inference_steps: int | None = None
    attention: str | None = None
    inversion: Any = None  # a name, or a checkpoint's own settings
    guidance_scale: float | None = None
    injection: Any = None
    words: float | None = None
    host: str | None = None
    negative_prompt: str | None = None

    def arguments(self) -> dict[str, Any]:
        """The arguments by their names, with the words in the injection. Raises InputError."""
        from vala_research.diffusion.injection import Injection

        given = dict(vars(self))
        injection = replace(Injection.of(self.injection), words=given.pop("words"))
        return given | {"injection": injection}


def sides(size: str | None) -> int | tuple[int, int] | None:
    """Read --size: SIDE or HEIGHTxWIDTH, in pixels."""
    if size is None:
        return None
    numbers = re.fullmatch(r"0*([1-9][0-9]{0,4})(?:x0*([1-9][0-9]{0,4}))?", size, re.I)
    if numbers is None:
        raise InputError(
            f"--size is {size[:20]!r}: give SIDE or HEIGHTxWIDTH in pixels, as in 512x320."
        )
    h, w = int(numbers[1]), int(numbers[2] or numbers[1])
    if max(h, w) > MOST_SIDE or h * w > MAX_PIXELS:
        raise InputError(
            f"--size is {size}: give at most {MAX_PIXELS:,} pixels, {MOST_SIDE} per side."
        )
    return (h, w) if numbers[2] else h
