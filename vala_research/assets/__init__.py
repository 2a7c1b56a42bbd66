"""Where the committed weights and the demo clip lie; imports nothing heavy."""

import gzip
from pathlib import Path

from vala_research import InputError

ASSETS = Path(__file__).parent
PARTS = {
    "pipeline": "miniature",
    "clip": "miniature_clip",
    "motion": "miniature/motion_adapter",
    "adapter": "miniature/temporal_adapter",
    "paper_adapter": "miniature/temporal_adapter_as_paper",
    "controlnet": "miniature/controlnet",
    "depth_controlnet": "miniature/depth_controlnet",
    "flow": "miniature_flow",
}


def miniature_path(part: str = "pipeline") -> str:
    """Folder of one part of the miniature, in the Hugging Face layout.

    pipeline: the checkpoint, of Stable Diffusion's class.
    clip: the CLIPModel of the metrics.
    motion: the AnimateDiff MotionAdapter that makes a video model of the checkpoint's UNet.
    adapter: the temporal adapter of the checkpoint, which learnt from true edits.
    paper_adapter: another, trained as the paper does, on clips as they are.
    controlnet: the ControlNet of the checkpoint, for edits.
    depth_controlnet: another, which sees depths and holds outlines; no edit has it by default.
    flow: the checkpoint "miniature_flow", a video transformer of Wan's class in the same latents.
    Raises InputError for another part.
    """
    if part not in PARTS:
        raise InputError(f"The miniature has no part {part!r}: choose one of {', '.join(PARTS)}.")
    return str(ASSETS / PARTS[part])


def demo_clip() -> str:
    """The sprite clip (mp4, H.264) that the quickstart edits."""
    return str(ASSETS / "demo.mp4")


def clip_merges() -> list[tuple[str, str]]:
    """The merges of CLIP's tokenizer, oldest first: its vocabulary follows from them.

    All of Stable Diffusion 1.x and 2.x read prompts by them (Radford et al. 2021; OpenAI's CLIP,
    MIT licence in clip_merges_LICENSE.txt).
    """
    with gzip.open(ASSETS / "clip_merges.txt.gz", "rt", encoding="utf-8") as file:
        pairs = (line.split() for line in file)
        return [(first, second) for first, second in pairs]
