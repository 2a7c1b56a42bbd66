"""Outputs are written whole, and nothing of a user's is lost; what killed processes left is swept.

Costs about 3 s: some tests kill small processes.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vala_research import InputError, files, temporary
from vala_research.files import (
    CONTENTS,
    check_output,
    write_json,
    write_rows,
    write_tensors,
    write_text,
    written_together,
    written_whole,
)
from vala_research.temporary import sweep, temporary_folder

LONG = [n * "x" for n in (246, 255)] + [85 * "漢"]  # bytes of UTF-8


def tree(folder: Path) -> dict[str, str]:
    """All files below a folder, hidden ones too: {name: text}."""
    found = (p for p in folder.rglob("*") if not p.is_dir())
    return {str(p.relative_to(folder)): p.read_text(errors="replace") for p in found}


def write_folder(path: Path, **texts: str) -> None:
    with written_whole(path, is_folder=True) as unfinished:
        unfinished.mkdir()
        for name, text in texts.items():
            (unfinished / name).write_text(text)


@pytest.fixture
def precious(tmp_path) -> dict:
    """What a user has in a place where an output is asked for: {name: what refuses it}."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_text("precious")
    (tmp_path / "nested/sub.png").mkdir(parents=True)
    (tmp_path / "nested/sub.png/deep").write_text("precious")
    write_folder(tmp_path / "added", a="ours")
    (tmp_path / "added/b").write_text("precious")
    (tmp_path / "linked").symlink_to("pictures")
    return {name: "other files" for name in ("pictures", "nested", "added", "linked")}


def test_folders_of_a_user_are_refused_as_files_and_as_folders(tmp_path, precious):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("precious")
    before = tree(tmp_path / "pictures")
    for name, problem in (precious | {"pipe": "a pipe", "file": "is a file"}).items():
        for write in (check_output, write_folder):
            with pytest.raises(InputError, match=problem):
                write(tmp_path / name, **({"is_folder": True} if write is check_output else {}))
    for name in precious:
        for write in (check_output, lambda path: write_text(path, "new")):
            with pytest.raises(InputError, match="is a folder: give the name of a file"):
                write(tmp_path / name)
    with pytest.raises(InputError, match="is a pipe"):
        write_text(tmp_path / "pipe", "new")
    with pytest.raises(InputError, match="is a folder"), written_together(
        tmp_path / "one", tmp_path / "nested"
    ) as unfinished:
        for path in unfinished:
            path.write_text("new")
    assert tree(tmp_path / "pictures") == before and not (tmp_path / "one").exists()
    assert (tmp_path / "nested/sub.png/deep").read_text() == "precious"
    assert (tmp_path / "added/b").read_text() == (tmp_path / "file").read_text() == "precious"


def test_what_a_user_adds_during_the_work_is_kept(tmp_path):
    write_folder(tmp_path / "out", a="old")
    with pytest.raises(InputError, match="other files"):
        with written_whole(tmp_path / "out", is_folder=True) as unfinished:
            unfinished.mkdir()
            (tmp_path / "out/mine").write_text("precious")
    assert tree(tmp_path) == {"out/a": "old", "out/mine": "precious", f"out/{CONTENTS}": "a\n"}


def test_our_folder_is_replaced_and_an_empty_one_taken(tmp_path):
    (tmp_path / "empty").mkdir(mode=0o700)
    for name in ("ours", "empty"):
        for texts in ({"a": "1", "b": "2"}, {"a": "3"}):
            write_folder(tmp_path / name, **texts)
            assert tree(tmp_path / name) == {CONTENTS: "".join(f"{n}\n" for n in texts)} | texts
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "ours"]


def test_names_that_cannot_be_are_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    names = ["", ".", "..", "a\0b", 256 * "x", 86 * "漢", "loop", "missing/a", "file/a"]
    for name in names:
        with pytest.raises(InputError) as error:
            check_output(name)
        assert "\n" not in str(error.value)
    for name in set(names) - {"missing/a"}:  # the writers make missing folders
        with pytest.raises(InputError):
            write_text(Path(name), "new")
    with pytest.raises(InputError):  # the working folder itself
        check_output(tmp_path, is_folder=True)
    assert {p.name for p in tmp_path.iterdir()} == {"loop", "file"}


@pytest.mark.parametrize("name", [*LONG, "http:a", "a%04d", "-x", " "], ids=lambda n: n[:6])
def test_long_and_odd_names_work(tmp_path, name):
    check_output(tmp_path / name)
    write_tensors(tmp_path / name, {"a": torch.ones(2)})
    assert load_file(tmp_path / name)["a"].tolist() == [1, 1]
    write_rows(tmp_path / name, [{"a": 1}])
    (tmp_path / name).unlink()
    check_output(tmp_path / name, is_folder=True)
    write_folder(tmp_path / name, a="1")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_devices_stay_devices_and_links_stay_links(tmp_path):
    check_output("/dev/null")
    write_json(Path("/dev/null"), {"a": 1})
    assert Path("/dev/null").is_char_device()
    with pytest.raises(InputError, match="No space left"):
        write_text(Path("/dev/full"), "x")
    (tmp_path / "else").mkdir()
    for name in ("else/there", "else/new"):
        link = tmp_path / Path(name).name
        link.symlink_to(name)
        if name != "else/new":
            link.write_text("old")
        check_output(link)
        write_text(link, "text")
        assert link.is_symlink() and (tmp_path / name).read_text() == "text"
    write_folder(tmp_path / "else/real", a="1")
    (tmp_path / "folder").symlink_to("else/real")
    write_folder(tmp_path / "folder", a="2")
    assert (tmp_path / "folder").is_symlink() and (tmp_path / "else/real/a").read_text() == "2"


