"""Intact files are read to their end, and cut ones noticed; frames are counted by the decoder.

About 5 s of processor time.
"""

import warnings

import numpy as np
import pytest
import torch
from odd_clips import copied, decoded, encoded, ramps

from vala_research import InputError, read_clip
from vala_research.data.datasets import ClipGroups, GroupSampling, count_frames
from vala_research.data.manifests import Entry


def pixels(path, **options) -> np.ndarray:
    """The frames that the library reads, f h w 3 bytes."""
    return (read_clip(path, **options).frames * 255).round().byte().permute(0, 2, 3, 1).numpy()


def counted(path) -> int:
    return count_frames(Entry("a", path, ("a caption",)))


def check_as_decoded(path, n: int) -> None:
    """The library reads what ffmpeg decodes, and a data set counts the same frames."""
    assert np.array_equal(pixels(path), decoded(path))
    assert len(pixels(path)) == counted(path) == n
    assert read_clip(path).fps == 25


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
def test_samples_that_an_edit_list_hides_are_not_shown(tmp_path, codec):
    whole = encoded(tmp_path / "whole.mp4", codec)
    path = copied(whole, tmp_path / "a.mp4", seconds=0.32)
    check_as_decoded(path, 16)
    # Frames have numbers as they are shown: the group that starts at 0 is the first shown one.
    group = ClipGroups([Entry("a", path, ("a",))], GroupSampling(n_frames=16))[0]
    assert group["start"] == 0 and torch.equal(group["frames"], read_clip(path).frames)


@pytest.mark.parametrize(
    "name, codec, n",
    [
        ("a.ts", "libx264", 19), ("a.ts", "mpeg2video", 18), ("a.mkv", "libx264", 19),
        ("a.mkv", "mpeg2video", 18), ("a.webm", "libvpx-vp9", 18), ("a.webm", "libvpx", 18),
    ],
)  # fmt: skip
def test_a_stream_that_starts_between_key_frames(tmp_path, name, codec, n):
    path = copied(encoded(tmp_path / f"whole_{name}", codec), tmp_path / name, skip=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_as_decoded(path, n)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_recordings_that_are_joined_go_on_at_their_rate(tmp_path, codec):
    data = encoded(tmp_path / "one.ts", codec).read_bytes()
    path = tmp_path / "two.ts"
    path.write_bytes(2 * data)
    check_as_decoded(path, 48)
    path.write_bytes(data[: len(data) * 2 // 3] + data[len(data) // 940 * 188 :])  # within pictures
    check_as_decoded(path, len(decoded(path)))
    assert 24 < counted(path) < 48


def test_avi_of_h264_whose_times_are_guesses(tmp_path):
    check_as_decoded(encoded(tmp_path / "a.avi", "libx264"), 24)


def test_an_empty_chunk_repeats_the_picture_before(tmp_path):
    times = [k for k in range(26) if k != 1]
    path = encoded(tmp_path / "a.avi", "mpeg4", ramps(25), times=times)
    with pytest.warns(UserWarning, match="variable rate.* 1 of 25 pictures are lost"):
        frames = pixels(path)
    assert len(frames) == counted(path) == 25
    assert np.array_equal(frames, decoded(path)[[0, 0, *range(1, 24)]])


def test_a_variable_rate_says_how_many_pictures_it_loses(tmp_path):
    path = encoded(tmp_path / "a.webm", "libvpx", ramps(10), times=[*range(9), 84])
    with pytest.warns(UserWarning, match="variable rate.* 8 of 10 pictures are lost"):
        assert len(read_clip(path)) == 10


GIF_ENDS = {
    "no trailer": lambda data: data[:-1],
    "no end of the last picture": lambda data: data[:-2],
    "a byte after the trailer": lambda data: data + b"\0",
    "text after the trailer": lambda data: data + b"made by hand",
    "zero for a trailer": lambda data: data[:-1] + b"\0",
    "another byte for a trailer": lambda data: data[:-1] + b"\xff",
    "a comment": lambda data: data[:-1] + b"!\xfe\x05hello\0;",
    "a comment that is cut off": lambda data: data[:-1] + b"!\xfe\x05he",
}


@pytest.mark.parametrize("end", GIF_ENDS)
def test_gifs_with_odd_ends_are_intact(tmp_path, end):
    whole = encoded(tmp_path / "whole.gif", "gif", pix_fmt="rgb8")
    path = tmp_path / "a.gif"
    path.write_bytes(GIF_ENDS[end](whole.read_bytes()))
    assert np.array_equal(pixels(path), decoded(whole)) and counted(path) == 24


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_gifs_that_are_damaged_inside_are_noticed(tmp_path, share):
    path = encoded(tmp_path / "a.gif", "gif", pix_fmt="rgb8")
    data = bytearray(path.read_bytes())
    start = int(share * len(data))
    data[start : start + 40] = bytes(range(60, 100))
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"damaged: \d+ frames are readable") as error:
        read_clip(path)
    n = int(str(error.value).split(": ")[1].split()[0])
    assert len(read_clip(path, n_frames=n)) == n < 24
    with pytest.raises(InputError, match="damaged"):
        counted(path)


@pytest.mark.parametrize(
    "name, codec, container",
    [
        ("a.mkv", "libx264", {}), ("a.webm", "libvpx", {}), ("a.avi", "mpeg4", {}),
        ("a.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mp4", "libx264", {"movflags": "faststart"}),
    ],
)  # fmt: skip
def test_files_that_are_cut_are_noticed(tmp_path, name, codec, container):
    """Byte by byte over the length of a packet, so that a cut falls into each of its parts."""
    path = encoded(tmp_path / name, codec, container=container)
    data, n_noticed = path.read_bytes(), 0
    check_as_decoded(path, 24)
    for length in range(int(0.8 * len(data)), int(0.8 * len(data)) + 100, 9):
        path.write_bytes(data[:length])
        try:
            assert len(read_clip(path)) < 24
        except InputError as error:
            assert "truncated or damaged" in str(error)
            n_noticed += 1
    assert n_noticed >= 10  # of 12: a file may end between two packets as if it were whole


def test_matroska_cut_at_95_percent_is_noticed_and_a_lost_index_is_not(tmp_path):
    path = encoded(tmp_path / "a.mkv", "libx264")
    data = path.read_bytes()
    path.write_bytes(data[: int(0.95 * len(data))])
    with pytest.raises(InputError, match="truncated or damaged: 2[0-3] frames"):
        read_clip(path)
    path.write_bytes(data[:-10])  # the index lies at the end
    check_as_decoded(path, 24)


def test_odd_times_leave_the_frames_in_order(tmp_path):
    for far in (2**33, 2**40):
        path = encoded(tmp_path / "a.mkv", "ffv1", ramps(4), times=[k * far for k in range(4)])
        clip = read_clip(path)
        assert np.array_equal(pixels(path), decoded(path)) and 0 < clip.fps <= 100_000
