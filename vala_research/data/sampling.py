"""Take the frames that are asked for out of the decoded ones."""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.data.container import MAX_PIXELS, Damaged
from vala_research.data.decoding import Timeline, raise_damaged
from vala_research.frames import fit_to_size


def as_frame(pixels: np.ndarray) -> Float[Tensor, "c h w"]:
    """Convert bytes, h w c, to a frame in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)


def sampled(
    path: Path, decoded: Iterator, times: Timeline, n_frames: int | None, stride: int, sides
) -> Iterator[Tensor]:
    """Yield the frames c h w that `read_clip` asks for. Holds one frame at a time.

    decoded: the pictures of `decode`. sides: (h, w), or None.
    """
    indices = times.shown[::stride][:n_frames]
    shape, n_decoded, n_yielded = None, 0, 0
    with closing(decoded):
        for index in indices:
            # Decode up to the frame of this tick; a frame shown again is still at hand.
            try:
                for picture in islice(decoded, index + 1 - n_decoded):
                    n_decoded += 1
                    _check_shape(path, n_decoded, picture.shape, shape, sides)
                    shape = picture.shape
            except Damaged:
                raise_damaged(path, n_decoded)
            if n_decoded <= index:
                break
            n_yielded += 1
            frame = as_frame(picture)
            yield fit_to_size(frame[None], sides)[0] if sides else frame

    # A damaged file gives what was asked for, or the number of frames that are readable.
    if not n_yielded or (times.damaged and n_yielded != n_frames):
        raise_damaged(path, max(n_decoded, times.n_frames) if n_yielded else 0)


def _check_shape(path: Path, number: int, shape: tuple, first: tuple | None, sides) -> None:
    """Raise InputError if a picture, h w 3, has another shape than the first, or no usable one."""
    h, w, _ = shape
    if shape != (first or shape):
        raise InputError(
            f"{path}: frame {number} is {w}x{h}, the first {first[1]}x{first[0]} pixels; give all"
            " frames one size."
        )
    if sides and h * w * max(sides[0] / h, sides[1] / w) ** 2 > 4 * MAX_PIXELS:
        raise InputError(
            f"{path}: {w}x{h} pixels cannot be scaled until they cover {sides[1]}x{sides[0]}; give"
            " a smaller size."
        )


def stacked(path: Path, frames: Iterator[Tensor], n_frames: int) -> Tensor:
    """Collect at most `n_frames` frames, f c h w, in memory that is taken once."""
    first = next(frames)
    needed, free = n_frames * first.nbytes, psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"{path}: {n_frames} frames of {first.shape[2]}x{first.shape[1]} pixels need"
            f" {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; ask for fewer frames"
            " or a smaller size."
        )
    stacked, n_read = first.new_empty((n_frames, *first.shape)), 1
    stacked[0] = first
    for frame in frames:
        stacked[n_read] = frame
        n_read += 1
    return stacked[:n_read]
