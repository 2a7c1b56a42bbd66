"""Groups hold the frames and captions of their clips; unusable clips are named and left out."""

import gc
import json
import shutil
import warnings

import psutil
import pytest
import torch
from tiny_datasets import CAPTIONS, frames_folder, msrvtt, real_videos, sprite_clip, sprite_frames
from torch.utils.data import DataLoader, Subset

from vala_research import InputError, read_clip
from vala_research.data.datasets import ClipGroups, GroupSampling
from vala_research.data.manifests import Entry, read_manifest


def groups(folder, *, layout=None, split=None, size=None, n_samples=None, strict=True, **sampling):
    entries = read_manifest(folder, layout, split)
    return ClipGroups(entries, GroupSampling(**sampling), size, n_samples, strict)


def same(a: dict, b: dict) -> bool:
    return torch.equal(a["frames"], b["frames"]) and all(
        a[k] == b[k] for k in ("caption", "name", "start")
    )


@pytest.mark.parametrize(
    "n_frames, stride, span, n_samples", [(3, 1, 3, 40), (2, 2, 3, 40), (4, 2, 7, 10)]
)
def test_a_group_is_consecutive_frames_of_its_clip(tmp_path, n_frames, stride, span, n_samples):
    msrvtt(tmp_path)
    data = groups(tmp_path, n_frames=n_frames, stride=stride, n_samples=n_samples)
    clips = {p.stem: read_clip(p).frames for p in (tmp_path / "TrainValVideo").iterdir()}
    starts = set()
    for sample in data:
        clip = clips[sample["name"]]
        start = sample["start"]
        expected = clip[start : start + span : stride]
        assert sample["frames"].shape == (n_frames, 3, 32, 32)
        assert torch.equal(sample["frames"], expected)
        starts.add(start)
    # 40 draws miss one of 6 starts with probability 6 (5/6)^40 = 0.4 %, 10 draws one of 2 with
    # 2 (1/2)^10 = 0.2 %; the seed is fixed.
    assert starts == set(range(8 - span + 1))


def test_all_captions_are_drawn_or_one_number_and_the_hook_rewrites_them(tmp_path):
    frames_folder(tmp_path / "a", n_frames=3)
    (tmp_path / "captions.json").write_text(json.dumps({"a": CAPTIONS}))
    # 150 draws miss one of 20 captions with probability 20 (19/20)^150 = 0.9 %; the seed is fixed.
    assert {s["caption"] for s in groups(tmp_path, n_frames=2, n_samples=150)} == set(CAPTIONS)
    assert {s["caption"] for s in groups(tmp_path, caption=3, n_samples=5)} == {CAPTIONS[3]}
    (loud,) = groups(tmp_path, caption=3, rewrite=str.upper)
    assert loud["caption"] == CAPTIONS[3].upper()
    with pytest.raises(InputError, match="`rewrite` returned ' '"):
        groups(tmp_path, rewrite=lambda caption: " ")[0]
    with pytest.raises(InputError, match="has 20 captions, none of number 20"):
        groups(tmp_path, caption=20)


def test_draws_are_a_function_of_seed_and_number_alone(tmp_path):
    msrvtt(tmp_path)
    first, again = (groups(tmp_path, n_samples=18, seed=5) for _ in range(2))
    expected = [first[i] for i in range(18)]
    # In any order, in another process, and from the middle on.
    assert all(same(again[i], expected[i]) for i in reversed(range(18)))
    rest = DataLoader(Subset(again, range(10, 18)), batch_size=None, num_workers=1)
    assert all(same(a, b) for a, b in zip(rest, expected[10:], strict=True))
    other = groups(tmp_path, n_samples=18, seed=6)
    assert not all(same(other[i], expected[i]) for i in range(18))
    # Passes: each shows every clip once, not all in one order.
    names = [[s["name"] for s in expected[i : i + 3]] for i in range(0, 18, 3)]
    assert all(len(set(n)) == 3 for n in names) and len(set(map(tuple, names))) > 1


def test_reading_leaves_no_decoder_behind(tmp_path):
    """A loader's worker is forked: a decoder freed there would wait for threads that it lacks."""
    clip = sprite_clip(tmp_path / "a.mp4")
    process = psutil.Process()
    gc.disable()  # first, so that no older decoder is freed between the two counts
    try:
        before = process.num_threads()
        read_clip(clip)
        assert process.num_threads() == before
    finally:
        gc.enable()


def test_batches_collate_and_frames_are_resized(tmp_path):
    sprite_clip(tmp_path / "a.mp4")
    frames_folder(tmp_path / "b")
    (batch,) = DataLoader(groups(tmp_path, size=(16, 24)), batch_size=2)
    assert batch["frames"].shape == (2, 3, 3, 16, 24)
    assert 0 <= batch["frames"].min() and batch["frames"].max() <= 1
    assert sorted(batch["name"]) == ["a", "b"] and batch["start"].dtype == torch.int64


