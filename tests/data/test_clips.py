"""A clip is read as a player shows it, and written whole; a bad file gives one clear sentence."""

import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vala_research import InputError
from vala_research.data.clips import Clip, iter_frames, read_clip, writable, write_clip
from vala_research.data.decoding import decode

NTSC = Fraction(30000, 1001)
RATES_REFUSED = {
    "b.mp4": (1e-4, 1e6), "b.webm": (1e-4, 1001), "b.gif": (1e-3, 50.5), "b": (1e-4, 1001),
}  # fmt: skip
# 8-bit files: half a step of 1/255 for png; lossy codecs at crf 12..16 on smooth frames stay
# within a few steps on average, chroma at half resolution included. Another frame of the ramp
# below is 1/12 away, a wrong orientation or colour matrix more than 0.03.
EXACT, LOSSY = 0.5 / 255 + 1e-6, 0.015


def ramp(n=6, h=48, w=64, red=1.0):
    """Smooth frames, all different: brightness along x and y, blue grows with time."""
    y, x = torch.meshgrid(torch.linspace(0, red, h), torch.linspace(0, 1, w), indexing="ij")
    blue = torch.arange(n)[:, None, None].expand(n, h, w) / 12
    return torch.stack([y.expand(n, h, w), x.expand(n, h, w), blue], dim=1)


