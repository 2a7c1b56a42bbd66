"""Shards stream what was put into them; damage is named, and a pickle is refused."""

import json
import pickle
import shutil
import tarfile
import warnings
from io import BytesIO

import pytest
import torch
from PIL import Image
from tiny_datasets import CAPTIONS, davis, loveu, msrvtt, real_videos, sprite_clip, sprite_frames
from torch.utils.data import DataLoader

from vala_research import InputError, read_clip
from vala_research.adapter.batches import numbered_batches
from vala_research.data.datasets import GroupSampling
from vala_research.data.manifests import read_manifest
from vala_research.data.shards import ShardSettings, convert
from vala_research.data.streaming import ShardGroups, open_groups
from vala_research.temporary import TEMPORARY, temporary_folder


@pytest.fixture
def data(tmp_path):
    """Three MSR-VTT videos of 8 frames."""
    return msrvtt(tmp_path / "data")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """`converted(folder, **settings)` copies the shards of these videos there; it converts once."""
    home, folders = tmp_path_factory.mktemp("converted"), {}
    msrvtt(home / "data")

    def copied(folder, **settings):
        key = ShardSettings(**settings)
        if key not in folders:
            folders[key] = home / f"shards{len(folders)}"
            convert(home / "data", folders[key], key)
        shutil.copytree(folders[key], folder)

    return copied


def streamed(folder, *, n_passes=1, strict=True, size=None, **sampling) -> list[dict]:
    return list(ShardGroups(folder, GroupSampling(**sampling), size, n_passes, strict=strict))


