"""A clip of a data set, and how the clips and caption files of a folder are found."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vala_research import InputError
from vala_research.data.captions import VIDEOS
from vala_research.data.pictures import PICTURES, is_animated


@dataclass(frozen=True)
class Entry:
    """One clip of a data set.

    path: a video file or a folder of pictures; None if only a caption file names the clip.
    edits: {kind of edit: prompt} (LOVEU: style, object, background, multiple).
    also: further splits that hold the clip: {split: its captions there} (MSR-VTT: 9k, 7k, 1k-A).
    """

    name: str
    path: Path | None
    captions: tuple[str, ...]
    split: str | None = None
    edits: dict[str, str] = field(default_factory=dict)
    also: dict[str, tuple[str, ...]] = field(default_factory=dict)


def find_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """List the files of these patterns in the folder, then those one below."""
    found = (p for name in patterns for up in ("", "*/") for p in sorted(folder.glob(up + name)))
    return [path for path in found if path.is_file()]


def require(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """List these files. Raises InputError if there is none."""
    files = find_files(folder, patterns)
    if not files:
        raise InputError(f"{folder} holds no {' or '.join(patterns)}: choose another layout.")
    return files


def clips_in(folder: Path, key: Callable[[Path], str]) -> dict[str, Path]:
    """Find videos and folders of pictures: {key of the path without suffix: path}.

    If both exist, the video counts. An animated picture is a video. Hidden files, devices, and
    single pictures in the folder itself do not count.
    """
    videos, pictures = {}, {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        suffix = path.suffix.lower()
        if hidden or suffix not in VIDEOS | PICTURES or not path.is_file():
            continue
        if suffix in VIDEOS or is_animated(path):
            videos.setdefault(key(path.with_suffix("")), path)
        elif path.parent != folder:
            pictures.setdefault(key(path.parent), path.parent)
    return dict(sorted((pictures | videos).items()))
