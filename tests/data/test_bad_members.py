"""One bad member never ends a data set, and nothing outside of it is opened.

About 3 s of processor time.
"""

import os
import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tiny_datasets import frames_folder, msrvtt, sprite_clip

from vala_research import InputError, read_clip
from vala_research.data.datasets import ClipGroups
from vala_research.data.manifests import read_manifest
from vala_research.data.shards import convert
from vala_research.data.streaming import ShardGroups

DEEP = "[" * 100_000 + "]" * 100_000


def test_bad_members_are_named_and_left_out(tmp_path):
    data = tmp_path / "data"
    sprite_clip(data / "good.mp4")
    (data / "good.txt").write_text("a caption")
    (data / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    (data / "noise.txt").write_bytes(b"\xff\xfe\xff")
    (data / "head.gif").write_bytes(b"GIF89a")
    (data / "list.mkv").write_text("#EXTM3U\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n")
    for name in ("first", "second"):
        (data / name).mkdir()
    (data / "first/0.webp").write_bytes(b"RIFF")
    (data / "second/0.png").write_bytes(b"x")
    os.mkfifo(data / "pipe.mp4")
    (data / "zero.mov").symlink_to("/dev/zero")
    (data / "gone.mov").symlink_to(data / "nowhere")
    (data / "folder.mp4").mkdir()
    with pytest.warns(UserWarning) as told:
        groups = ClipGroups(read_manifest(data))
    assert groups.n_clips == 1
    assert set(groups.skipped) == {"noise", "head", "list", "first", "second"}
    assert any("noise.txt is not readable text" in str(w.message) for w in told)
    with pytest.warns(UserWarning):
        assert convert(data, tmp_path / "shards").startswith("1 of 6 clips used; 5 skipped")


@pytest.mark.parametrize(
    "suffix", [".ts", ".mpg", ".ogv", ".flv", ".wmv", ".3gp", ".MTS", ".m2ts", ".vob", ".nut"]
)
def test_a_data_set_takes_every_suffix_that_is_read(tmp_path, suffix):
    """`read_clip` goes by the content, so that any file serves here."""
    shutil.copy(sprite_clip(tmp_path / "made/a.mp4"), tmp_path / f"b{suffix}")
    shutil.rmtree(tmp_path / "made")
    assert len(read_clip(tmp_path / f"b{suffix}")) == 8
    (sample,) = ClipGroups(read_manifest(tmp_path), strict=True)
    assert sample["name"] == "b"


class Asked(BaseHTTPRequestHandler):
    """Counts requests."""

    paths: list[str] = []

    def do_GET(self):
        self.paths.append(self.path)
        self.send_error(404)

    def log_message(self, *_):
        pass


def test_no_name_is_taken_for_an_address(tmp_path, monkeypatch):
    """Names of folders make a path look like an address of ffmpeg."""
    monkeypatch.chdir(tmp_path)
    server = HTTPServer(("127.0.0.1", 0), Asked)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        for folder in (f"http:/127.0.0.1:{server.server_port}", "concat:", "data:", "pipe:"):
            sprite_clip(Path(folder, "a.mp4"))
            assert len(read_clip(Path(folder, "a.mp4"))) == 8
        assert len(ClipGroups(read_manifest("."), strict=True)) == 4
    finally:
        server.shutdown()
        server.server_close()
    assert not Asked.paths


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\noutside.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile outside.ts\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        '<AdaptationSet><Representation id="1"><BaseURL>outside.ts</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>",
        "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
    ids=["m3u8", "concat", "dash", "sdp"],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", "a.mpd", "a.sdp"])
def test_lists_of_other_files_are_no_clips(tmp_path, text, name):
    sprite_clip(tmp_path / "made.mp4").rename(tmp_path / "outside.ts")
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="no video"):
        read_clip(tmp_path / name)


@pytest.mark.parametrize("name", ["captions.json", "train_val_videodatainfo.json"])
def test_json_that_is_nested_too_deep_gives_one_error(tmp_path, name):
    sprite_clip(tmp_path / "a.mp4")
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(InputError, match="not readable JSON"):
        read_manifest(tmp_path)


def test_an_index_of_shards_that_is_nested_too_deep_gives_one_error(tmp_path):
    (tmp_path / "shards.json").write_text(DEEP)
    with pytest.raises(InputError, match="shards.json is damaged"):
        ShardGroups(tmp_path)


@pytest.mark.parametrize(
    "rows, message",
    [
        ("a.mp4,A man, a dog", "line 2: 'a dog' is beyond the last column"),
        ('a.mp4,"A man\nb.mp4,A dog', "not a readable csv"),
        ('a.mp4,"A man\nb.mp4,A dog"', "line 3: a double quote is not closed"),
        ('a.mp4,"A man\nb.mp4,"A dog"', "not a readable csv"),
    ],
)
def test_stray_commas_and_quotes_of_a_table_are_noticed(tmp_path, rows, message):
    sprite_clip(tmp_path / "a.mp4")
    (tmp_path / "captions.csv").write_text(f"file,caption\n{rows}\n")
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path)
    (tmp_path / "captions.csv").write_text('file,caption,\na.mp4,"A man, a ""dog""",,\n')
    assert read_manifest(tmp_path)[0].captions == ('A man, a "dog"',)


def test_members_of_msrvtt_that_are_none_are_counted(tmp_path):
    path = msrvtt(tmp_path) / "train_val_videodatainfo.json"
    expected = read_manifest(tmp_path)
    text = path.read_text().replace('"sentences": [', '"sentences": [7, {"video_id": "video0"}, ')
    path.write_text(text.replace('"videos": [', '"videos": [null, '))
    with pytest.warns(UserWarning, match="3 members are not understood"):
        assert read_manifest(tmp_path) == expected


@pytest.mark.parametrize(
    "name, text",
    [
        ("metadata.csv", "file_name,text\na.mp4,a dog\n"),
        ("metadata.jsonl", '{"file_name": "a.mp4", "text": "a dog"}\n\n'),
        ("metadata.csv", "video_file_name,label,prompt\n.\\a.mp4,3,a dog\n"),
        ("metadata.jsonl", '\ufeff{"file_name": "a.mp4", "text": null, "caption": ["a dog"]}'),
        ("train/metadata.csv", "file_name,caption\n../a.mp4,no\nb.mp4,a cat\n"),
    ],
)
def test_tables_of_a_video_folder_hold_the_captions(tmp_path, name, text):
    sprite_clip(tmp_path / "a.mp4")
    sprite_clip(tmp_path / "train/b.mp4")
    (tmp_path / name).write_text(text)
    captions = {entry.name: entry.captions for entry in read_manifest(tmp_path)}
    expected = {"train/b": ("a cat",)} if "train" in name else {"a": ("a dog",)}
    assert captions.items() >= expected.items()


@pytest.mark.parametrize("unread", ["labels.csv", "metadata.parquet", "deep/list.json", "a.srt"])
def test_names_that_serve_as_captions_are_told(tmp_path, unread):
    frames_folder(tmp_path / "a")
    told = "names of the clips serve as captions"
    with pytest.warns(UserWarning, match=f"{told}; give captions.csv"):
        assert read_manifest(tmp_path)[0].captions == ("a",)
    (tmp_path / unread).parent.mkdir(exist_ok=True)
    (tmp_path / unread).write_text("clip;label\n")
    with pytest.warns(UserWarning, match=told if ".srt" in unread else f"{told}, {unread} is not"):
        assert read_manifest(tmp_path)[0].captions == ("a",)