def files(folder) -> dict[str, bytes]:
    """The contents of a folder: {name: bytes}."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def rewritten(path, change) -> None:
    """Write a tar file again with changed members, {name: bytes}."""
    with tarfile.open(path) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    with tarfile.open(path, "w") as tar:
        for name, content in change(members).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))


@pytest.mark.parametrize("layout", [msrvtt, loveu, davis])
def test_every_group_is_frames_and_captions_of_its_clip(tmp_path, layout):
    layout(tmp_path / "data")
    convert(tmp_path / "data", tmp_path / "shards", ShardSettings(piece=5, clips_per_shard=2))
    samples = streamed(tmp_path / "shards", n_frames=2, stride=2, n_passes=10)
    by_name = {e.name: e for e in read_manifest(tmp_path / "data")}
    clips = {name: read_clip(entry.path).frames for name, entry in by_name.items()}
    assert {s["name"] for s in samples} == set(by_name)
    starts = set()
    for sample in samples:
        entry, start = by_name[sample["name"]], sample["start"]
        # png is exact: bit for bit what the file decodes to
        assert torch.equal(sample["frames"], clips[entry.name][start : start + 3 : 2])
        assert sample["caption"] in entry.captions
        starts.add(start)
    assert starts == {0, 1, 4, 5}  # pieces [0, 4) and [4, 8): a group of span 3 lies within one


def test_a_pass_has_every_piece_once_and_all_captions_come_up(tmp_path, data):
    said = convert(data, tmp_path / "shards", ShardSettings(piece=4, clips_per_shard=1))
    assert said == "3 of 3 clips used, none skipped."
    samples = streamed(tmp_path / "shards", n_passes=25)
    assert len(samples) == 25 * 6
    for i in range(0, len(samples), 6):
        pieces = {(s["name"], s["start"] // 4) for s in samples[i : i + 6]}
        assert len(pieces) == 6
    orders = [tuple(s["name"] for s in samples[i : i + 6]) for i in range(0, len(samples), 6)]
    assert len(set(orders)) > 1
    assert {s["caption"] for s in samples} == set(CAPTIONS)
    loud = streamed(tmp_path / "shards", caption=3, rewrite=str.upper)
    assert {s["caption"] for s in loud} == {CAPTIONS[3].upper()}


def test_one_split_is_converted_and_a_picture_size_is_kept(tmp_path, data):
    convert(data, tmp_path / "shards", ShardSettings(size=(16, 24)), split="validate")
    (sample,) = streamed(tmp_path / "shards")
    assert sample["name"] == "video2" and sample["frames"].shape == (3, 3, 16, 24)
    (smaller,) = streamed(tmp_path / "shards", size=8)
    assert smaller["frames"].shape == (3, 3, 8, 8)


def test_jpg_is_near_and_pieces_can_be_fewer(tmp_path, data):
    settings = ShardSettings(picture="jpg", piece=3, pieces_per_clip=1)
    convert(data, tmp_path / "shards", settings)
    samples = streamed(tmp_path / "shards", n_frames=2)
    assert len(samples) == 3
    for sample in samples:
        clip = read_clip(data / "TrainValVideo" / f"{sample['name']}.mp4").frames
        start = sample["start"]
        assert 2 <= start <= 4  # the middle piece of [0, 2), [2, 5), [5, 8)
        error = sample["frames"] - clip[start : start + 2]
        # quality 95 without subsampling: 30 dB is far below what it gives on sprites, about 40
        assert 0 < error.square().mean() < 1e-3


def test_shards_hold_pictures_and_json_and_are_the_same_every_time(tmp_path, data):
    for name in ("a", "b"):
        convert(data, tmp_path / name, ShardSettings(clips_per_shard=2))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with tarfile.open(tmp_path / "a/shard-00000.tar") as tar:
        names = tar.getnames()
    assert {name.rpartition(".")[2] for name in names} == {"png", "json"}


def test_draws_do_not_depend_on_workers_and_all_of_a_pass_is_given(tmp_path, converted):
    converted(tmp_path / "shards", piece=4, clips_per_shard=1)
    alone = streamed(tmp_path / "shards")
    groups = ShardGroups(tmp_path / "shards", strict=True)
    together = list(DataLoader(groups, batch_size=None, num_workers=2))
    assert len(together) == len(alone) == 6

    def key(s):
        return s["name"], s["start"], s["caption"]

    assert list(map(key, alone)) == list(map(key, together))
    assert list(map(key, streamed(tmp_path / "shards"))) == list(map(key, alone))
    assert list(map(key, streamed(tmp_path / "shards", seed=1))) != list(map(key, alone))


def test_batches_and_their_rest_do_not_depend_on_workers(tmp_path, converted):
    converted(tmp_path / "shards", piece=4, clips_per_shard=1)

    def batches(n_workers, start):
        groups = ShardGroups(tmp_path / "shards", n_passes=None, strict=True)
        given = numbered_batches(groups, range(start, 9), 4, n_workers)
        return [[(s["name"], s["start"], s["caption"]) for s in next(given)[1]] for _ in range(4)]

    alone = batches(0, 0)
    assert batches(2, 0) == batches(3, 0) == alone
    assert batches(2, 2)[:2] == alone[2:]


def test_batches_do_not_depend_on_workers_where_a_picture_is_damaged(tmp_path, converted):
    converted(tmp_path / "shards", piece=4, clips_per_shard=1)
    for number, piece in ((0, "000000-0001"), (2, "000002-0000")):
        damaged = {f"{piece}.{k:04d}.png": b"x" for k in range(4)}
        rewritten(tmp_path / f"shards/shard-{number:05d}.tar", lambda m, d=damaged: m | d)

    def batches(n_workers, start, size):
        groups = ShardGroups(tmp_path / "shards", n_passes=None)
        given = numbered_batches(groups, range(start, 9), size, n_workers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [[(s["name"], s["start"], s["caption"]) for s in next(given)[1]] for _ in "1234"]

    for size in (1, 4):
        alone = batches(0, 0, size)
        assert batches(2, 0, size) == alone
        assert batches(3, 2, size)[:2] == batches(0, 2, size)[:2] == alone[2:]


def test_open_groups_takes_a_data_set_or_its_shards(tmp_path, data):
    convert(data, tmp_path / "shards", split="train")
    assert len(open_groups(data, split="train", n_samples=5)) == 5
    stream = iter(open_groups(tmp_path / "shards", n_samples=5))
    assert len([next(stream) for _ in range(9)]) == 9  # without end
    assert len(list(open_groups(tmp_path / "shards"))) == 2
    with pytest.raises(InputError, match="holds shards: choose layout and split"):
        open_groups(tmp_path / "shards", split="train")


def test_a_real_video_goes_through_shards(tmp_path):
    (tmp_path / "data").mkdir()
    path = shutil.copy(real_videos()[-1], tmp_path / "data")  # 120 small frames
    convert(tmp_path / "data", tmp_path / "shards", ShardSettings(size=32))
    samples = streamed(tmp_path / "shards", stride=4)
    clip = read_clip(path, size=32).frames
    assert len(samples) == -(-len(clip) // 32)
    for sample in samples:
        start = sample["start"]
        expected = clip[start : start + 9 : 4]
        # pictures have 8 bits: resized values are rounded to the nearest
        assert (sample["frames"] - expected).abs().max() <= 0.5 / 255 + 1e-6


# Going on, and what must not go on


def test_what_is_there_is_not_made_again(tmp_path, data):
    settings = ShardSettings(clips_per_shard=1)
    convert(data, tmp_path / "shards", settings)
    whole, shards = files(tmp_path / "shards"), tmp_path / "shards"
    stamp = (shards / "shard-00000.tar").stat().st_mtime_ns
    (shards / "shard-00001.tar").unlink()
    with temporary_folder(shards) as mine:
        host, process, start = TEMPORARY.fullmatch(mine.name).groups()
    left = shards / f".vala-{host}-{process}-{int(start) - 1000}-1234abcd"  # of a killed call
    (left / "new").mkdir(parents=True)
    (left / "new/shard-00001.tar").write_bytes(b"unfinished")
    assert convert(data, shards, settings) == "3 of 3 clips used, none skipped."
    assert files(shards) == whole
    assert (shards / "shard-00000.tar").stat().st_mtime_ns == stamp


def test_another_conversion_or_other_files_are_left_alone(tmp_path, data):
    convert(data, tmp_path / "shards")
    before = files(tmp_path / "shards")
    with pytest.raises(InputError, match="shards of other clips or settings"):
        convert(data, tmp_path / "shards", ShardSettings(size=16))
    with pytest.raises(InputError, match="shards of other clips or settings"):
        convert(data, tmp_path / "shards", split="train")
    assert files(tmp_path / "shards") == before
    with pytest.raises(InputError, match="holds other files"):
        convert(data, data)
    sprite_clip(tmp_path / "others/shard-00001.tar/a.mp4")
    with pytest.raises(InputError, match="holds other files"):
        convert(data, tmp_path / "others")
    with pytest.raises(InputError, match="cannot be made"):
        convert(data, tmp_path / "none/shards")
    before = files(shards_of_a_user(tmp_path / "theirs"))
    with pytest.raises(InputError, match="holds other files"):
        convert(data, tmp_path / "theirs")
    assert files(tmp_path / "theirs") == before
    (tmp_path / "shards/shards.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        convert(data, tmp_path / "shards")


def test_a_conversion_of_changed_clips_does_not_go_on(tmp_path, data):
    settings = ShardSettings(clips_per_shard=1)
    convert(data, tmp_path / "shards", settings)
    (tmp_path / "shards/shard-00002.tar").unlink()
    sprite_clip(data / "TrainValVideo/video0.mp4", 9)
    before = files(tmp_path / "shards")
    with pytest.raises(InputError, match="shards of other clips or settings"):
        convert(data, tmp_path / "shards", settings)
    assert files(tmp_path / "shards") == before


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m | {ABOUT: m[ABOUT].replace(b"caption 7 of", b"caption 7 if")},
        lambda m: m | {THIRD: picture_of_size(m[THIRD])},
        lambda m: dict(reversed(m.items())),
    ],
    ids=["caption", "picture", "order"],
)
def test_a_change_in_the_middle_of_a_shard_makes_another_data_set(tmp_path, converted, change):
    """Neither the size of the file nor its ends change."""
    converted(tmp_path / "shards", size=128)
    shard, groups = tmp_path / "shards/shard-00000.tar", ShardGroups(tmp_path / "shards")
    rewritten(shard, lambda m: m)
    before, size = groups.identity(), shard.stat().st_size
    assert json.loads(json.dumps(before)) == before == groups.identity()
    rewritten(shard, change)
    assert shard.stat().st_size == size and groups.identity() != before
    assert ShardGroups(tmp_path / "shards", buffer=2).identity() != groups.identity()


def picture_of_size(content: bytes) -> bytes:
    """A PNG of another colour and as many bytes: what follows its end is not read."""
    out = BytesIO()
    Image.new("RGB", (128, 128), "red").save(out, "PNG")
    return out.getvalue() + bytes(len(content) - len(out.getvalue()))


def shards_of_a_user(folder):
    """Another program's shards have our names."""
    folder.mkdir()
    (folder / "shard-00000.tar").write_bytes(b"precious")
    return folder


