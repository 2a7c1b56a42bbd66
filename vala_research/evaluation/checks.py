"""Checks of the frames that metrics get: a finite clip, or two clips of one shape."""

import torch
from torch import Tensor

from vala_research import InputError


def checked(frames: Tensor, at_least: int = 1, name: str = "frames") -> Tensor:
    """The frames f c h w in float32 on the CPU. Raises InputError."""
    if frames.ndim != 4 or 0 in frames.shape:
        raise InputError(f"{name} have shape {tuple(frames.shape)}: give a clip, f c h w.")
    if len(frames) < at_least:
        raise InputError(f"{name} are one frame: this metric compares pairs, give 2 or more.")
    if not torch.stack(frames.detach().aminmax()).isfinite().all():  # no copy of a long clip
        raise InputError(f"{name} hold NaN or infinity: the run that made them failed.")
    return frames.detach().float().cpu()


def paired(frames: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Two clips, checked, of one shape. Raises InputError."""
    frames, reference = checked(frames), checked(reference, name="reference frames")
    if frames.shape != reference.shape:
        raise InputError(
            f"frames {tuple(frames.shape)} and reference {tuple(reference.shape)} differ in shape:"
            " give two clips of one size and length."
        )
    return frames, reference
