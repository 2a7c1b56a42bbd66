"""Decode a video file or a folder of pictures: its timeline and its upright RGB frames.

PyAV (https://pyav.org) reads containers and codecs, Pillow reads single pictures.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vala_research import InputError

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
FOLDER_FPS = 24.0  # rate of a folder whose pictures carry none (DAVIS: 24)


@dataclass(frozen=True)
class Timeline:
    """The coded frame that a player shows at each tick.

    rate: ticks per second, the frame rate.
    shown: index of the coded frame, one per tick, never decreasing.
    start: presentation time of the first frame, in seconds.
    damaged: the header promises more than the file holds.
    """

    rate: Fraction
    shown: Sequence[int]
    start: float = 0.0
    damaged: bool = False


def raise_damaged(path: Path, n_readable: int) -> None:
    """Raise InputError for a file that ends early; the message says how many frames are left."""
    remedy = f"ask for n_frames <= {n_readable} or " if n_readable else ""
    raise InputError(
        f"{path} is truncated or damaged: {n_readable or 'no'} frames are readable; "
        f"{remedy}give an intact file."
    )


def existing(path) -> Path:
    """Return the path. Raises InputError if nothing is there, or an empty file."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: give a video file or a folder of pictures.")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): give a video file.")
    return path


@contextmanager
def opened(path: Path):
    """Open a container; yields it and its video stream.

    The cover picture of an audio file is not a video stream.
    Raises InputError if the file is not a readable video.
    """
    import av

    try:
        with av.open(str(path)) as container:
            cover = av.stream.Disposition.attached_pic
            streams = [s for s in container.streams.video if not s.disposition & cover]
            if not streams or container.format.name == "tty":  # ffmpeg plays any text file
                raise InputError(f"{path} holds no video (audio or text?): give a video file.")
            yield container, streams[0]
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(
            f"{path} is not a readable video ({error.strerror or error}): "
            "the file is truncated, damaged or no video; give an intact file."
        ) from error


def timeline(path: Path) -> Timeline:
    """Find when each frame is shown, in one pass over the packets, without decoding."""
    if path.is_dir():
        files = pictures(path)
        with Image.open(files[0]) as first:
            return Timeline(exact_rate(float(first.info.get("fps", FOLDER_FPS))), range(len(files)))

    times, duration, n_packets, end = [], 0.0, 0, 0.0
    with opened(path) as (container, stream):
        # Collect the presentation times. Sound counts too for the end of the file.
        for packet in container.demux():
            if not packet.size:
                continue
            unit, span = float(packet.time_base or 1), packet.duration or 0
            end = max(end, ((packet.pts or 0) + span) * unit)
            if packet.stream_index == stream.index and not packet.is_discard:
                n_packets += 1
                if not packet.is_corrupt:
                    times.append(None if packet.pts is None else packet.pts * unit)
                    duration = span * unit
        if not times:
            raise_damaged(path, 0)

        damaged = len(times) < max(n_packets, stream.frames) or _is_cut(path, container, end)
        declared = [r for r in (stream.average_rate, stream.guessed_rate) if r] or [Fraction(25)]

    if None in times:  # a raw stream carries no times: its rate is constant
        return Timeline(declared[0], range(len(times)), 0.0, damaged)
    rate, shown = _sampling(sorted(times), duration, declared)
    return Timeline(rate, shown, min(times), damaged)


def _sampling(times: list[float], last: float, declared: list) -> tuple[Fraction, Sequence[int]]:
    """Choose the rate, and the frame on screen at each tick.

    times: presentation times, ascending, in seconds.
    last: duration of the last frame, in seconds; 0 if unknown.
    declared: rates that the header names, the likeliest first.
    """
    n, times = len(times), [t - times[0] for t in times]
    if n == 1:
        return exact_rate(declared[0]), [0]

    # A constant rate shows each frame once. Containers round times (webm: 1 ms, gif: 10 ms).
    mean = exact_rate(n / (times[-1] + (last or times[-1] / (n - 1))))
    for rate in (*declared, mean):
        if all(abs(t - k / rate) < 0.5 / rate for k, t in enumerate(times)):
            return exact_rate(rate), range(n)

    # A variable rate shows, at each tick of the mean rate, the latest frame.
    return mean, [bisect_right(times, k / float(mean) + 1e-6) - 1 for k in range(n)]