def test_a_conversion_without_any_clip_removes_its_own_shards_only(tmp_path, data):
    with pytest.raises(InputError, match="No clip can be read"):
        for clip in (data / "TrainValVideo").iterdir():
            clip.write_bytes(b"no video")
        (tmp_path / "out").mkdir()
        convert(data, tmp_path / "out")
    assert not files(tmp_path / "out")
    convert(msrvtt(tmp_path / "intact"), tmp_path / "out")
    shutil.copy(tmp_path / "out/shard-00000.tar", tmp_path / "out/shard-mine.tar")
    state = json.loads((tmp_path / "out/shards.json").read_text())
    state["shards"][0]["skipped"] = {f"video{i}": "damaged" for i in range(3)}
    (tmp_path / "out/shards.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="No clip can be read"):
        convert(tmp_path / "intact", tmp_path / "out")
    assert list(files(tmp_path / "out")) == ["shard-mine.tar"]


def test_a_conversion_cut_off_is_not_read(tmp_path, converted):
    converted(tmp_path / "shards", clips_per_shard=1)
    state = json.loads((tmp_path / "shards/shards.json").read_text())
    state["shards"].pop()
    (tmp_path / "shards/shards.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="2 of 3 shards: its conversion was cut off"):
        ShardGroups(tmp_path / "shards")
    with pytest.raises(InputError, match="shards.json is damaged"):
        ShardGroups(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"picture": "gif"}, "Unknown picture 'gif'"),
        ({"piece": 1}, "piece is 1: give 2 or more"),
        ({"pieces_per_clip": 0}, "pieces_per_clip is 0"),
        ({"clips_per_shard": 0}, "clips_per_shard is 0"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        ShardSettings(**options)


# What is missing or damaged


def test_clips_missing_or_damaged_are_named_or_strictly_refused(tmp_path, data):
    (data / "TrainValVideo/video0.mp4").unlink()
    clip = data / "TrainValVideo/video1.mp4"
    clip.write_bytes(clip.read_bytes()[:600])
    said = convert(data, tmp_path / "shards")
    assert said.startswith("1 of 3 clips used; 2 skipped: video0 is missing")
    assert "video1.mp4" in said
    groups = ShardGroups(tmp_path / "shards", strict=True)
    assert groups.summary() == said and {s["name"] for s in groups} == {"video2"}
    with pytest.raises(InputError, match="begun without strictness: 1 of 3 clips used"):
        convert(data, tmp_path / "shards", strict=True)
    with pytest.raises(InputError, match="video0 is missing"):
        convert(data, tmp_path / "strict", strict=True)
    (data / "TrainValVideo/video2.mp4").unlink()
    with pytest.raises(InputError, match="No clip can be read. 0 of 3 clips used"):
        convert(data, tmp_path / "nothing")
    assert not (tmp_path / "strict").exists() and not (tmp_path / "nothing").exists()


def test_a_piece_shorter_than_a_group_is_named(tmp_path, converted):
    converted(tmp_path / "shards", piece=2)
    groups = ShardGroups(tmp_path / "shards", strict=False)
    with pytest.warns(UserWarning, match="has 2 frames, a group spans 3"):
        with pytest.raises(InputError, match="no group can be drawn"):
            next(iter(groups))
    with pytest.raises(InputError, match="has 2 frames, a group spans 3"):
        streamed(tmp_path / "shards")


def small_picture() -> bytes:
    out = BytesIO()
    Image.new("RGB", (5, 5)).save(out, "PNG")
    return out.getvalue()


DAMAGES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:3000]),
    "no tar file": lambda path: path.write_bytes(b"x" * 4000),
    "missing": lambda path: path.unlink(),
    "a piece too few": lambda path: rewritten(path, lambda members: {}),
    "a picture that is none": lambda path: rewritten(path, lambda m: m | {THIRD: b"x"}),
    "a picture of another size": lambda path: rewritten(
        path, lambda m: m | {THIRD: small_picture()}
    ),
    "JSON that is none": lambda path: rewritten(path, lambda m: m | {ABOUT: b"x"}),
    "JSON of something else": lambda path: rewritten(path, lambda m: m | {ABOUT: b"[1]"}),
}  # fmt: skip
THIRD, ABOUT = "000001-0000.0003.png", "000001-0000.json"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shards_are_named(tmp_path, converted, damage):
    converted(tmp_path / "shards", piece=8, clips_per_shard=1)
    DAMAGES[damage](tmp_path / "shards/shard-00001.tar")
    # All eight frames, so that a damaged picture is among those drawn.
    groups = ShardGroups(tmp_path / "shards", GroupSampling(n_frames=8))
    with pytest.warns(UserWarning, match="skipped"):
        names = {s["name"] for s in groups}
    assert names == {"video0", "video2"}
    assert "1 pieces or shards skipped" in groups.summary() and "shard-00001" in groups.summary()
    with pytest.raises(InputError, match="shard-00001"):
        streamed(tmp_path / "shards", n_frames=8)


class Bomb:
    """Unpickling it would raise."""

    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was opened')",)


@pytest.mark.parametrize("name", ["frames.pyd", "pkl", "pth", "0000.npy"])
@pytest.mark.parametrize("strict", [False, True])
def test_pickles_are_refused_unread(tmp_path, converted, name, strict):
    converted(tmp_path / "shards")
    content = pickle.dumps(Bomb())
    rewritten(tmp_path / "shards/shard-00000.tar", lambda m: m | {f"000002-0000.{name}": content})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="pictures and JSON only"):
            streamed(tmp_path / "shards", strict=strict)


def test_the_fixtures_differ_between_pieces():
    """The comparisons above would notice a piece that starts elsewhere."""
    frames = sprite_frames(0)
    assert all(not torch.equal(frames[i], frames[j]) for i in range(8) for j in range(i))


def test_a_clip_of_one_file_is_enough(tmp_path):
    sprite_clip(tmp_path / "data/a.mp4")
    convert(tmp_path / "data", tmp_path / "shards")
    (sample,) = streamed(tmp_path / "shards")
    assert sample["caption"] == "a"
