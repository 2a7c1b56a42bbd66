"""Read and write clips: video files, gifs and folders of pictures.

Reading returns the frames that a player shows. Writing leaves a complete file or none.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.data.decoding import (
    decode,
    exact_rate,
    existing,
    timeline,
)
from vala_research.data.encoding import VIDEO, encode, encode_folder
from vala_research.data.sampling import sampled, stacked
from vala_research.files import written_whole


@dataclass(frozen=True)
class Clip:
    """Frames of a video.

    frames: RGB in [0, 1].
    fps: frames per second.
    source: the file that holds the frames; `write_clip` copies its sound.
    """

    frames: Float[Tensor, "f c h w"]
    fps: float
    source: Path | None = None

    def __len__(self) -> int:
        return len(self.frames)


def read_clip(
    path: str | os.PathLike,
    n_frames: int | None = None,
    stride: int = 1,
    size: int | tuple[int, int] | None = None,
) -> Clip:
    """Read a video file, a gif or a folder of pictures (natural order) as RGB frames in [0, 1].

    n_frames: maximum number of frames (None: all). Decoding stops there, so memory is bounded.
    stride: keeps every stride-th frame. `fps` is the rate of the file divided by `stride`.
    size: (h, w) in pixels, or the side of a square. Frames are scaled (antialiased bicubic) until
        they cover it, then cropped at the centre. None keeps the size of the file, odd sides too.

    The frames are what a player shows: upright, with square pixels, deinterlaced, of standard
    dynamic range, from the default track. Grey becomes RGB. Alpha is composited on white.
    A variable rate is resampled at its average, by presentation time: frames may repeat or drop
    out, with a warning. Number of frames and duration stay, so the sound stays in step.
    Raises InputError if the file cannot be read to its end or to `n_frames`, or if the frames do
    not fit into memory.
    """
    path, sides = existing(path), _checked_options(n_frames, stride, size)
    times = timeline(path)
    times.warn_of_losses(path)
    frames = sampled(path, decode(path), times, n_frames, stride, sides)
    frames = stacked(path, frames, len(times.shown[::stride][:n_frames]))
    return Clip(frames, float(times.rate / stride), path)


def iter_frames(
    path: str | os.PathLike,
    n_frames: int | None = None,
    stride: int = 1,
    size: int | tuple[int, int] | None = None,
) -> Iterator[Float[Tensor, "c h w"]]:
    """Yield the frames of `read_clip` one by one, for clips of any length; same arguments."""
    path, sides = existing(path), _checked_options(n_frames, stride, size)
    times = timeline(path)
    times.warn_of_losses(path)
    return sampled(path, decode(path), times, n_frames, stride, sides)


def _checked_options(n_frames, stride, size) -> tuple[int, int] | None:
    check_at_least(1, n_frames=n_frames, stride=stride)
    return as_sides(size)


def check_at_least(least: int, **numbers: int | None) -> None:
    """Raise InputError for a number below `least`, by its name; None passes."""
    for name, value in numbers.items():
        if value is not None and value < least:
            raise InputError(f"{name} is {value}: give {least} or more.")


def as_sides(size) -> tuple[int, int] | None:
    """Return `size` as (h, w): one side stands for a square, None stays None."""
    sides = None if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise InputError(f"size is {size}: give one side or (height, width), in pixels.")
    return sides


def write_clip(
    path: str | os.PathLike,
    frames: Float[Tensor, "f c h w"],
    fps: int | float | Fraction,
    audio_from: Clip | str | os.PathLike | None = None,
) -> Path:
    """Write frames in [0, 1] (other values are clipped) as .mp4, .webm, .gif or a folder of png.

    fps: frames per second; 29.97003 is written as the fraction 30000/1001.
    audio_from: the edited clip, or its file. Its sound is copied, or re-encoded if the container
        does not take it. A part of the clip, or the clip at another rate, is written without sound.

    mp4: H.264 yuv420p, BT.709. An odd side is padded by its last row or column, so nothing is lost.
    gif: 256 colours per frame, time in 1/100 s.
    A path without suffix is a folder of frame_0000.png ..., exact. Each picture stores the rate.

    The file is written under another name and renamed, so a file at `path` is always complete.
    Returns the path.
    Raises InputError for frames or a path that cannot be written.
    """
    # Check everything before the encoder starts.
    path = writable(path)
    _check_frames(frames, fps)
    if path.suffix.lower() == ".gif" and fps > 100:
        raise InputError(f"{path}: a gif shows at most 100 frames per second, not {fps}; use .mp4.")

    pixels = frames.detach().clamp(0, 1).mul(255).round().byte().cpu()
    pixels = pixels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()  # f h w 3
    rate = exact_rate(fps)
    with written_whole(path) as unfinished:
        if path.suffix:
            source = audio_from.source if isinstance(audio_from, Clip) else audio_from
            encode(unfinished, pixels, rate, _sound_of(source, len(pixels), rate))
        else:
            encode_folder(unfinished, pixels, rate)
    return path


def writable(path: str | os.PathLike) -> Path:
    """Return the path if a clip can be written there. Call it before long work.

    Raises InputError for an unknown suffix, a missing or read-only folder, or a folder that holds
    other files.
    """
    path = Path(path)
    if path.suffix and path.suffix.lower() not in VIDEO:
        raise InputError(
            f"{path}: cannot write {path.suffix!r}; use {', '.join(VIDEO)}, or no suffix for a"
            " folder of png."
        )
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; create it first.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.parent} is read-only; choose another.")
    if path.is_dir() and (path.suffix or any(p.suffix != ".png" for p in path.iterdir())):
        raise InputError(f"{path} is a folder with other files in it; choose another name.")
    if path.is_file() and not path.suffix:
        raise InputError(f"{path} is a file; choose another name or add one of {', '.join(VIDEO)}.")
    return path


def _check_frames(frames: Tensor, fps) -> None:
    if frames.ndim != 4 or frames.shape[1] not in (1, 3) or 0 in frames.shape:
        raise InputError(f"frames have shape {tuple(frames.shape)}: give f c h w with c = 1 or 3.")
    if not frames.is_floating_point():
        raise InputError(f"frames are {frames.dtype}: give floats in [0, 1].")
    if not torch.isfinite(frames).all():
        raise InputError("frames hold NaN or infinity: the run that made them failed; repeat it.")
    if not 0 < fps <= 1000:
        raise InputError(f"fps is {fps}: give frames per second, above 0 and at most 1000.")


def _sound_of(source, n_frames: int, rate: Fraction) -> tuple[Path, float] | None:
    """Return (file, start of its video in seconds) for a whole clip at its own rate, else None."""
    if source is None or Path(source).is_dir():
        return None
    times = timeline(existing(source))
    whole = n_frames == len(times.shown) and rate == exact_rate(times.rate)
    return (Path(source), times.start) if whole and not times.damaged else None
