"""Decode a video file or a folder of pictures: its timeline and its upright RGB frames."""

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from vala_research import InputError
from vala_research.data.colour import as_shown, deinterlaced, is_hdr, peak_light
from vala_research.data.container import Damaged, coded_frames, opened, pixel_aspect
from vala_research.data.cuts import intact_gif_pictures, is_cut
from vala_research.data.pictures import (
    PICTURES,
    exact_rate,
    picture_times,
    read_pictures,
)
from vala_research.data.times import FASTEST, SLOWEST, Timeline, sampling, without_jumps
from vala_research.data.tonemap import HLG, PQ, Brightness

# Codecs of which every packet of a regular mp4 or Matroska file gives one frame. Other files are
# decoded once to be counted.
COUNTED_BY_PACKETS = {"h264", "hevc", "vp9", "av1"}
JOINED = {"mpegts", "mpeg"}  # containers whose files may be joined end to end


def raise_damaged(path: Path, n_readable: int) -> None:
    """Raise InputError for a file that ends early; the message says how many frames are left."""
    remedy = f"ask for n_frames <= {n_readable} or " if n_readable else ""
    raise InputError(
        f"{path} is truncated or damaged: {n_readable or 'no'} frames are readable; "
        f"{remedy}give an intact file."
    )


def existing(path) -> Path:
    """Return the path of a file or folder. Raises InputError for a device or an empty file."""
    path = Path(path)
    try:
        if not path.exists():
            raise InputError(f"{path} does not exist: give a video file or a folder of pictures.")
        if not path.is_file() and not path.is_dir():
            raise InputError(f"{path} is a pipe or a device: give a video file.")
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes): give a video file.")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give another.") from error
    return path


def is_pictures(path: Path) -> bool:
    """Tell whether a path is read as pictures: a folder, or a file with the suffix of a picture."""
    return path.is_dir() or path.suffix.lower() in PICTURES


def timeline(path: Path) -> Timeline:
    """Find when each frame is shown. A file that did not change is looked at once."""
    if is_pictures(path):
        return _timeline_of_pictures(path)
    stat = path.stat()
    return _timeline_of_video(path.absolute(), stat.st_mtime_ns, stat.st_size)


def _timeline_of_pictures(path: Path) -> Timeline:
    rate, times = picture_times(path)
    if isinstance(times, int):
        return Timeline(rate, range(times), n_frames=times)
    n = len(times) - 1
    rate, shown = sampling(times[:n], times[n] - times[n - 1], [rate])
    return Timeline(rate, shown, n_frames=n)


@lru_cache(maxsize=256)
def _timeline_of_video(path: Path, modified: int, size: int) -> Timeline:
    with opened(path) as (container, stream):
        times, last, end, regular = _packet_times(container, stream)
        cut = is_cut(path, container, stream, len(times), end)
        rates = [r for r in (stream.average_rate, stream.guessed_rate) if r]
        regular &= container.format.name.startswith(("mov", "matroska"))

    # Frames count, not packets: decode once, unless packets tell the same.
    brightness = None
    if not regular:
        times, last, complaint, brightness = _frame_times(path)
        cut |= complaint
    if not times:
        raise_damaged(path, 0)
    declared = [r for r in rates if SLOWEST <= r <= FASTEST] or [Fraction(25)]
    if None in times:  # a raw stream carries no times: its rate is constant
        rate, shown, start = declared[0], range(len(times)), 0.0
    else:
        rate, shown = sampling(times, last, declared)
        start = times[0]
    return Timeline(exact_rate(rate), shown, start, cut, len(times), brightness)


def _packet_times(container, stream) -> tuple[list[float | None], float, float, bool]:
    """Read all packets, without decoding.

    Returns (times of the stream's packets, duration of its last packet, end of the file), in
    seconds, and whether every packet surely gives one frame. Sound counts for the end.
    """
    times, last, end = [], 0.0, 0.0
    regular = stream.codec.canonical_name in COUNTED_BY_PACKETS
    regular &= stream.codec_context.color_trc not in (PQ, HLG)
    for packet in container.demux():
        if packet.stream is None or (not packet.size and packet.dts is None):  # a flush
            continue
        unit, span = float(packet.time_base or 1), packet.duration or 0
        end = max(end, ((packet.pts or 0) + span) * unit)
        if packet.stream_index == stream.index:
            regular &= bool(packet.size) and not packet.is_discard and not packet.is_corrupt
            regular &= packet.pts is not None and (bool(times) or _starts(stream, packet))
            times.append(None if packet.pts is None else packet.pts * unit)
            last = span * unit
    if not times or not regular:
        return times, last, end, False

    # The first packet is shown first, and no two at one time.
    first, times = times[0], sorted(times)
    return times, last, end, first == times[0] and all(a < b for a, b in pairwise(times))


def _starts(stream, packet) -> bool:
    """Tell whether a stream starts with a key frame, by its first packet or its index."""
    first = stream.index_entries[:1]
    return packet.is_keyframe or any(e.is_keyframe and e.pos == packet.pos for e in first)


def _frame_times(path: Path) -> tuple[list[float | None], float, bool, Brightness | None]:
    """Decode a file without keeping its frames.

    Returns (times of the frames, duration of the last), in seconds, whether the decoder complains,
    and the clip's brightness if its range is high.
    """
    times, last, damaged, peaks = [], 0.0, False, []
    with opened(path) as (container, stream):
        unit, is_gif = float(stream.time_base or 1), container.format.name == "gif"
        try:
            for frame in coded_frames(path, container, stream):
                pts = frame.dts if frame.pts is None else frame.pts
                times.append(None if pts is None else pts * unit)
                last = (getattr(frame, "duration", 0) or 0) * unit
                if is_hdr(frame):
                    peaks.append(peak_light(frame))
        except Damaged:
            damaged = True
        joins = container.format.name in JOINED

    # The decoder of ffmpeg says nothing of damaged pictures in a gif; the one of Pillow does.
    if is_gif:
        n_intact, complaint = intact_gif_pictures(path)
        damaged = complaint or len(times) < n_intact
        times = times[:n_intact] if complaint else times
    if None not in times:  # AVI stores no times: those of H.264 come in the order of decoding
        times = without_jumps(times) if joins else sorted(times)
    brightness = Brightness.of(*map(max, zip(*peaks, strict=True))) if peaks else None
    return times, last, damaged, brightness


def decode(path: Path) -> Iterator[np.ndarray]:
    """Yield the decoded frames in the order in which they are shown, h w 3 bytes each.

    Raises Damaged where damage begins.
    """
    return read_pictures(path) if is_pictures(path) else _decode_video(path)


def _decode_video(path: Path) -> Iterator[np.ndarray]:
    known = timeline(path)
    with opened(path) as (container, stream):
        codec, aspect = stream.codec.canonical_name, pixel_aspect(stream)
        intact = known.n_frames if known.damaged else None
        frames = islice(coded_frames(path, container, stream), intact)
        for frame in deinterlaced(frames, stream):
            yield as_shown(frame, codec, aspect, known.brightness)
