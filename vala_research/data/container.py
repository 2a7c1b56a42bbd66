"""Open a video file safely, and decode its pictures in the order in which they are shown.

PyAV (https://pyav.org) reads containers and codecs.
"""

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from vala_research import InputError

# Containers, and pictures of any suffix, that hold all themselves: no playlist, no manifest.
FORMATS = (
    "apng", "asf", "av1", "avi", "cavsvideo", "dirac", "dnxhd", "dv", "flic", "flv", "gif", "gxf",
    "h261", "h263", "h264", "hevc", "ivf", "live_flv", "m4v", "matroska", "mjpeg", "mov", "mpeg",
    "mpegts", "mpegvideo", "mxf", "nsv", "nut", "obu", "ogg", "rm", "vc1", "vvc", "webm", "wtv",
    "yuv4mpegpipe",
    "bmp_pipe", "jpeg_pipe", "pgm_pipe", "png_pipe", "ppm_pipe", "tiff_pipe", "webp_pipe",
)  # fmt: skip
MAX_PIXELS = 36_000_000  # per picture: 8192x4320 fits
WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # codec: decoder that reads alpha blocks


class Damaged(InputError):
    """Damage begins at this place of a file; the frames before it are readable."""


def open_file(path: Path):
    """Open a file with PyAV as what it is: never as an address, a playlist or a device."""
    import av

    options = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(FORMATS),
        "max_pixels": str(MAX_PIXELS),
    }
    return av.open(f"file:{path.absolute()}", options=options)


@contextmanager
def opened(path: Path):
    """Open a container; yields it and the video stream that a player shows.

    That is the first default track. The cover picture of an audio file is no video stream.
    Raises InputError if the file is not a readable video or its pictures are too large.
    """
    import av

    try:
        with open_file(path) as container:
            kind = av.stream.Disposition
            streams = [s for s in container.streams.video if not s.disposition & kind.attached_pic]
            if not streams:
                raise InputError(f"{path} holds no video (audio or text?): give a video file.")
            stream = next((s for s in streams if s.disposition & kind.default), streams[0])
            check_pixels(path, round(stream.width * pixel_aspect(stream)), stream.height)
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            yield container, stream
    except InputError:
        raise
    except Exception as error:  # PyAV raises many kinds for damaged headers
        if getattr(error, "errno", None) == errno.EINVAL:
            raise InputError(
                f"{path} holds no video that can be read (audio, text or a playlist?):"
                " give a video file."
            ) from error
        raise InputError(
            f"{path} is not a readable video ({getattr(error, 'strerror', None) or error}): "
            "the file is truncated, damaged or no video; give an intact file."
        ) from error


def pixel_aspect(stream) -> Fraction:
    """Return the width of a pixel divided by its height; 1 if it is unknown."""
    return stream.sample_aspect_ratio or Fraction(1)


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise InputError if a picture is too large to be decoded."""
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path}: a picture has {width}x{height} pixels, more than {MAX_PIXELS:,} in all;"
            " give a smaller one."
        )


def coded_frames(path: Path, container, stream) -> Iterator[Any]:
    """Yield the decoded frames as PyAV gives them.

    What cannot be decoded before a key frame is left out: at the start, and where two recordings
    are joined (MPEG-TS).
    Raises Damaged where the decoder first complains, or where the file ends within a packet.
    """
    import av

    decoder, joins = _decoder(path, stream), container.format.name == "mpegts"
    keyed, n_frames, n_lost, cut = False, 0, 0, False
    for packet in container.demux(stream):
        if not packet.size:  # the picture before stays; the last packet, a flush, is empty too
            continue
        if packet.is_corrupt and not joins:  # fewer bytes are there than the packet has
            cut = True
            break
        keyed = packet.is_keyframe or (keyed and not packet.is_corrupt)

        # An error counts from the first key frame on.
        try:
            frames = decoder.decode(packet)
        except av.error.FFmpegError as error:
            if keyed and not packet.is_corrupt:
                raise Damaged(f"{path}: {error.strerror}") from error
            frames, n_lost = [], n_lost + 1
        for frame in frames:
            if _is_whole(frame):
                n_frames += 1
                yield frame
            elif keyed and n_frames:
                raise Damaged(f"{path}: a picture is damaged")

    # Drain the decoder.
    yield from filter(_is_whole, _drained(path, decoder))
    if cut:
        raise Damaged(f"{path}: the file ends within a picture")
    if joins and n_lost and n_frames:
        warnings.warn(
            f"{path}: {n_lost} packets cannot be decoded, at the start or where"
            " recordings are joined; their pictures are left out.",
            stacklevel=2,
        )


def _is_whole(frame) -> bool:
    """Tell whether a frame was decoded from all that it needs; ffmpeg doubts a lone key frame."""
    return not frame.is_corrupt or frame.key_frame


def _drained(path: Path, decoder) -> list:
    import av

    try:
        return decoder.decode(None)
    except av.error.EOFError:  # it was drained before
        return []
    except av.error.FFmpegError as error:
        raise Damaged(f"{path}: {error.strerror}") from error


def _decoder(path: Path, stream):
    """Return the stream's decoder; for alpha beside a VP8 or VP9 stream, the one that reads it."""
    import av

    context, tags = stream.codec_context, {k.lower(): v for k, v in stream.metadata.items()}
    name = WITH_ALPHA.get(stream.codec.canonical_name)
    if name is None or tags.get("alpha_mode") != "1":
        return context
    try:
        decoder = av.CodecContext.create(name, "r")
    except ValueError:  # this build of ffmpeg has no such decoder
        warnings.warn(f"{path}: its transparency is not read.", stacklevel=2)
        return context
    decoder.extradata, decoder.options = context.extradata, context.options
    return decoder