def test_frames_of_a_real_video(tmp_path):
    for path in real_videos():
        shutil.copy(path, tmp_path)
    data = groups(tmp_path, n_frames=3, stride=2, size=64, strict=True)
    assert data.n_clips == len(list(tmp_path.glob("*.mp4")))
    entry = Entry("carphone", tmp_path / "carphone_pristine.mp4", ("a man in a car",))
    (sample,) = ClipGroups([entry], GroupSampling(stride=2))
    start = sample["start"]
    clip = read_clip(entry.path, start + 5).frames
    assert torch.equal(sample["frames"], clip[start : start + 5 : 2])


# What is missing or damaged


def spoil(path, share=0.5):
    """Cut a file off."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def blank_payload(path):
    """Zero the middle of a video's payload: packets and their times stay, pictures do not."""
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") if data.index(b"moov") > start else len(data)
    data[start:end] = bytes(end - start)
    path.write_bytes(bytes(data))


def test_what_cannot_be_used_is_named_counted_and_left_out(tmp_path):
    msrvtt(tmp_path)
    videos = tmp_path / "TrainValVideo"
    (videos / "video0.mp4").unlink()
    spoil(videos / "video1.mp4")
    with pytest.warns(UserWarning, match="1 of 3 clips used; 2 skipped"):
        data = groups(tmp_path, strict=False, n_samples=4)
    assert set(data.skipped) == {"video0", "video1"} and data.n_clips == 1
    assert "video0 is missing" in data.summary() and "video1.mp4" in data.summary()
    assert {s["name"] for s in data} == {"video2"}
    with pytest.raises(InputError, match="video0 is missing"):
        groups(tmp_path)
    shutil.rmtree(videos)
    with pytest.raises(InputError, match="No clip can be used. 0 of 3 clips used; 3 skipped"):
        groups(tmp_path, strict=False)


@pytest.mark.parametrize("n, options", [(2, {}), (6, {"stride": 3}), (5, {"n_frames": 6})])
def test_a_clip_shorter_than_a_group_is_left_out(tmp_path, n, options):
    sprite_clip(tmp_path / "short.mp4", n_frames=n)
    sprite_clip(tmp_path / "long.mp4")
    with pytest.warns(UserWarning, match=f"short has {n} frames, a group spans"):
        data = groups(tmp_path, strict=False, **options)
    assert list(data.skipped) == ["short"] and data[0]["name"] == "long"
    # One frame more would do.
    sprite_clip(tmp_path / "short.mp4", n_frames=n + 1)
    assert groups(tmp_path, **options).n_clips == 2


def test_captions_of_absent_clips_and_clips_without_captions(tmp_path):
    sprite_clip(tmp_path / "a.mp4")
    sprite_clip(tmp_path / "b.mp4", 1)
    (tmp_path / "captions.csv").write_text("file,caption\na.mp4,one\ngone.mp4,two\n")
    with pytest.warns(UserWarning, match="1 of 3 clips used"):
        data = groups(tmp_path, strict=False)
    assert "gone is missing: a caption file names it" in data.summary()
    assert "b has no caption" in data.summary()


def test_damage_found_while_reading_is_told_even_from_another_process(tmp_path):
    for k, name in enumerate("abc"):
        sprite_clip(tmp_path / f"{name}.mp4", k)
    blank_payload(tmp_path / "b.mp4")
    (tmp_path / "captions.json").write_text('{"a": "one", "b": "two", "c": "three"}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is known yet
        data = groups(tmp_path, strict=False, n_samples=6)
    loader = DataLoader(data, batch_size=None, num_workers=1)
    names = [sample["name"] for sample in loader]
    assert len(names) == 6 and set(names) == {"a", "c"}
    assert list(data.skipped) == ["b"] and data.n_clips == 2
    assert data.summary().startswith("2 of 3 clips used; 1 skipped: b")
    with pytest.warns(UserWarning, match="b is skipped"):
        fresh = [s["name"] for s in groups(tmp_path, strict=False, n_samples=6)]
    assert fresh == names  # what stands in for it depends on the seed alone
    with pytest.raises(InputError, match=r"b\.mp4 is truncated or damaged"):
        list(groups(tmp_path, n_samples=6))


def test_a_folder_whose_pictures_are_none_is_left_out(tmp_path):
    frames_folder(tmp_path / "first")
    frames_folder(tmp_path / "later")
    frames_folder(tmp_path / "good")
    (tmp_path / "first/00000.jpg").write_bytes(b"no picture")
    (tmp_path / "later/00000.jpg").rename(tmp_path / "later/00009.jpg")
    (tmp_path / "later/00004.jpg").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="first"):
        data = groups(tmp_path, strict=False, n_samples=9, n_frames=7)
        assert {s["name"] for s in data} == {"good"}
    assert set(data.skipped) == {"first", "later"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_frames": 1}, "n_frames is 1: give 2 or more"),
        ({"stride": 0}, "stride is 0"),
        ({"caption": -1}, "caption is -1"),
    ],
)
def test_sampling_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        GroupSampling(**options)
    with pytest.raises(InputError, match="size is 0"):
        ClipGroups([Entry("a", None, ())], size=0)


def test_the_fixtures_differ():
    """The comparisons above can tell clips and frames apart."""
    a, b = sprite_frames(0), sprite_frames(1)
    assert (a - b).abs().max() > 0.1
    assert all((a[i] - a[i + 1]).abs().max() > 0.1 for i in range(7))
