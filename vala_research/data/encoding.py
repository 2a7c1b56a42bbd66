"""Bytes of pictures into a video file, a gif or a folder, with another file's sound beside them."""

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from vala_research import InputError

VIDEO = {  # codec, pixel format, options: near-lossless, since what is written is also measured
    ".mp4": ("libx264", "yuv420p", {"crf": "12", "preset": "medium"}),
    ".webm": ("libvpx-vp9", "yuv420p", {"crf": "16", "b": "0", "cpu-used": "4"}),
    ".gif": ("gif", "pal8", {}),
}
SOUND = {  # codecs the container takes as they are, and the one to encode others with
    ".mp4": ({"aac", "mp3", "alac", "ac3"}, "aac"),
    ".webm": ({"opus", "vorbis"}, "libopus"),
    ".gif": (set(), None),
}
SOUND_RATE = 48000  # Hz, of re-encoded sound: the one opus and aac share


def encode(path: Path, pixels: np.ndarray, rate: Fraction, sound: tuple[Path, float] | None):
    """Write `pixels` (f h w 3 bytes); `sound`: a file and the second its video starts at."""
    import av

    codec, pixel_format, options = VIDEO[path.suffix.lower()]
    if codec == "libx264":  # 2x2 chroma blocks: an odd side gets its last line twice
        h, w = pixels.shape[1:3]
        pixels = np.pad(pixels, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    try:
        with ExitStack() as stack:
            out = stack.enter_context(av.open(str(path), "w"))
            stream = _video_stream(out, codec, pixel_format, rate, options, pixels.shape)
            packets = _sound_packets(out, stack, sound, SOUND[path.suffix.lower()])
            waiting = next(packets, None)
            for k, picture in enumerate(pixels):
                while waiting and waiting.pts * waiting.time_base <= k / rate:
                    out.mux(waiting)
                    waiting = next(packets, None)
                out.mux(stream.encode(_frame(picture, pixel_format)))
            out.mux(stream.encode())
            while waiting:
                out.mux(waiting)
                waiting = next(packets, None)
    except av.error.FFmpegError as error:
        raise InputError(f"{path.suffix} cannot be written: {error.strerror or error}.") from error


def _video_stream(out, codec: str, pixel_format: str, rate: Fraction, options: dict, shape):
    stream = out.add_stream(codec, rate=rate, options=options)
    stream.height, stream.width = shape[1:3]
    stream.pix_fmt = pixel_format
    if pixel_format == "yuv420p":
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # limited
    return stream


def _frame(picture: np.ndarray, pixel_format: str):
    """A frame for the encoder: BT.709, or for gif the best 256 colours of this very frame."""
    import av

    if pixel_format != "pal8":
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        return frame.reformat(format=pixel_format, dst_colorspace="ITU709", dst_color_range="MPEG")
    image = Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE)
    colours = np.frombuffer(bytes(image.getpalette("RGB")), np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 4), np.uint8)  # a r g b
    palette[:, 0], palette[: len(colours), 1:] = 255, colours
    return av.VideoFrame.from_ndarray((np.asarray(image), palette), format="pal8")


def _sound_packets(out, stack: ExitStack, sound, kinds) -> Iterator:
    """Packets of the file's first sound track, copied if the container allows, else re-encoded."""
    import av

    taken, encoder = kinds
    if sound is None or encoder is None:
        return iter(())
    path, start = sound
    source = stack.enter_context(av.open(str(path)))
    if not source.streams.audio:
        return iter(())
    track = source.streams.audio[0]
    if track.codec_context.name in taken:
        return _copied(source, track, out.add_stream_from_template(track), start)
    layout = "mono" if track.codec_context.channels == 1 else "stereo"
    return _encoded(source, track, out.add_stream(encoder, rate=SOUND_RATE, layout=layout), start)


def _copied(source, track, stream, start: float) -> Iterator:
    for packet in source.demux(track):
        if packet.dts is None:  # the flush packet at the end
            continue
        shift = round(start / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        packet.stream = stream
        yield packet


def _encoded(source, track, stream, start: float) -> Iterator:
    for frame in source.decode(track):
        frame.pts -= round(start / frame.time_base)
        yield from stream.encode(frame)
    yield from stream.encode()


def encode_folder(folder: Path, pixels: np.ndarray, rate: Fraction) -> None:
    """frame_0000.png ..., each with the rate as a text entry that `read_clip` finds again."""
    folder.mkdir()
    note = PngImagePlugin.PngInfo()
    note.add_text("fps", str(float(rate)))
    for k, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"frame_{k:04d}.png", pnginfo=note)
