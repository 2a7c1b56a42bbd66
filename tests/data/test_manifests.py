"""Manifests list the clips, captions and splits of the published layouts."""

import json
import shutil

import pytest
from tiny_datasets import CAPTIONS, davis, frames_folder, loveu, msrvtt, sprite_clip

from vala_research import InputError
from vala_research.data.datasets import ClipGroups
from vala_research.data.manifests import read_manifest


def test_msrvtt_gives_every_video_its_split_and_all_20_captions(tmp_path):
    entries = read_manifest(msrvtt(tmp_path))
    assert [(e.name, e.split) for e in entries] == [
        ("video0", "train"), ("video1", "train"), ("video2", "validate"),
    ]  # fmt: skip
    assert all(e.captions == tuple(CAPTIONS) for e in entries)
    assert all(e.path == tmp_path / "TrainValVideo" / f"{e.name}.mp4" for e in entries)
    assert [e.name for e in read_manifest(tmp_path, split="validate")] == ["video2"]
    with pytest.raises(InputError, match="no split 'test': choose one of train, validate"):
        read_manifest(tmp_path, split="test")


def test_msrvtt_finds_the_caption_file_one_folder_down_and_merges_two(tmp_path):
    msrvtt(tmp_path)
    (tmp_path / "annotation").mkdir()
    shutil.move(tmp_path / "train_val_videodatainfo.json", tmp_path / "annotation")
    sprite_clip(tmp_path / "TestVideo/video3.mp4", 3)
    table = {
        "videos": [{"video_id": "video3", "split": "test"}],
        "sentences": [{"video_id": "video3", "caption": "a test"}],
    }
    (tmp_path / "annotation/test_videodatainfo.json").write_text(json.dumps(table))
    entries = read_manifest(tmp_path)
    assert [e.name for e in entries] == ["video0", "video1", "video2", "video3"]
    assert entries[-1].captions == ("a test",) and entries[-1].split == "test"


def test_loveu_reads_mp4_and_frames_with_the_four_edits(tmp_path):
    fish, pizza = read_manifest(loveu(tmp_path))
    assert (fish.name, fish.split, fish.captions) == ("gold-fish", "DAVIS_480p", ("Fish swim",))
    assert pizza.edits == {
        "style": "A man eats, ink", "object": "A cat eats", "background": "On Mars",
        "multiple": "A cat on Mars",
    }  # fmt: skip
    assert fish.path.name == "gold-fish.mp4" and pizza.path.is_dir()
    assert len(ClipGroups(read_manifest(tmp_path, split="youtube_480p"), strict=True)) == 1
    names = {sample["name"] for sample in ClipGroups([fish, pizza], strict=True)}
    assert names == {"gold-fish", "eating-pizza"}


def test_davis_takes_images_not_masks_and_words_of_the_name_or_a_caption_file(tmp_path):
    entries = read_manifest(davis(tmp_path))
    assert [(e.name, e.split, e.captions) for e in entries] == [
        ("bear", "train", ("bear",)), ("black-swan", "val", ("black swan",)),
    ]  # fmt: skip
    assert all("JPEGImages" in str(e.path) for e in entries)
    (tmp_path / "captions.json").write_text('{"bear": ["a bear", "it walks"], "black-swan": "s"}')
    assert [e.captions for e in read_manifest(tmp_path)] == [("a bear", "it walks"), ("s",)]


