"""Pictures are read as they are shown, in the formats we name, and within limits.

About 2 s of processor time.
"""

import os
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vala_research import InputError, read_clip
from vala_research.data.manifests import read_manifest

RAMP = np.linspace(0, 1, 48 * 64).reshape(48, 64)


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.float32), (255 * RAMP).astype(np.float32), (65535 * RAMP).astype(np.uint16),
        (65535 * RAMP).astype(np.int32), RAMP, np.stack([RAMP, RAMP, RAMP], -1).astype(np.float32),
        (65535 * np.stack([RAMP, RAMP, RAMP], -1)).astype(np.uint16),
    ],
    ids=["floats", "floats to 255", "16 bit", "32 bit", "doubles", "colours", "16-bit colours"],
)  # fmt: skip
def test_tiff_files_of_all_depths(tmp_path, values):
    import cv2

    assert cv2.imwrite(str(tmp_path / "0.tif"), values)
    frame = read_clip(tmp_path).frames[0].numpy()
    assert np.abs(frame - RAMP).max() <= 1 / 255  # bytes: half a step, or one where cut off


@pytest.mark.parametrize("name", ["a.ppm", "a.jfif"])
def test_single_pictures_of_other_suffixes_are_read(tmp_path, name):
    Image.fromarray((255 * RAMP).astype(np.uint8)).convert("RGB").save(tmp_path / name)
    frames = read_clip(tmp_path / name).frames
    assert frames.shape == (1, 3, 48, 64) and np.abs(frames[0].numpy() - RAMP).mean() < 0.01


@pytest.mark.parametrize("text", ["0", "-5", "5000", "nan", "inf", "24 fps", "", "1e-9", "1e999"])
def test_a_rate_that_is_none_gives_the_default(tmp_path, text):
    note = PngImagePlugin.PngInfo()
    note.add_text("fps", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png", pnginfo=note)
    assert read_clip(tmp_path).fps == 24


def test_an_unreadable_first_picture_gives_one_sentence(tmp_path):
    (tmp_path / "0.png").write_bytes(b"x")
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    with pytest.raises(InputError, match="0.png is not a readable picture: remove or replace it"):
        read_clip(tmp_path)


@pytest.mark.parametrize("name", ["a.webp", "a.apng", "a.png"])
def test_animated_pictures_are_clips(tmp_path, name):
    """The left half of each picture lets half of the white through."""
    pictures = [Image.new("RGBA", (40, 30), (40 * k, 0, 0, 255)) for k in range(1, 6)]
    for picture in pictures:
        picture.paste((0, 0, 0, 128), (0, 0, 20, 30))
    options = {"lossless": True} if name == "a.webp" else {"format": "PNG", "disposal": 1}
    pictures[0].save(
        tmp_path / name, save_all=True, append_images=pictures[1:], duration=40, **options
    )
    clip = read_clip(tmp_path / name)
    assert len(clip) == 5 and clip.fps == 25
    assert (clip.frames[..., :20] - 127 / 255).abs().max() <= 1.01 / 255
    assert (clip.frames[:, 0, 0, 30] * 255).round().tolist() == [40, 80, 120, 160, 200]
    if name != "a.png":  # a single png beside the clips of a data set is no clip
        assert [entry.name for entry in read_manifest(tmp_path)] == ["a"]


def test_postscript_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("it was run"))
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "0.png").write_text(text)
    for path in (tmp_path, tmp_path / "0.png"):
        with pytest.raises(InputError, match="0.png is not a readable picture"):
            read_clip(path)


def large_png(path, side: int) -> None:
    """Write a white png of a few kB, row by row."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    parts = {b"IHDR": side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0]), b"IDAT": data}
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, content in (parts | {b"IEND": b""}).items():
            check = zlib.crc32(name + content).to_bytes(4, "big")
            file.write(len(content).to_bytes(4, "big") + name + content + check)


def test_pictures_too_large_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    sides = {12000: "12000x12000 pixels, more than 36,000,000", 14000: "has too many pixels"}
    for side, problem in sides.items():
        large_png(tmp_path / "0.png", side)
        assert (tmp_path / "0.png").stat().st_size < 25000
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(InputError, match=problem):
                read_clip(tmp_path)


def test_a_line_of_pixels_is_not_scaled_to_a_square(tmp_path):
    Image.new("RGB", (30000, 1)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match="30000x1 pixels cannot be scaled"):
        read_clip(tmp_path, size=512)
    assert read_clip(tmp_path).frames.shape == (1, 3, 1, 30000)


def test_more_frames_than_memory_are_refused(tmp_path, monkeypatch):
    for k in range(3):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{k}.png")
    memory = type("", (), {"available": 2.5 * 64 * 64 * 12})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    with pytest.raises(InputError, match="3 frames of 64x64 pixels need .* ask for fewer frames"):
        read_clip(tmp_path)
    assert len(read_clip(tmp_path, n_frames=2)) == 2


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "0.png")
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    for name in ("0.png", "a.mp4", "zero.mp4"):
        with pytest.raises(InputError, match="is a pipe or a device"):
            read_clip(tmp_path / name)
    with pytest.raises(InputError, match="holds no pictures"):
        read_clip(tmp_path)
    with pytest.raises(InputError, match="holds no clips"):
        read_manifest(tmp_path)
