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
from vala_research.data.decoding import decode, existing, timeline
from vala_research.data.encoding import VIDEO, encode, encode_folder
from vala_research.data.pictures import exact_rate
from vala_research.data.sampling import sampled, stacked
from vala_research.data.sound import Sound, sound_of, warn_dropped
from vala_research.files import check_output, written_whole

RATES = {  # least and most frames per second
    ".mp4": (0.001, 100_000),
    ".webm": (0.001, 1000),  # time in ms
    ".gif": (0.01, 50),  # browsers show a picture for 0.02 s or more
    "": (0.001, 1000),  # readers take a higher one for an error
}


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
    audio_from: the edited clip, or its file, whose first frames these are. Its sound is copied, or
        re-encoded if the container does not take it, and ends with the frames. A warning says why a
        clip is written without the sound that its file has.

    mp4: H.264 yuv420p, BT.709. An odd side is padded by its last row or column, so nothing is lost.
    gif: 256 colours per frame, time in 1/100 s, at most 50 frames per second.
    A path without suffix is a folder of frame_0000.png ..., exact. Each picture stores the rate.
    A hidden list of the pictures tells later calls that they may replace the folder.

    The file is written under another name and renamed, so a file at `path` is always complete.
    Returns the path.
    Raises InputError for frames or a path that cannot be written.
    """
    # Check everything before the encoder starts.
    path = writable(path, fps)
    _check_frames(frames)

    # To bytes f h w 3, a few frames at a time: as floats, a long clip would be copied twice.
    parts = [part.clamp(0, 1).mul(255).round().byte().cpu() for part in frames.detach().split(64)]
    pixels = torch.cat(parts).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    rate = exact_rate(fps)
    sound = _sound_of(audio_from, len(pixels), rate, path.suffix.lower())
    with written_whole(path, is_folder=not path.suffix) as unfinished:
        if path.suffix:
            encode(unfinished, pixels, rate, sound)
        else:
            encode_folder(unfinished, pixels, rate)
    return path


def _sound_of(audio_from, n_frames: int, rate: Fraction, suffix: str) -> Sound | None:
    if audio_from is None:
        return None
    if not isinstance(audio_from, Clip):
        return sound_of(Path(audio_from), n_frames, n_frames, rate, suffix)
    try:
        source = audio_from.source
        return source and sound_of(source, n_frames, len(audio_from), rate, suffix)
    except InputError as error:  # the file has gone since the clip was read
        return warn_dropped(str(error).rstrip("."))


def writable(path: str | os.PathLike, fps: int | float | Fraction | None = None) -> Path:
    """Return the path if a clip can be written there. Call it before long work.

    fps: frames per second, where they are known.
    Raises InputError for an unknown suffix, a rate that the format cannot hold, a missing or
    read-only folder, and whatever must not be replaced: see `check_output`.
    """
    path = Path(path)
    if path.suffix and path.suffix.lower() not in VIDEO:
        raise InputError(
            f"{path}: cannot write {path.suffix!r}; use {', '.join(VIDEO)}, or no suffix for a"
            " folder of png."
        )
    least, most = RATES[path.suffix.lower()]
    if fps is not None and not least <= fps <= most:  # NaN too
        raise InputError(
            f"{path}: fps is {fps}; {path.suffix or 'a folder'} holds {least} to {most} frames per "
            "second. Give another rate, --stride or suffix."
        )
    return check_output(path, is_folder=not path.suffix)


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[1] not in (1, 3) or 0 in frames.shape:
        raise InputError(f"frames have shape {tuple(frames.shape)}: give f c h w with c = 1 or 3.")
    if not frames.is_floating_point():
        raise InputError(f"frames are {frames.dtype}: give floats in [0, 1].")
    if not torch.stack(frames.detach().aminmax()).isfinite().all():
        raise InputError("frames hold NaN or infinity: the run that made them failed; repeat it.")
