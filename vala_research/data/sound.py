"""The sound of a written clip: which part of a file's sound goes with it, and its packets."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vala_research.data.container import opened
from vala_research.data.decoding import existing, timeline
from vala_research.data.pictures import exact_rate

SOUND = {  # codecs that the container takes, and the encoder for all other sound
    ".mp4": ({"aac", "mp3", "alac", "ac3"}, "aac"),
    ".webm": ({"opus", "vorbis"}, "libopus"),
}
SOUND_RATE = 48000  # Hz; rate of re-encoded sound, which opus and aac share


@dataclass(frozen=True)
class Sound:
    """The sound of a file that goes with a clip.

    path: the file. start: time at which its video starts, in seconds.
    length: seconds of sound that are kept (None: all).
    """

    path: Path
    start: float
    length: float | None = None


def sound_of(
    source: Path, n_frames: int, n_read: int, rate: Fraction, suffix: str
) -> Sound | None:
    """Return the sound of a file's first frames at their own rate. Otherwise warn, return None.

    n_frames, rate: of the clip that is written. n_read: number of frames that were read.
    suffix: of the file that is written.
    """
    if source.is_dir() or not _has_sound(existing(source)):
        return None
    times = timeline(source)
    for is_so, reason in (
        (suffix not in SOUND, f"{suffix or 'a folder of frames'} holds none"),
        (rate != exact_rate(times.rate), f"{source} has {float(times.rate):g} frames per second, "
         f"not {float(rate):g}"),
        (n_frames != n_read, f"these are {n_frames} of the clip's {n_read} frames"),
        (n_frames > len(times.shown), f"{source} has {len(times.shown)} frames, not {n_frames}"),
        (times.damaged, f"{source} is damaged"),
    ):  # fmt: skip
        if is_so:
            return warn_dropped(reason)
    length = float(n_frames / rate) if n_frames < len(times.shown) else None
    return Sound(source, times.start, length)


def warn_dropped(reason: str) -> None:
    """Say why a clip is written without sound."""
    warnings.warn(f"The sound is dropped: {reason}.", stacklevel=3)


def _has_sound(path: Path) -> bool:
    """Whether a file has a sound track."""
    with opened(path) as (source, _):
        return bool(source.streams.audio)


def sound_packets(out, stack: ExitStack, sound: Sound | None, suffix: str) -> Iterator[Any]:
    """Yield the packets of the first sound track, copied if the container takes them.

    Otherwise the track is re-encoded, as mono or stereo.
    out: the open container. stack: closes the file of the sound.
    """
    if sound is None:
        return iter(())
    accepted, encoder = SOUND[suffix]
    source, _ = stack.enter_context(opened(sound.path))
    track = source.streams.audio[0]
    if track.codec_context.name in accepted:
        return _copied(source, track, out.add_stream_from_template(track), sound)
    layout = "mono" if track.codec_context.channels == 1 else "stereo"
    return _encoded(source, track, out.add_stream(encoder, rate=SOUND_RATE, layout=layout), sound)


def _copied(source, track, stream, sound: Sound) -> Iterator[Any]:
    for packet in source.demux(track):
        if packet.dts is None:  # the last packet, a flush, carries no data
            continue
        shift = round(sound.start / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        if sound.length is not None and packet.pts * packet.time_base >= sound.length:
            return
        packet.stream = stream
        yield packet


def _encoded(source, track, stream, sound: Sound) -> Iterator[Any]:
    for frame in source.decode(track):
        frame.pts -= round(sound.start / frame.time_base)
        if sound.length is not None and frame.pts * frame.time_base >= sound.length:
            break
        yield from stream.encode(frame)
    yield from stream.encode()