def _is_cut(path: Path, container, end: float) -> bool:
    """Tell a file that was cut, where neither packets nor frame counts show it.

    end: presentation time of the end of the last packet, in seconds.
    """
    if container.format.name == "gif":  # a whole gif ends with its trailer byte
        with path.open("rb") as file:
            file.seek(-1, 2)
            return file.read() != b";"
    if "matroska" not in container.format.name or not container.duration:
        return False
    return container.duration / 1e6 - end > 0.2  # seconds; a whole file is off by about a frame


def exact_rate(fps: int | float | Fraction) -> Fraction:
    """Return the fraction that a rate stands for: 29.97003 is 30000/1001."""
    return Fraction(fps).limit_denominator(1001)


def decode(path: Path) -> Iterator[np.ndarray]:
    """Yield the coded frames in presentation order, h w 3 bytes each; ends where damage begins."""
    return _decode_folder(path) if path.is_dir() else _decode_video(path)


def _decode_video(path: Path) -> Iterator[np.ndarray]:
    import av

    with opened(path) as (container, stream):
        try:
            for frame in container.decode(stream):
                if not frame.is_corrupt:
                    yield _upright(frame)
        except av.error.FFmpegError:
            return  # the caller counts the frames and reports the damage


def _upright(frame) -> np.ndarray:
    """Convert to shown h w 3 bytes: alpha on white, display matrix (x', y') = M (x, y) applied."""
    from av.sidedata.sidedata import SideDataContainer

    # Formats with alpha or a palette go over a white background.
    has_alpha = any(component.is_alpha for component in frame.format.components)
    if has_alpha or "pal" in frame.format.name:
        rgba = frame.to_ndarray(format="rgba").astype(np.float32)
        alpha = rgba[..., 3:] / 255
        picture = (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    else:
        picture = frame.to_ndarray(format="rgb24")

    # `frame.side_data` would make frame and container refer to each other. They would keep the
    # decoder's threads until a garbage collection, and a collection in a forked process would hang.
    side = SideDataContainer(frame).get("DISPLAYMATRIX")
    if side is not None:  # 16.16 fixed point; only the signs and the larger entries matter
        a, b, _, c, d = np.frombuffer(bytes(side), np.int32)[:5]
        if abs(int(a)) < abs(int(b)):  # a quarter turn: x' follows y
            picture, a, d = picture.transpose(1, 0, 2), c, b
        picture = picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(picture)


def pictures(folder: Path) -> list[Path]:
    """List the pictures of a folder in natural order: frame_2 before frame_10."""
    files = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.name[0] != "."]
    if not files:
        raise InputError(f"{folder} holds no pictures ({', '.join(sorted(PICTURES))}): add some.")
    return sorted(files, key=_natural_order)


def _natural_order(path: Path) -> list[int | str]:
    return [int(s) if s.isdecimal() else s.lower() for s in re.split(r"(\d+)", path.name)]


def _decode_folder(folder: Path) -> Iterator[np.ndarray]:
    """Yield the pictures of a folder as shown: EXIF orientation applied, alpha on white."""
    for path in pictures(folder):
        try:
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file)
                if picture.mode.startswith("I"):  # 16-bit grey
                    picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
                picture = picture.convert("RGBA")
        except (OSError, SyntaxError) as error:
            raise InputError(f"{path} is not a readable picture: remove or replace it.") from error
        white = Image.new("RGBA", picture.size, "white")
        yield np.array(Image.alpha_composite(white, picture).convert("RGB"))
