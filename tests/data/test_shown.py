"""Clips are read as a player shows them: alpha, pixel shape, tracks, colours, range, fields.

About 5 s of processor time.
"""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from odd_clips import encoded, ramps

from vala_research import read_clip
from vala_research.data.chroma import rgb_codes
from vala_research.data.tonemap import HLG, PQ

LOSSY = 0.015  # mean difference after a lossy codec; another picture is more than 0.03 away


def psnr(clip, shown) -> float:
    shown = torch.as_tensor(np.asarray(shown), dtype=torch.float32).movedim(-1, -3)
    return -10 * (clip.frames - shown).square().mean().log10().item()


@pytest.mark.parametrize(
    "name, codec, pix_fmt, options",
    [
        ("a.webm", "libvpx-vp9", "yuva420p", {}),
        ("a.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0"}),
        ("a.mkv", "ffv1", "yuva420p", {}),
        ("a.mov", "qtrle", "argb", {}),
    ],
)
def test_alpha_is_on_white(tmp_path, name, codec, pix_fmt, options):
    """Red, of which the left half is transparent."""
    red = np.zeros((4, 48, 64, 4), np.uint8)
    red[..., 0], red[:, :, 32:, 3] = 255, 255
    path = encoded(
        tmp_path / name, codec, red, pix_fmt, options=options, metadata={"alpha_mode": "1"},
        convert=lambda frame, k: frame.reformat(format=pix_fmt),
    )  # fmt: skip
    frames = read_clip(path).frames
    assert len(frames) == 4
    assert (frames[..., :28] - 1).abs().max() < 0.03
    assert (frames[:, :, :, 36:] - torch.tensor([1.0, 0, 0])[:, None, None]).abs().max() < 0.03


@pytest.mark.parametrize("shape, width", [("32/27", 76), ("8/9", 57), ("1/2", 32)])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_pixels_become_square(tmp_path, codec, shape, width):
    path = encoded(tmp_path / "a.mp4", codec, ramps(3), sample_aspect_ratio=Fraction(shape))
    clip = read_clip(path)
    assert clip.frames.shape == (3, 3, 48, width)
    assert psnr(clip, ramps(3, 48, width) / 255) > 35


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("first_is_default", [True, False])
def test_the_default_track_is_read(tmp_path, name, first_is_default):
    default, none = av.stream.Disposition.default, av.stream.Disposition(0)
    with av.open(str(tmp_path / name), "w") as out:
        streams = [out.add_stream("mpeg4", rate=25) for _ in range(2)]
        for k, stream in enumerate(streams):
            stream.height, stream.width, stream.pix_fmt = 48, (32, 128)[k], "yuv420p"
            stream.disposition = default if first_is_default == (k == 0) else none
        for stream in streams:
            out.mux(stream.encode(av.VideoFrame(stream.width, 48, "yuv420p")))
            out.mux(stream.encode())
    assert read_clip(tmp_path / name).frames.shape[-1] == (32 if first_is_default else 128)


@pytest.mark.parametrize("lines, matrix", [(720, "ITU709"), (576, "ITU601")])
@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.mkv", "mpeg4")])
def test_the_matrix_of_an_untagged_picture_depends_on_its_lines(
    tmp_path, lines, matrix, name, codec
):
    """Saturated green differs by 0.07 between BT.601 and BT.709 read as each other."""
    green = np.zeros((1, lines, 64, 3), np.uint8)
    green[..., 1] = 204
    path = encoded(
        tmp_path / name, codec, green,
        convert=lambda frame, k: frame.reformat(format="yuv420p", dst_colorspace=matrix),
    )  # fmt: skip
    assert psnr(read_clip(path), green / 255) > 38


@pytest.mark.parametrize("pix_fmt, bits", [("gray", 8), ("gray16le", 16)])
@pytest.mark.parametrize("is_limited", [True, False])
def test_grey_of_limited_range_is_stretched(tmp_path, pix_fmt, bits, is_limited):
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    low, high = (16, 235) if is_limited else (0, 255)

    def convert(frame, k):
        codes = (low + grey[0] / 255 * (high - low)) * (257 if bits == 16 else 1)
        kind = np.uint16 if bits == 16 else np.uint8
        converted = av.VideoFrame.from_ndarray(codes.round().astype(kind), format=pix_fmt)
        converted.color_range = 1 if is_limited else 2
        return converted

    path = encoded(
        tmp_path / "a.mkv", "ffv1", grey[..., None].repeat(3, -1), pix_fmt,
        convert=convert, color_range=1 if is_limited else 2,
    )  # fmt: skip
    shown = torch.from_numpy(grey / 255).float()
    # Half a code of 219 or 255, and half a step of the bytes that are returned.
    assert (read_clip(path).frames[0] - shown).abs().max() <= 1.01 / 255


