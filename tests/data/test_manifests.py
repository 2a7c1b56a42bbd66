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


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("train_val_videodatainfo.json", "{", "not readable JSON"),
        ("train_val_videodatainfo.json", '{"videos": []}', "no MSR-VTT caption file"),
        ("train_val_videodatainfo.json", '{"videos": [], "sentences": []}', "no clips"),
        ("LOVEU-TGVE-2023_Dataset.csv", "Video name\na\n", "no column 'Our GT caption'"),
        ("captions.csv", "clip,caption\na,b\n", "no column 'file or video or name'"),
        ("captions.json", "[]", "give an object"),
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