def test_davis_2016_lists_name_frames_and_masks(tmp_path):
    davis(tmp_path)
    shutil.rmtree(tmp_path / "ImageSets")
    (tmp_path / "ImageSets/480p").mkdir(parents=True)
    (tmp_path / "ImageSets/480p/train.txt").write_text(
        "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n\n"
    )
    assert [(e.name, e.split) for e in read_manifest(tmp_path)] == [
        ("bear", "train"), ("black-swan", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "files, captions",
    [
        ({}, {"deep/b_c": ("b c",), "red-star": ("red star",)}),
        ({"red-star.txt": "one\n\ntwo\n"}, {"deep/b_c": (), "red-star": ("one", "two")}),
        (
            {"captions.csv": "file,caption\nred-star.mp4,one\ndeep/b_c,x\nred-star.mp4,two\n"},
            {"deep/b_c": ("x",), "red-star": ("one", "two")},
        ),
        (
            {"captions.csv": '\ufeffname,text\nred-star,"a, b"\ndeep/b_c,x\n'},
            {"deep/b_c": ("x",), "red-star": ("a, b",)},
        ),
        (
            {"captions.json": '{"red-star.mp4": ["one", " two "], "deep/b_c": "x"}'},
            {"deep/b_c": ("x",), "red-star": ("one", "two")},
        ),
    ],
    ids=["names", "text files", "csv", "csv of a spreadsheet", "json"],
)
def test_a_plain_folder_takes_captions_in_any_of_these_forms(tmp_path, files, captions):
    sprite_clip(tmp_path / "red-star.mp4")
    frames_folder(tmp_path / "deep/b_c")
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert {e.name: e.captions for e in read_manifest(tmp_path)} == captions


def two_clips(folder):
    """`v0.mp4` in the folder and `videos/v1.mp4` below."""
    sprite_clip(folder / "v0.mp4")
    sprite_clip(folder / "videos/v1.mp4", 1)
    return folder


@pytest.mark.parametrize(
    "table",
    [
        {"v0": {"caption": "a dog"}, "v1": {"caption": ["a cat"], "fps": 25}},
        [{"file": "v0.mp4", "caption": "a dog"}, {"file": "videos/v1.mp4", "text": ["a cat"]}],
        {"info": {"year": "2016"}, "data": [{"video": "v0", "sentences": ["a dog"]},
                                            {"video_id": "v1", "prompt": "a cat"}]},
        {"train": {"v0.mp4": "a dog"}, "test": {"/mnt/data/videos/v1.mp4": ["a cat"]}},
        {"v0": [{"caption": "a dog", "start": 0}], "v1": {"captions": [{"text": "a cat"}]}},
        {"v0": "{'caption': 'a dog', 'score': 1}", "v1": '["a cat"]'},
        {"v0": [None, "a dog", {"score": 1}], "v1": {"caption": "a cat", "text": "no"}},
        {"videos": [{"video_id": "v0", "split": "train"}],
         "sentences": [{"video_id": "v1", "caption": "a cat"},
                       {"video_id": "v0", "caption": "a dog"}]},
    ],
)  # fmt: skip
def test_nested_json_holds_captions(tmp_path, table):
    (two_clips(tmp_path) / "captions.json").write_text(json.dumps(table))
    captions = {e.name: e.captions for e in read_manifest(tmp_path)}
    assert captions == {"v0": ("a dog",), "videos/v1": ("a cat",)}
    (tmp_path / "captions.json").unlink()
    lines = table if isinstance(table, list) else [{k: v} for k, v in table.items()]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert {e.name: e.captions for e in read_manifest(tmp_path)} == captions


@pytest.mark.parametrize(
    "held", [{"en": "a dog"}, {"url": "a"}, [{"score": 1}], "{'score': 1}", [[{}]], None, {}]
)
@pytest.mark.parametrize("name", ["captions.json", "metadata.jsonl"])
def test_the_text_of_an_object_is_never_a_caption(tmp_path, held, name):
    two_clips(tmp_path)
    table = {"v0": held, "v1": "a cat"}
    rows = [{"file_name": "v0.mp4", "text": held}, {"file_name": "videos/v1.mp4", "text": "a cat"}]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(lines if "jsonl" in name else json.dumps(table))
    captions = {e.name: e.captions for e in read_manifest(tmp_path)}
    assert captions == {"v0": (), "videos/v1": ("a cat",)}


@pytest.mark.parametrize("prompts", ["prompts.txt", "prompt.txt", "captions.txt"])
@pytest.mark.parametrize("below", ["", "train/"])
def test_a_list_of_captions_stands_beside_a_list_of_clips(tmp_path, prompts, below):
    """Rare characters that Python takes for the end of a line are none here."""
    folder = two_clips(tmp_path / below)
    (folder / prompts).write_text("a dog,\u2028 a bone\r\na cat\r\n\r\n", encoding="utf-8")
    (folder / "videos.txt").write_text("v0.mp4\nvideos/v1.mp4\n")
    captions = {e.name: e.captions for e in read_manifest(tmp_path)}
    assert captions == {f"{below}v0": ("a dog, a bone",), f"{below}videos/v1": ("a cat",)}
    (folder / prompts).write_text("a dog\n")
    with pytest.raises(InputError, match=f"videos.txt has 2 lines and {prompts} 1: give one"):
        read_manifest(tmp_path)


def test_a_clip_may_have_a_json_file_of_its_own(tmp_path):
    two_clips(tmp_path)
    (tmp_path / "v0.json").write_text('{"caption": "a dog", "fps": 25}')
    (tmp_path / "videos/v1.json").write_text('{"fps": 25}')
    captions = {e.name: e.captions for e in read_manifest(tmp_path)}
    assert captions == {"v0": ("a dog",), "videos/v1": ()}


TEST_LIST = "key,vid_key,video_id,sentence\nret0,msr1,video1,a test of one\n"
TRAIN_LIST = "video_id\nvideo0\nvideo2\n"


def test_lists_of_clip4clip_add_splits_to_msrvtt(tmp_path):
    msrvtt(tmp_path)
    (tmp_path / "msrvtt_data").mkdir()
    (tmp_path / "msrvtt_data/MSRVTT_JSFUSION_test.csv").write_text(TEST_LIST)
    (tmp_path / "msrvtt_data/MSRVTT_train.9k.csv").write_text(TRAIN_LIST)
    assert [e.split for e in read_manifest(tmp_path)] == ["train", "train", "validate"]
    (tested,) = read_manifest(tmp_path, split="1k-A")
    assert (tested.name, tested.captions, tested.split) == ("video1", ("a test of one",), "1k-A")
    trained = read_manifest(tmp_path, split="9k")
    assert [e.name for e in trained] == ["video0", "video2"]
    assert all(e.captions == tuple(CAPTIONS) and e.path for e in trained)
    for split, same in (("train_9k", "9k"), ("test_1kA", "1k-A"), ("1k-a", "1k-A")):
        assert read_manifest(tmp_path, split=split) == read_manifest(tmp_path, split=same)
    with pytest.raises(InputError, match="no split '7k': choose one of 1k-A, 9k, train, validate"):
        read_manifest(tmp_path, split="7k")


def test_the_test_list_of_clip4clip_alone_holds_captions(tmp_path):
    msrvtt(tmp_path)
    (tmp_path / "train_val_videodatainfo.json").unlink()
    (tmp_path / "MSRVTT_train.9k.csv").write_text(TRAIN_LIST)
    with pytest.raises(InputError, match="without captions: add MSRVTT_data.json"):
        read_manifest(tmp_path)
    (tmp_path / "MSRVTT_train.9k.csv").unlink()
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text(TEST_LIST)
    (tested,) = read_manifest(tmp_path)
    assert (tested.name, tested.captions) == ("video1", ("a test of one",))
    assert tested.path == tmp_path / "TrainValVideo/video1.mp4"
    for split in ("test", "1k-A"):
        assert [e.name for e in read_manifest(tmp_path, split=split)] == ["video1"]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("train_val_videodatainfo.json", "{", "not readable JSON"),
        ("train_val_videodatainfo.json", '{"videos": []}', "no MSR-VTT caption file"),
        ("train_val_videodatainfo.json", '{"videos": [], "sentences": []}', "no clips"),
        ("LOVEU-TGVE-2023_Dataset.csv", "Video name\na\n", "no column 'Our GT caption'"),
        ("captions.csv", "clip,caption\na,b\n", "no column 'file or video or name'"),
        ("captions.json", "[]", "give an object"),
        ("captions.json", '[{"file": "a.mp4", "label": 3}]', "give an object"),
        ("captions.json", "[" * 900 + "]" * 900, "give an object|nested too deep"),
        ("metadata.csv", "file_name,label\na.mp4,3\n", "no column 'caption or text"),
        ("metadata.jsonl", "[3]\n", "is no object with file_name and text"),
    ],
)
def test_a_caption_file_that_is_not_understood_gives_one_error(tmp_path, name, text, message):
    sprite_clip(tmp_path / "a.mp4")
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path)


def test_folders_and_layouts_that_are_not_there(tmp_path):
    for folder, options, message in (
        (tmp_path / "none", {}, "is not a folder"),
        (tmp_path, {}, "holds no clips"),
        (tmp_path, {"layout": "ucf"}, "Unknown layout 'ucf': choose one of msrvtt"),
        (tmp_path, {"layout": "loveu"}, "choose another layout"),
        (tmp_path, {"layout": "davis"}, "choose another layout"),
    ):
        with pytest.raises(InputError, match=message):
            read_manifest(folder, **options)
