"""Encode pictures into a video file, a gif or a folder; the sound comes from another file."""

from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from vala_research import InputError
from vala_research.data.sound import Sound, sound_packets, warn_dropped

VIDEO = {  # codec, pixel format, options: near-lossless, since written clips are also measured
    ".mp4": ("libx264", "yuv420p", {"crf": "12", "preset": "medium"}),
    ".webm": ("libvpx-vp9", "yuv420p", {"crf": "16", "b": "0", "cpu-used": "4"}),
    ".gif": ("gif", "pal8", {}),
}


def encode(path: Path, pixels: np.ndarray, rate: Fraction, sound: Sound | None = None) -> None:
    """Write a video file; without sound, and with a warning, if something is wrong with the sound.

    pixels: bytes, f h w 3.
    rate: frames per second.
    """
    try:
        _encode(path, pixels, rate, sound)
    except Exception as error:
        if sound is None:
            raise
        _encode(path, pixels, rate, None)
        warn_dropped(f"it cannot be read from {sound.path} ({error})")


def _encode(path: Path, pixels: np.ndarray, rate: Fraction, sound: Sound | None) -> None:
    import av

    (codec, pixel_format, options), (h, w) = VIDEO[path.suffix.lower()], pixels.shape[1:3]
    if codec == "libx264":  # 2x2 chroma blocks: an odd side gets its last line twice
        pixels = np.pad(pixels, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    try:
        with ExitStack() as stack:
            # ffmpeg gets no name, in which it would look for a protocol.
            file = stack.enter_context(path.open("wb"))
            out = stack.enter_context(av.open(file, "w", format=path.suffix[1:].lower()))
            stream = _video_stream(out, codec, pixel_format, rate, options, pixels.shape)
            packets = sound_packets(out, stack, sound, path.suffix.lower())

            # Interleave by time: the sound up to a frame goes before the frame.
            waiting = next(packets, None)
            for k, picture in enumerate(pixels):
                while waiting and waiting.pts * waiting.time_base <= k / rate:
                    out.mux(waiting)
                    waiting = next(packets, None)
                out.mux(stream.encode(encoder_frame(picture, pixel_format)))

            # Flush the encoder, then write the sound that is left.
            out.mux(stream.encode())
            while waiting:
                out.mux(waiting)
                waiting = next(packets, None)
    except av.error.FFmpegError as error:
        first = error.__context__ or error  # closing after a full disk fails too
        raise InputError(
            f"{path.name} cannot be written ({getattr(first, 'strerror', first)}; frames of {w}x{h}"
            " pixels): choose another place or format."
        ) from error


def _video_stream(out, codec: str, pixel_format: str, rate: Fraction, options: dict, shape):
    stream = out.add_stream(codec, rate=rate, options=options)
    stream.height, stream.width = shape[1:3]
    stream.pix_fmt = pixel_format
    if pixel_format == "yuv420p":
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # limited
    return stream


def encoder_frame(picture: np.ndarray, pixel_format: str):
    """Convert a picture for the encoder: BT.709, or for gif its own 256 best colours."""
    import av

    if pixel_format != "pal8":
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        return frame.reformat(format=pixel_format, dst_colorspace="ITU709", dst_color_range="MPEG")

    # PyAV takes the palette as 256 rows of a r g b.
    image = Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE)
    colours = np.frombuffer(bytes(image.getpalette("RGB")), np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 4), np.uint8)
    palette[:, 0], palette[: len(colours), 1:] = 255, colours
    return av.VideoFrame.from_ndarray((np.asarray(image), palette), format="pal8")


def encode_folder(folder: Path, pixels: np.ndarray, rate: Fraction) -> None:
    """Write frame_0000.png ...; each holds the rate as a text entry, which `read_clip` reads."""
    folder.mkdir()
    note = PngImagePlugin.PngInfo()
    note.add_text("fps", str(float(rate)))
    for k, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"frame_{k:04d}.png", pnginfo=note)