def test_modes_stay_and_new_files_follow_the_umask(tmp_path):
    def write(name):
        write_tensors(tmp_path / name, {"a": torch.zeros(1)})
        return (tmp_path / name).stat().st_mode & 0o7777

    before = os.umask(0o027)
    try:
        assert write("new") == 0o640
        for mode in (0o600, 0o644, 0o755, 0o666):
            (tmp_path / "new").chmod(mode)
            assert write("new") == mode
    finally:
        os.umask(before)


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path):
    write_tensors(tmp_path / "a", {"a": torch.zeros(1)})
    before, limits = tree(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        for write in (
            lambda: write_tensors(tmp_path / "a", {"a": torch.zeros(9999)}),
            lambda: write_text(tmp_path / "a", 9999 * "x"),
        ):
            with pytest.raises(InputError, match="a cannot be written .*File too large"):
                write()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(InputError, match="File too large"):  # not room for one block
            check_output(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(tmp_path) == before


def test_a_file_that_cannot_be_renamed_is_written_through(tmp_path, monkeypatch):
    """A file that is mounted, for example, is busy."""
    (tmp_path / "a").write_text("old")
    number = (tmp_path / "a").stat().st_ino

    def busy(*_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "replace", busy)
    write_text(tmp_path / "a", "new")
    assert tree(tmp_path) == {"a": "new"} and (tmp_path / "a").stat().st_ino == number


@pytest.mark.parametrize("fails_at", range(6))
def test_a_renaming_that_fails_is_undone(tmp_path, monkeypatch, fails_at):
    paths, rename, count = [tmp_path / n for n in "abc"], os.rename, iter(range(99))
    for path in paths:
        path.write_text("old")

    def fails(*args):
        if next(count) == fails_at:
            raise OSError(5, "Input/output error")
        rename(*args)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(InputError, match="Input/output"), written_together(*paths) as unfinished:
        for path in unfinished:
            path.write_text("new")
    assert tree(tmp_path) == {n: "old" for n in "abc"}


KILLED = """
import os, signal, sys, time
from pathlib import Path
from vala_research import files
folder, at = Path(sys.argv[1]), int(sys.argv[2])
rename, count = os.rename, iter(range(99))
def stops(*args):
    if next(count) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*args)
os.rename = stops
is_folder = sys.argv[3] == "folder"
names = ["d"] if is_folder else ["a", "b", "c"]
with files.written_together(*(folder / n for n in names), is_folder=is_folder) as unfinished:
    for new in unfinished:
        if is_folder:
            new.mkdir()
            new = new / "x"
        new.write_text("new")
    if at < 0:
        print("writing", flush=True)
        time.sleep(60)
"""


def killed(folder: Path, at: int, kind: str = "files") -> subprocess.Popen:
    """Start a process that kills itself at a renaming; with -1 it never ends."""
    command = [sys.executable, "-c", KILLED, str(folder), str(at), kind]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(files.__file__).parents[1])


@pytest.mark.parametrize("kind, n_moves", [("files", 6), ("folder", 2)])
def test_a_kill_among_renamings_is_finished_by_the_next_start(tmp_path, kind, n_moves):
    def planted(at):
        (tmp_path / str(at)).mkdir()
        write_folder(tmp_path / f"{at}/d", x="old")
        for name in "abc":
            (tmp_path / f"{at}/{name}").write_text("old")
        return killed(tmp_path / str(at), at, kind)

    for at, process in enumerate([planted(at) for at in range(n_moves)]):
        assert process.wait() == -signal.SIGKILL
        check_output(tmp_path / f"{at}/other")
        texts = {name.split("/")[0]: text for name, text in tree(tmp_path / str(at)).items()
                 if CONTENTS not in name}  # fmt: skip
        replaced = set("abc") if kind == "files" else {"d"} if at else set()
        # A folder whose old one was not yet aside stays as it was; of files none is left old.
        assert texts == {n: "new" if n in replaced else "old" for n in "abcd"}, at


def test_a_process_at_work_keeps_its_files_and_a_killed_one_loses_them(tmp_path):
    process = killed(tmp_path, -1)
    process.stdout.readline()
    kept = tree(tmp_path)
    assert len(kept) == 3
    write_text(tmp_path / "other", "x")
    check_output(tmp_path / "other")
    assert tree(tmp_path) == kept | {"other": "x"}
    os.kill(process.pid, signal.SIGKILL)
    while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":  # not yet reaped
        time.sleep(0.01)
    check_output(tmp_path / "other")
    assert tree(tmp_path) == {"other": "x"}
    process.wait()


def test_owners_are_told_apart_by_start_and_machine(tmp_path, monkeypatch):
    with temporary_folder(tmp_path) as mine:
        host, process, start = temporary.TEMPORARY.fullmatch(mine.name).groups()
        names = {
            "again": f".vala-{host}-{process}-{int(start) - 1000}-00000000",  # used again
            "elsewhere": f".vala-{int(host, 16) ^ 1:08x}-{process}-{start}-00000000",
            "no owner": ".vala-notes",
        }
        for name in names.values():
            (tmp_path / name).mkdir()
        (tmp_path / f"{mine.name[:-8]}ffffffff").symlink_to(tmp_path)
        (tmp_path / f".vala-{host}-1-1-ffffffff").write_text("a file of this name")
        sweep(tmp_path)
        left = {p.name for p in tmp_path.iterdir()}
        assert names["again"] not in left and len(left) == 5

        # Another machine's process cannot be asked; after a week without a change it is gone.
        os.utime(tmp_path / names["elsewhere"], (0, time.time() - 8 * 86400))
        sweep(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == left - {names["elsewhere"]}
    assert json.loads(write_json(tmp_path / "a", [1]).read_text()) == [1]
