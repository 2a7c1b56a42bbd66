"""Where the committed weights and demo clips lie; imports nothing heavy."""

from pathlib import Path

from vala_research import InputError

ASSETS = Path(__file__).parent
PARTS = {
    "pipeline": "miniature",
    "clip": "miniature_clip",
    "motion": "miniature_motion",
    "adapter": "miniature_adapter",
}


def miniature_path(part: str = "pipeline") -> str:
    """Folder of one part of the miniature, in the Hugging Face layout.

    `pipeline`: the Stable-Diffusion-class checkpoint; `clip`: the CLIPModel used by metrics;
    `motion`: the AnimateDiff MotionAdapter that makes a video model of the checkpoint's UNet;
    `adapter`: the temporal adapter trained for the checkpoint.
    Raises InputError when the part is unknown.
    """
    if part not in PARTS:
        raise InputError(f"The miniature has no part {part!r}: choose one of {', '.join(PARTS)}.")
    return str(ASSETS / PARTS[part])


def demo_clip() -> str:
    """The sprite clip (mp4, H.264) that the quickstart edits."""
    return str(ASSETS / "demo.mp4")