TO_2020 = [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]


def coded(nits: np.ndarray, transfer: int) -> np.ndarray:
    """Encode display light in nits, BT.2020, by the formulas of BT.2100."""
    if transfer == PQ:
        power = (nits / 1e4).clip(0) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    luma = (nits @ np.array([0.2627, 0.6780, 0.0593]))[..., None].clip(1e-9)
    scene = (nits / 1000).clip(0) * (luma / 1000) ** (1 / 1.2 - 1)
    bright = 0.17883277 * np.log((12 * scene - 0.28466892).clip(1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


@pytest.mark.parametrize("white", [100, 203])
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_high_dynamic_range_is_shown_as_the_picture_of_standard_range(tmp_path, transfer, white):
    shown = ramps(2, 96, 128) / 255
    shown[:, :24] = np.linspace(0, 1, 128)[:, None]  # greys up to white
    codes = coded(shown**2.4 * white @ np.array(TO_2020).T, transfer)
    path = encoded(
        tmp_path / "a.mkv", "libx265", (codes.clip(0, 1) * 65535).round().astype(np.uint16),
        "yuv420p10le", color_range=1, colorspace=9, color_primaries=9, color_trc=transfer,
        convert=hdr_frame,
    )  # fmt: skip
    assert psnr(read_clip(path), shown) > 30


@pytest.mark.parametrize("white", [100, 203])
@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize("width, least", [(16, 30), (13, 27)])
def test_high_dynamic_range_keeps_the_edges_of_colours(tmp_path, transfer, white, width, least):
    """Bars of the pure colours, whose edges lie on chroma samples or within them.

    Interpolated chroma gives 18 to 21 dB. A codec that is exact gives 33 dB, limited by 10 bits.
    """
    colours = np.array(list(np.ndindex(2, 2, 2)))[::-1]
    shown = np.broadcast_to(colours[np.arange(128) // width % 8], (2, 96, 128, 3)).astype(float)
    codes = coded(shown * white @ np.array(TO_2020).T, transfer)
    path = encoded(
        tmp_path / "a.mkv", "libx265", (codes.clip(0, 1) * 65535).round().astype(np.uint16),
        "yuv420p10le", color_range=1, colorspace=9, color_primaries=9, color_trc=transfer,
        convert=lambda frame, k: halved(hdr_planes(frame)),
    )  # fmt: skip
    assert psnr(read_clip(path), shown) > least


@pytest.mark.parametrize("h, w", [(1, 1), (3, 16), (11, 17)])
@pytest.mark.parametrize("bits, is_limited", [(8, True), (10, True), (10, False), (12, True)])
def test_flat_colours_of_halved_chroma_are_exact(h, w, bits, is_limited):
    """Of any depth, range and size. Chroma weighs up to 2, half a code of it is 1."""
    shown = np.array([0.7, 0.4, 0.2])
    luma = shown @ np.array([0.2627, 0.6780, 0.0593])
    differences = (shown[2] - luma) / 1.8814, (shown[0] - luma) / 1.4746
    full = 256 - 2.0 ** (8 - bits)
    low, spans = (16, (219, 224)) if is_limited else (0, (full, full))
    values = low + spans[0] * luma, *(128 + spans[1] * d for d in differences)
    frame = av.VideoFrame(w, h, "yuv420p" if bits == 8 else f"yuv420p{bits}le")
    frame.color_range, frame.colorspace = (1 if is_limited else 2), 9
    for plane, value in zip(frame.planes, values, strict=True):
        code = round(value * 2 ** (bits - 8))
        kind = np.uint8 if bits == 8 else np.uint16
        plane.update(np.full(plane.buffer_size // kind().nbytes, code, kind).tobytes())
    codes = rgb_codes(frame)
    assert codes.shape == (h, w, 3)
    assert np.abs(codes / 65535 - shown).max() < 1.5 / 2**bits


def hdr_planes(frame) -> np.ndarray:
    """Convert to Y'CbCr of BT.2020, limited range, which not every PyAV writes by itself."""
    rgb = frame.to_ndarray() / 65535
    luma = rgb @ np.array([0.2627, 0.6780, 0.0593])
    blue, red = (rgb[..., 2] - luma) / 1.8814, (rgb[..., 0] - luma) / 1.4746
    return np.stack([16 + 219 * luma, 128 + 224 * blue, 128 + 224 * red], -1) * 256


def hdr_frame(frame, k):
    codes = hdr_planes(frame).round().astype(np.uint16)
    return av.VideoFrame.from_ndarray(codes, "yuv444p16le").reformat(format="yuv420p10le")


def halved(planes: np.ndarray) -> av.VideoFrame:
    """Take the mean of each four chroma samples; ffmpeg would mix in further ones."""
    h, w, _ = planes.shape
    chroma = planes[..., 1:].reshape(h // 2, 2, w // 2, 2, 2).mean((1, 3))
    frame = av.VideoFrame(w, h, "yuv420p10le")
    whole = (planes[..., 0], *np.moveaxis(chroma, -1, 0))
    for plane, values in zip(frame.planes, whole, strict=True):
        padded = np.zeros((plane.height, plane.line_size // 2), np.uint16)
        padded[:, : plane.width] = (values / 64).round()
        plane.update(padded.tobytes())
    return frame


TO_P3 = [[0.8225, 0.1775, 0.0], [0.0332, 0.9668, 0.0], [0.0171, 0.0724, 0.9105]]


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv444p10le", "gbrp"])
@pytest.mark.parametrize("primaries, matrix", [(9, TO_2020), (12, TO_P3)])
def test_colours_of_a_wide_gamut_are_converted(tmp_path, primaries, matrix, pix_fmt):
    """Read as BT.709, they are at 17 to 19 dB. Bytes of dark channels limit the conversion."""
    shown = ramps(2) / 255
    wide = ((shown**2.35 @ np.array(matrix).T) ** (1 / 2.35) * 65535).round().astype(np.uint16)
    is_rgb = pix_fmt == "gbrp"
    path = encoded(
        tmp_path / "a.mkv", "libx264rgb" if is_rgb else "libx264", wide,
        "rgb24" if is_rgb else pix_fmt, options={"crf": "1"}, color_primaries=primaries,
        color_trc=1, colorspace=0 if is_rgb else 1, color_range=2 if is_rgb else 1,
        convert=lambda frame, k: frame.reformat(format="rgb24") if is_rgb else frame.reformat(
            format=pix_fmt, dst_colorspace="ITU709", dst_color_range=1
        ),
    )  # fmt: skip
    assert psnr(read_clip(path), shown) > 33


def test_light_above_white_is_compressed_without_clipping(tmp_path):
    """A ramp of greys up to 1000 nits stays a ramp."""
    codes = coded(np.linspace(0, 1000, 128)[None, None, :, None].repeat(3, -1) + np.zeros(3), PQ)
    codes = codes.repeat(96, 1).repeat(2, 0)
    path = encoded(
        tmp_path / "a.mkv", "libx265", (codes * 65535).round().astype(np.uint16), "yuv420p10le",
        color_range=1, colorspace=9, color_primaries=9, color_trc=PQ,
        convert=hdr_frame,
    )  # fmt: skip
    row = read_clip(path).frames[0].mean((0, 1))
    coarse = row.reshape(16, 8).mean(-1)
    assert (coarse.diff() > -0.002).all() and coarse[-1] > 0.98  # half a step of bytes
    assert coarse[7] < 0.98  # at half the brightness there is light to come


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("a.mp4", "libx264", {"x264-params": "tff=1"}),
        ("a.ts", "libx264", {"x264-params": "bff=1"}),
        ("a.mpg", "mpeg2video", {"flags": "+ildct+ilme", "bf": "0"}),
    ],
)
def test_interlaced_pictures_lose_their_combs(tmp_path, name, codec, options):
    """A bar moves between the two fields of a picture."""
    top_first = "bff" not in str(options)
    frames = np.zeros((8, 48, 64, 3), np.uint8)
    for k, line in np.ndindex(8, 48):
        left = 4 + 3 * (2 * k + (line % 2 == top_first))
        frames[k, line, left : left + 8] = 255
    clip = read_clip(encoded(tmp_path / name, codec, frames, options=options))

    def combs(f):
        return (f[:, 0, 1:-1] - (f[:, 0, :-2] + f[:, 0, 2:]) / 2).abs().mean()

    whole = torch.from_numpy(frames).movedim(-1, 1) / 255
    assert len(clip) == 8
    assert combs(clip.frames) < 0.03 and combs(whole) > 0.09
    assert (clip.frames.mean() - whole.mean()).abs() < LOSSY  # the bar is still there
