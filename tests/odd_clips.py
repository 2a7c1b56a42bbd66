"""Clips that players show and readers refuse, made with PyAV alone."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

OPTIONS = {
    "libx264": {"crf": "8", "g": "6"}, "mpeg2video": {"g": "6", "bf": "2", "q": "2"},
    "mpeg4": {"g": "6", "q": "2"}, "libvpx": {"g": "6"}, "libvpx-vp9": {"g": "6", "crf": "8"},
    "libx265": {"x265-params": "log-level=none:crf=8"},
}  # fmt: skip


def ramps(n: int = 24, h: int = 48, w: int = 64) -> np.ndarray:
    """Smooth pictures, all different, f h w 3 bytes."""
    y, x = np.mgrid[0:h, 0:w]
    blue = np.arange(n)[:, None, None] * 255 / n + np.zeros((n, h, w))
    red, green = (np.broadcast_to(255 * a / a.max(), (n, h, w)) for a in (y, x))
    return np.stack([red, green, blue], -1).astype(np.uint8)


def encoded(path: Path, codec: str, pixels=None, pix_fmt="yuv420p", times=None, **settings) -> Path:
    """Encode pictures, f h w 3 or 4 bytes, at 25 frames per second.

    times: presentation time of each picture, in 1/25 s.
    convert: maps (RGB frame, number) to the encoder's frame. options, container: of ffmpeg.
    metadata: of the stream. Other settings are attributes of the codec context.
    """
    pixels = ramps() if pixels is None else pixels
    convert = settings.pop("convert", lambda frame, k: frame)
    options = settings.pop("options", {})
    metadata = settings.pop("metadata", {})
    with av.open(str(path), "w", options=settings.pop("container", {})) as out:
        stream = out.add_stream(codec, rate=25, options=OPTIONS.get(codec, {}) | options)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], pix_fmt
        stream.metadata.update(metadata)
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for k, picture in enumerate(pixels):
            kind = "rgba" if picture.shape[-1] == 4 else "rgb24"
            kind = "rgb48le" if picture.dtype == np.uint16 else kind
            frame = convert(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), kind), k)
            frame.pts, frame.time_base = k if times is None else times[k], Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def copied(source: Path, path: Path, skip: int = 0, seconds: float = 0.0) -> Path:
    """Copy a stream without its first packets, and earlier by some seconds."""
    keep = {"avoid_negative_ts": "disabled"}
    with av.open(str(source)) as given, av.open(str(path), "w", options=keep) as out:
        track = given.streams.video[0]
        stream, shift = out.add_stream_from_template(track), round(seconds / track.time_base)
        for packet in list(given.demux(track))[skip:]:
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                out.mux(packet)
    return path


def decoded(path: Path) -> np.ndarray:
    """The frames that ffmpeg decodes, f h w 3 bytes; packets that it cannot decode are left out."""
    frames = []
    with av.open(str(path)) as file:
        for packet in file.demux(video=0):
            try:
                frames += packet.decode()
            except av.error.FFmpegError:
                continue
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
