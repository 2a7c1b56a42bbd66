"""Convert decoded frames to the picture that a player shows: upright RGB with square pixels."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from vala_research.data.chroma import is_halved, rgb_codes
from vala_research.data.tonemap import (
    BT2020,
    HLG,
    PQ,
    TO_709,
    Brightness,
    narrowed,
    peaks_of,
    tone_mapped,
)

LIMITED, UNTAGGED = 1, 2  # a colour range, a matrix (ITU-T H.273)
HD_LINES = 720  # from here on, an untagged picture is BT.709
LIMITED_WHEN_UNTAGGED = {"h264", "hevc"}  # their standards say so


def deinterlaced(frames: Iterator, stream) -> Iterator[Any]:
    """Yield as many frames, without combs: interlaced ones pass through ffmpeg's filter bwdif."""
    graph = None
    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        graph = graph or _graph(frame, stream)
        graph.push(frame)
        yield from _pulled(graph)
    if graph is not None:
        graph.push(None)
        yield from _pulled(graph)


def _graph(frame, stream):
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base
    )
    bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced:threads=1")
    graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
    return graph


def _pulled(graph) -> Iterator[Any]:
    import av

    while True:
        try:
            yield graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


def is_hdr(frame) -> bool:
    """Tell whether a frame has high dynamic range."""
    return frame.color_trc in (PQ, HLG)


def peak_light(frame) -> tuple[float, float]:
    """Return the brightest light of a frame of high dynamic range, see `peaks_of`."""
    if _is_guided(frame):
        step = 1 + frame.width // 1280
        return peaks_of(rgb_codes(frame, is_small=True)[::step, ::step], frame.color_trc)
    width = min(frame.width, 320)
    height = max(1, frame.height * width // frame.width)
    return peaks_of(_codes(frame, {"width": width, "height": height}), frame.color_trc)


def _is_guided(frame) -> bool:
    """Tell whether `rgb_codes` takes a frame."""
    return frame.colorspace in (UNTAGGED, BT2020) and is_halved(frame)


def _codes(frame, options: dict) -> np.ndarray:
    """Return a frame as 16-bit RGB codes, h w 3."""
    if not options and _is_guided(frame):
        return rgb_codes(frame)
    if frame.colorspace == UNTAGGED and not frame.format.is_rgb:
        options = options | {"src_colorspace": BT2020}
    return frame.reformat(format="rgb48le", **options).to_ndarray()


def as_shown(frame, codec: str, aspect: Fraction, brightness: Brightness | None) -> np.ndarray:
    """Convert a frame to bytes, h w 3.

    Alpha goes on white. Grey of limited range is stretched. High dynamic range is tone-mapped, and
    the colours of a wide gamut are converted.

    codec: name of the codec; some say what an untagged picture means.
    aspect: width of a pixel divided by its height; the picture is resampled to square pixels.
    brightness: brightness of a clip of high dynamic range.
    """
    options, width = {}, max(1, round(frame.width * aspect))
    if width != frame.width:
        options = {"width": width, "height": frame.height, "interpolation": "BICUBIC"}
    if is_hdr(frame) and brightness is not None:
        return _upright(tone_mapped(_codes(frame, options), frame.color_trc, brightness), frame)

    is_rgb = frame.format.is_rgb or "pal" in frame.format.name
    if frame.colorspace == UNTAGGED and frame.height >= HD_LINES and not is_rgb:
        options["src_colorspace"] = "ITU709"
    if frame.colorspace == UNTAGGED and frame.color_primaries == BT2020 and not is_rgb:
        options["src_colorspace"] = BT2020
    if frame.format.name.startswith("gray") and "f" not in frame.format.name:
        picture = _grey(frame, codec, options)
    elif "pal" in frame.format.name or any(c.is_alpha for c in frame.format.components):
        rgba = frame.to_ndarray(format="rgba", **options).astype(np.float32)
        alpha = rgba[..., 3:] / 255
        picture = (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    else:
        picture = frame.to_ndarray(format="rgb24", **options)
    if frame.color_primaries in TO_709:
        picture = narrowed(picture, frame.color_primaries)
    return _upright(picture, frame)


def _grey(frame, codec: str, options: dict) -> np.ndarray:
    """Return a grey picture as RGB; ffmpeg itself does not stretch limited range, 16 to 235."""
    deep = frame.format.name != "gray"
    grey = frame.to_ndarray(format="gray16le" if deep else "gray", **options).astype(np.float32)
    grey = grey / 257 if deep else grey
    if frame.color_range == LIMITED or (not frame.color_range and codec in LIMITED_WHEN_UNTAGGED):
        grey = (grey - 16) * (255 / 219)
    return np.repeat(grey.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def _upright(picture: np.ndarray, frame) -> np.ndarray:
    """Apply the display matrix, (x', y') = M (x, y)."""
    from av.sidedata.sidedata import SideDataContainer

    # `frame.side_data` would make frame and container refer to each other. They would keep the
    # decoder's threads until a garbage collection, and a collection in a forked process would hang.
    side = SideDataContainer(frame).get("DISPLAYMATRIX")
    if side is not None:  # 16.16 fixed point; only the signs and the larger entries matter
        a, b, _, c, d = np.frombuffer(bytes(side), np.int32)[:5]
        if abs(int(a)) < abs(int(b)):  # a quarter turn: x' follows y
            picture, a, d = picture.transpose(1, 0, 2), c, b
        picture = picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(picture)