def video(path, frames, rate=25, pts=None, base=None, rotate=None, flip=False, sound=0, **options):
    """Write a file with PyAV alone, without the library under test."""
    pixels = (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": "8", "g": "6"})
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
        if rotate is not None:
            stream.set_display_rotation(rotate, hflip=flip)
        track = out.add_stream("aac", rate=44100, layout="mono") if sound else None
        for k, picture in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if pts:
                frame.pts, frame.time_base = pts[k], base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if sound:
            out.mux(tone(track, sound))
            out.mux(track.encode())
    return path


def tone(track, seconds, rate=44100):
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return track.encode(frame)


class Watched(np.ndarray):
    """An array that hashes by identity, for a WeakSet."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


def difference(a, b):
    return (a - b).abs().mean().item()


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "folder"])
@pytest.mark.parametrize("h, w", [(48, 64), (65, 49)])
def test_round_trip(tmp_path, name, h, w):
    frames = ramp(h=h, w=w)
    assert write_clip(tmp_path / name, frames, NTSC) == tmp_path / name
    clip = read_clip(tmp_path / name)
    pad = (h % 2, w % 2) if name == "a.mp4" else (0, 0)
    assert clip.frames.shape == (6, 3, h + pad[0], w + pad[1])
    inner = clip.frames[..., :h, :w]
    # gif: 256 colours a frame, some 0.02 on a two-dimensional ramp.
    limit = {"folder": EXACT, "a.gif": 0.03}.get(name, LOSSY)
    assert difference(inner, frames) < limit < difference(inner[1:], frames[:-1]) + 0.01
    assert difference(inner, frames.flip(1)) > 10 * LOSSY  # channels in the wrong order would fail
    if pad[0]:
        assert difference(clip.frames[..., h, :w], frames[..., -1, :]) < 2 * LOSSY
    # gif counts in 1/100 s: 6 frames last 20/100 s to one unit of rounding.
    assert clip.fps == pytest.approx(float(NTSC), rel=0.06 if name == "a.gif" else 1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]  # no temporary left


def test_rate_is_an_exact_fraction(tmp_path):
    write_clip(tmp_path / "a.mp4", ramp(), float(NTSC))
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.streams.video[0].average_rate == NTSC
        assert file.streams.video[0].codec_context.pix_fmt == "yuv420p"


@pytest.mark.parametrize("matrix", ["ITU601", "ITU709"])
def test_colour_matrix_is_honoured(tmp_path, matrix):
    """Saturated green differs by 0.07 between BT.601 and BT.709 read as each other."""
    green = torch.zeros(1, 3, 32, 32)
    green[:, 1] = 0.8
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = {"ITU601": 6, "ITU709": 1}[matrix]
        frame = av.VideoFrame.from_ndarray(
            (green[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8), format="rgb24"
        )
        out.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=matrix)))
        out.mux(stream.encode())
    assert difference(read_clip(tmp_path / "a.mp4").frames, green) < LOSSY


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_rotation_metadata_is_applied(tmp_path, turn, flip):
    """All eight orientations: degrees anticlockwise, then mirrored (PyAV's convention)."""
    frames = ramp(n=2)
    clip = read_clip(video(tmp_path / "a.mp4", frames, rotate=turn, flip=flip))
    shown = torch.rot90(frames, turn // 90, dims=(-2, -1))
    shown = shown.flip(-1) if flip else shown
    assert clip.frames.shape == shown.shape
    assert difference(clip.frames, shown) < LOSSY
    assert difference(clip.frames, shown.rot90(2, (-2, -1))) > 10 * LOSSY


def test_variable_rate_is_sampled_by_presentation_time(tmp_path):
    """Frame 1 stays for five ticks: at the average rate it is shown several times."""
    times = [0, 1, 6, 7, 8, 9]
    path = video(tmp_path / "a.mp4", ramp(), pts=times, base=Fraction(1, 10), rate=10)
    clip = read_clip(path)
    assert len(clip) == 6 and clip.fps == pytest.approx(6 / 1.0)
    at = [k / clip.fps * 10 for k in range(6)]  # in ticks: 0, 1.67, 3.33, 5, 6.67, 8.33
    shown = [max(i for i, t in enumerate(times) if t <= tick + 1e-6) for tick in at]
    assert shown == [0, 1, 1, 1, 2, 4]
    assert difference(clip.frames, ramp()[shown]) < LOSSY
    assert difference(clip.frames, ramp()) > LOSSY  # taking coded frames one by one fails


def test_selection(tmp_path):
    path = video(tmp_path / "a.mp4", ramp(12))
    whole = read_clip(path).frames
    clip = read_clip(path, n_frames=3, stride=4)
    assert torch.equal(clip.frames, whole[::4]) and clip.fps == 25 / 4
    assert len(read_clip(path, n_frames=99)) == 12
    assert torch.equal(torch.stack(list(iter_frames(path, stride=5))), whole[::5])
    assert read_clip(path, n_frames=1).frames.shape == (1, 3, 48, 64)


def test_size_covers_and_crops_the_centre(tmp_path):
    write_clip(tmp_path / "f", ramp(1, h=40, w=80), 8)
    square = read_clip(tmp_path / "f", size=20).frames
    assert square.shape == (1, 3, 20, 20)
    # Centre half of a left-to-right ramp of green: from 1/4 to 3/4, up to half an output pixel.
    assert square[0, 1, :, 0].mean().item() == pytest.approx(0.25, abs=0.03)
    assert square[0, 1, :, -1].mean().item() == pytest.approx(0.75, abs=0.03)
    assert square[0, 0].min() < 0.03 and square[0, 0].max() > 0.97  # nothing cut off vertically
    assert read_clip(tmp_path / "f", size=(30, 20)).frames.shape == (1, 3, 30, 20)
    whole = read_clip(tmp_path / "f").frames
    assert torch.equal(read_clip(tmp_path / "f", size=(40, 80)).frames, whole)


def test_long_clips_are_streamed(tmp_path, monkeypatch):
    """Frames are decoded only when needed, and held only while kept."""
    path = video(tmp_path / "a.mp4", ramp(1, h=16, w=16).expand(300, -1, -1, -1))
    alive, decoded = weakref.WeakSet(), []

    def watched(source):
        for picture in decode(source):
            # A view whose life can be followed; it dies with the last use of the picture.
            holder = picture.view(Watched)
            alive.add(holder)
            decoded.append(len(alive))
            yield holder

    monkeypatch.setattr("vala_research.data.clips.decode", watched)
    assert len(read_clip(path, n_frames=3)) == 3 and len(decoded) == 3
    decoded.clear()
    assert sum(1 for _ in iter_frames(path)) == 300
    assert len(decoded) == 300 and max(decoded) < 10  # 300 if a list were made of them


def test_pictures_sort_naturally_and_grey_and_alpha_become_rgb(tmp_path):
    for k in (1, 2, 10):
        Image.new("L", (8, 6), k).save(tmp_path / f"frame_{k}.png")
    clip = read_clip(tmp_path)
    assert (clip.frames[:, :, 0, 0] * 255).round().tolist() == [[k] * 3 for k in (1, 2, 10)]
    assert clip.fps == 24 and clip.frames.dtype == torch.float32
    Image.new("RGBA", (8, 6), (255, 0, 0, 128)).save(tmp_path / "half.png")
    for path in (tmp_path / "half.png", tmp_path):
        pixel = read_clip(path).frames[-1, :, 0, 0]  # 128/255 red over white, to one 8-bit step
        assert pixel.tolist() == pytest.approx([1, 127 / 255, 127 / 255], abs=1.01 / 255)


def test_grey_video_and_grey_frames(tmp_path):
    grey = ramp()[:, 1:2]
    for name in ("a.mp4", "a.gif", "folder"):
        write_clip(tmp_path / name, grey, 10)
        assert difference(read_clip(tmp_path / name).frames, grey.expand(-1, 3, -1, -1)) < LOSSY


def sound_of(path):
    """(codec, seconds, loudness) of the first audio track, or None."""
    with av.open(str(path)) as file:
        if not file.streams.audio:
            return None
        waves = [f.to_ndarray() for f in file.decode(audio=0)]
        track = file.streams.audio[0]
        name, rate = track.codec_context.name, track.codec_context.sample_rate
    wave = np.concatenate(waves, axis=1)[0]
    return name, len(wave) / rate, float(np.sqrt((wave.astype(float) ** 2).mean()))


def test_sound_is_carried_with_the_whole_clip_only(tmp_path):
    path = video(tmp_path / "in.mp4", ramp(5), rate=5, sound=1.0)
    clip = read_clip(path)
    for name, codec in (("out.mp4", "aac"), ("out.webm", "opus")):
        write_clip(tmp_path / name, 1 - clip.frames, clip.fps, audio_from=clip)
        heard = sound_of(tmp_path / name)
        assert heard[0] in (codec, "lib" + codec)
        # 1 s to a few codec blocks (1024 samples of 44.1 kHz); a 0.3 sine has rms 0.212.
        assert heard[1] == pytest.approx(1.0, abs=0.1) and heard[2] == pytest.approx(0.21, abs=0.02)
        assert len(read_clip(tmp_path / name)) == 5
    write_clip(tmp_path / "path.mp4", clip.frames, 5, audio_from=path)
    assert sound_of(tmp_path / "path.mp4")
    half = read_clip(path, stride=2)
    for k, (frames, fps) in enumerate([(half.frames, half.fps), (clip.frames[:4], 5)]):
        write_clip(tmp_path / f"part{k}.mp4", frames, fps, audio_from=clip)
        assert sound_of(tmp_path / f"part{k}.mp4") is None
    write_clip(tmp_path / "out.gif", clip.frames, 5, audio_from=clip)  # gifs are silent


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", ramp(), 25)
    before = (tmp_path / "a.mp4").read_bytes()

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vala_research.data.encoding.encoder_frame", fails)
    with pytest.raises(InputError, match="No space left"):
        write_clip(tmp_path / "a.mp4", ramp(), 25)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_truncated_files_say_how_many_frames_are_left(tmp_path):
    frames = torch.rand(40, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    path = cut(video(tmp_path / "a.mp4", frames, movflags="faststart"), 0.5)
    with pytest.raises(InputError, match=r"damaged: \d+ frames are readable") as error:
        read_clip(path)
    readable = int(str(error.value).split(": ")[1].split()[0])
    assert 10 < readable < 30
    assert len(read_clip(path, n_frames=readable)) == readable
    with pytest.raises(InputError, match="truncated"):
        read_clip(path, n_frames=readable + 1)
    for name in ("b.gif", "b.webm"):
        write_clip(tmp_path / name, frames[:20], 25)
        with pytest.raises(InputError, match="truncated or damaged"):
            read_clip(cut(tmp_path / name, 0.6))
        assert len(read_clip(tmp_path / name, n_frames=5)) == 5
    with pytest.raises(InputError, match="truncated, damaged or no video"):  # its index is lost
        read_clip(cut(video(tmp_path / "c.mp4", frames), 0.9))


def audio_only(path):
    with av.open(str(path), "w") as out:
        track = out.add_stream("aac", rate=44100, layout="mono")
        out.mux(tone(track, 0.5))
        out.mux(track.encode())


def test_unreadable_input(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 99)
    (tmp_path / "text.txt").write_text("not a video\n" * 99)
    audio_only(tmp_path / "sound.m4a")
    (tmp_path / "folder").mkdir()
    for name, problem in {
        "missing.mp4": "does not exist",
        "empty.mp4": "empty",
        "text.mp4": "no video",
        "text.txt": "holds no video",
        "sound.m4a": "holds no video",
        "folder": "holds no pictures",
    }.items():
        with pytest.raises(InputError, match=problem) as error:
            read_clip(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
    Image.new("RGB", (8, 6)).save(tmp_path / "folder" / "1.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "folder" / "2.png")
    with pytest.raises(InputError, match="frame 2 is 8x8, the first 8x6"):
        read_clip(tmp_path / "folder")
    (tmp_path / "folder" / "2.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="2.png is not a readable picture"):
        read_clip(tmp_path / "folder")


def test_bad_requests(tmp_path):
    path = write_clip(tmp_path / "a.mp4", ramp(), 25)
    for request in ({"n_frames": 0}, {"n_frames": -1}, {"stride": 0}, {"stride": -2}, {"size": 0}):
        with pytest.raises(InputError, match=next(iter(request))):
            read_clip(path, **request)
    for name, problem in {
        "a.xyz": "cannot write '.xyz'",
        "missing/a.mp4": "no folder",
        "a.mp4/b.mp4": "no folder",
        ".": "other files",
    }.items():
        with pytest.raises(InputError, match=problem):
            writable(tmp_path / name)
    nan = torch.full((1, 3, 8, 8), float("nan"))
    for frames in (torch.zeros(0, 3, 8, 8), torch.zeros(2, 4, 8, 8), nan):
        with pytest.raises(InputError):
            write_clip(tmp_path / "b.mp4", frames, 25)
    for name, rates in RATES_REFUSED.items():
        for fps in (*rates, 0, -5.0, float("nan"), float("inf")):
            for refused in (writable, lambda path, fps: write_clip(path, ramp(), fps)):
                with pytest.raises(InputError, match="fps is .* frames per second"):
                    refused(tmp_path / name, fps)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_folder_of_frames_is_replaced_but_never_other_files(tmp_path):
    write_clip(tmp_path / "f", ramp(6), 8)
    write_clip(tmp_path / "f", ramp(2), 8)
    clip = read_clip(tmp_path / "f")
    assert isinstance(clip, Clip) and len(clip) == 2 and clip.fps == 8
    (tmp_path / "f" / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match="other files"):
        write_clip(tmp_path / "f", ramp(2), 8)
    assert (tmp_path / "f" / "notes.txt").exists()
