"""A written clip replaces nothing but an output, goes to any file name, and keeps the sound.

Costs about 6 s.
"""

import os
import shutil
import warnings

import av
import pytest
import torch
from PIL import Image
from test_clips import EXACT, LOSSY, difference, ramp, sound_of, video

from vala_research import InputError, read_clip, write_clip
from vala_research.data.clips import Clip, writable
from vala_research.files import CONTENTS

NAMES = ["http:a", "concat:a|b", "pipe:1", "a%04d", "-o", "\udcff", 242 * "x", 251 * "x"]


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".GIF", ""])
def test_any_file_name_is_a_file_name(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    for stem in NAMES if suffix in (".mp4", "") else NAMES[:1] + NAMES[-1:]:
        name = (stem + suffix)[-255:]
        writable(name)
        write_clip(name, ramp(2), 10)
        (written,) = tmp_path.iterdir()
        assert written.name == name
        written.rename(tmp_path / f"plain{suffix}")  # the writer is under test here
        clip = read_clip(tmp_path / f"plain{suffix}")
        limit = {".mp4": LOSSY, ".webm": LOSSY, "": EXACT}.get(suffix, 0.03)
        assert difference(clip.frames, ramp(2)) < limit and clip.fps == 10
        (shutil.rmtree if suffix == "" else os.remove)(tmp_path / f"plain{suffix}")
    with pytest.raises(InputError, match="File name too long"):
        writable(256 * "x" + suffix)


def test_folders_of_pictures_are_never_replaced(tmp_path):
    user, sub = tmp_path / "user", tmp_path / "sub"
    user.mkdir(), (sub / "frame_0000.png").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(user / "frame_0000.png")
    write_clip(tmp_path / "ours", ramp(2, 8, 8), 8)
    (tmp_path / "ours" / "frame_0002.png").write_bytes((user / "frame_0000.png").read_bytes())
    write_clip(tmp_path / "old", ramp(2, 8, 8), 8)
    (tmp_path / "old" / CONTENTS).unlink()
    before = sorted(tmp_path.rglob("*"))
    for name in ("user", "sub", "ours", "old"):
        for write in (writable, lambda path: write_clip(path, ramp(1, 8, 8), 8)):
            with pytest.raises(InputError, match="other files"):
                write(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("fps", [1 / 60, 0.5, 23.976, 33, 40, 49, 50])
def test_a_gif_lasts_as_long_in_a_browser(tmp_path, fps):
    n = 20
    write_clip(tmp_path / "a.gif", torch.rand(n, 3, 16, 16), fps)
    with Image.open(tmp_path / "a.gif") as image:
        shown = []
        for k in range(image.n_frames):
            image.seek(k)
            shown.append(image.info["duration"])
    # Browsers show a picture of 10 ms or less for 100 ms. Times are whole units of 10 ms.
    seconds = sum(ms if ms > 10 else 100 for ms in shown) / 1000
    assert seconds == pytest.approx(n / fps, abs=0.011)
    assert len(read_clip(tmp_path / "a.gif")) == n


@pytest.mark.parametrize(
    "suffix, fps", [(".mp4", 2000), (".mp4", 1 / 60), ("", 1000), (".webm", 1000)]
)
def test_rates_at_the_ends_are_kept(tmp_path, suffix, fps):
    frames = ramp(6)
    clip = read_clip(write_clip(tmp_path / f"a{suffix}", frames, fps))
    assert clip.fps == pytest.approx(fps, rel=1e-3) and difference(clip.frames, frames) < LOSSY


@pytest.fixture
def source(tmp_path):
    """2 s of 10 frames per second, with sound."""
    return video(tmp_path / "in.mp4", ramp(20, 16, 16), rate=10, sound=2.0)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_the_first_frames_keep_their_sound(tmp_path, source, suffix):
    for n in (1, 12):
        clip = read_clip(source, n_frames=n)
        for audio_from in (clip, source):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                path = write_clip(tmp_path / f"a{suffix}", clip.frames, clip.fps, audio_from)
            # One block of the codec: 1024 samples of 44.1 kHz, or 20 ms.
            assert sound_of(path)[1] == pytest.approx(n / 10, abs=0.05)
            assert sound_of(path)[2] > 0.1


def test_one_line_says_why_the_sound_is_dropped(tmp_path, source):
    whole, half = read_clip(source), read_clip(source, stride=2)
    gone = Clip(whole.frames, 10, tmp_path / "gone.mp4")
    for name, frames, fps, audio_from, reason in (
        ("a.mp4", half.frames, half.fps, half, "10 frames per second, not 5"),
        ("a.mp4", whole.frames[3:9], 10, whole, "these are 6 of the clip's 20 frames"),
        ("a.mp4", torch.cat([whole.frames] * 2), 10, source, "has 20 frames, not 40"),
        ("a.gif", whole.frames, 10, whole, "gif holds none"),
        ("a", whole.frames, 10, whole, "a folder of frames holds none"),
        ("a.webm", whole.frames, 10, gone, "gone.mp4 does not exist"),
    ):
        with pytest.warns(UserWarning, match="sound is dropped: .*" + reason) as warned:
            path = write_clip(tmp_path / name, frames, fps, audio_from)
        assert len(warned) == 1
        assert not path.suffix or sound_of(path) is None
    with pytest.raises(InputError, match="does not exist"):
        write_clip(tmp_path / "a.mp4", whole.frames, 10, gone.source)
    silent = video(tmp_path / "silent.mp4", ramp(4, 16, 16), rate=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_clip(tmp_path / "a.mp4", ramp(2, 16, 16), 5, silent)


def test_sound_that_cannot_be_read_does_not_cost_the_pictures(tmp_path, source, monkeypatch):
    def damaged(*_):
        yield from ()
        raise av.error.InvalidDataError(1094995529, "Invalid data found")

    monkeypatch.setattr("vala_research.data.sound._copied", damaged)
    with pytest.warns(UserWarning, match="sound is dropped: .*Invalid data"):
        path = write_clip(tmp_path / "a.mp4", ramp(20, 16, 16), 10, source)
    assert sound_of(path) is None and len(read_clip(path)) == 20
    assert not list(tmp_path.glob(".*"))
