"""`vala shards` says what it made, refuses bad input in one sentence, and survives being killed."""

import signal
import subprocess
import sys
import time

import pytest
from fresh_processes import FRESH
from test_cli import refused, vala
from tiny_datasets import msrvtt, sprite_clip

from vala_research.cli.shards import shards
from vala_research.data.datasets import GroupSampling
from vala_research.data.streaming import ShardGroups


@pytest.fixture
def data(tmp_path):
    return msrvtt(tmp_path / "data")


def contents(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_shards_are_written_and_can_be_streamed(tmp_path, data):
    folder = tmp_path / "shards"
    status, printed, err = vala(
        "shards", data, "-o", folder, "--layout", "msrvtt", "--split", "train", "--size", "16x24",
        "--picture", "jpg", "--piece", 4, "--pieces-per-clip", 1, "--clips-per-shard", 1,
    )  # fmt: skip
    assert (status, err) == (0, [])
    said, wrote = printed.splitlines()
    assert said == "2 of 2 clips used, none skipped." and wrote == f"wrote 2 shards to {folder}"
    samples = list(ShardGroups(folder, GroupSampling(n_frames=4), strict=True))
    assert sorted(s["name"] for s in samples) == ["video0", "video1"]
    assert all(s["frames"].shape == (4, 3, 16, 24) for s in samples)


def test_what_was_left_out_is_said_and_strictly_refused(tmp_path, data):
    clip = data / "TrainValVideo/video1.mp4"
    clip.write_bytes(clip.read_bytes()[:600])
    status, printed, err = vala("shards", data, "-o", tmp_path / "shards")
    assert status == 0 and "2 of 3 clips used; 1 skipped:" in printed and "video1.mp4" in printed
    refused(tmp_path, "shards", data, "-o", tmp_path / "strict", "--strict", naming="video1.mp4")


def test_names_that_serve_as_captions_are_told(tmp_path):
    sprite_clip(tmp_path / "data/v0.mp4")
    told = "the names of the clips serve as captions"
    status, _, err = vala("shards", tmp_path / "data", "-o", tmp_path / "shards")
    assert status == 0 and len(err) == 1 and err[0].startswith("warning: ") and told in err[0]
    _, _, err = vala("train", tmp_path / "data", "-o", tmp_path / "out", "--frames", 99)
    assert told in err[0] and "a group spans 99" in err[1]


@pytest.mark.parametrize(
    "options, naming",
    [
        (["--layout", "ucf"], "msrvtt"),
        (["--layout", "davis"], "JPEGImages"),
        (["--split", "test"], "train, validate"),
        (["--size", "big"], "big"),
        (["--picture", "gif"], "png, jpg"),
        (["--piece", "1"], "piece"),
        (["--pieces-per-clip", "0"], "pieces_per_clip"),
        (["--clips-per-shard", "none"], "--clips-per-shard"),
        (["-o", "no/such/shards"], "no/such"),
    ],
)
def test_bad_options(tmp_path, data, options, naming):
    refused(tmp_path, "shards", data, "-o", tmp_path / "shards", *options, naming=naming)


def test_bad_folders(tmp_path, data):
    refused(tmp_path, "shards", tmp_path / "none", "-o", tmp_path / "s", naming="none")
    refused(tmp_path, "shards", data, "-o", data, naming="holds other files")
    for clip in (data / "TrainValVideo").iterdir():
        clip.write_bytes(b"")
    refused(tmp_path, "shards", data, "-o", tmp_path / "s", naming="No clip can be read")


def test_killed_at_any_moment_and_repeated_it_gives_the_same_bytes(tmp_path):
    for k in range(24):
        sprite_clip(tmp_path / f"data/clip{k:02d}.mp4", k)
        (tmp_path / f"data/clip{k:02d}.txt").write_text("a caption")
    options = ["--clips-per-shard", "3", "--size", "48"]
    assert vala("shards", tmp_path / "data", "-o", tmp_path / "whole", *options)[0] == 0
    given, settings = (tmp_path / "data", tmp_path / "killed"), {"clips_per_shard": 3, "size": "48"}
    n_killed = 0
    for wanted in (1, 2, 5):  # shards that are there when it is killed
        process = FRESH.Process(target=shards, args=given, kwargs=settings)
        process.start()
        while process.is_alive():
            if len(list((tmp_path / "killed").glob("shard-*.tar"))) >= wanted:
                process.kill()
                break
            time.sleep(0.001)
        process.join()
        n_killed += process.exitcode == -signal.SIGKILL
    assert n_killed >= 2, "it was too fast to be killed: nothing is tested"
    status, printed, err = vala("shards", tmp_path / "data", "-o", tmp_path / "killed", *options)
    assert (status, err) == (0, []) and "24 of 24 clips used" in printed
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_help_names_every_option_and_is_instant():
    status, printed, _ = vala("shards", "--help")
    assert status == 0 and all(f"--{o}" in printed for o in ("layout", "split", "strict", "piece"))
    code = "import sys; from vala_research.cli.shards import shards; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
