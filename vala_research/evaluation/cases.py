"""Cases to edit: sprite clips whose true edit is known, or your own clips and prompts."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vala_research import InputError, chosen_from
from vala_research.data.clips import read_clip
from vala_research.evaluation.metrics import estimate_flow
from vala_research.evaluation.probes import View, views_of
from vala_research.sprites.edits import EDITS, target_scene
from vala_research.sprites.motions import in_motion
from vala_research.sprites.render import render
from vala_research.sprites.scene import Scene, World, random_scene, split_generator

PICTURES = ("depth", "pose")  # columns of edits.csv that name pictures for a ControlNet


@dataclass(frozen=True)
class Material:
    """Frames of a case, the flow between them (true or estimated), and the true edit if known.

    The flow of the true edit differs from the source's where an edit moves the outline.
    pictures: what ControlNets may see of the clip, by name, such as "depth"; f 3 h w each.
    """

    frames: Float[Tensor, "f c h w"]
    flow: Float[Tensor, "p 2 h w"]
    flow_valid: Float[Tensor, "p 1 h w"] | Bool[Tensor, "p 1 h w"]
    truth: Float[Tensor, "f c h w"] | None = None
    truth_flow: Float[Tensor, "p 2 h w"] | None = None
    truth_flow_valid: Float[Tensor, "p 1 h w"] | Bool[Tensor, "p 1 h w"] | None = None
    pictures: Mapping[str, Float[Tensor, "f 3 h w"]] = field(default_factory=dict)


@dataclass(frozen=True)
class EditCase:
    """One sprite clip and one edit of it; the target scene's rendering is the true edit.

    motion: how the object moves, see `edit_cases`.
    """

    kind: str
    index: int
    source: Scene
    target: Scene
    motion: str = "usual"

    @property
    def source_prompt(self) -> str:
        return _caption(self.source)

    @property
    def prompt(self) -> str:
        return _caption(self.target)

    @property
    def labels(self) -> dict[str, str | int]:
        """Columns that name this edit in a row. A usual motion has none."""
        motion = {} if self.motion == "usual" else {"motion": self.motion}
        return {"kind": self.kind, "index": self.index} | motion

    @property
    def attributes(self) -> dict[str, str | None]:
        """What should be read in every frame of the edit."""
        return self.target.attributes

    def material(self, n_frames: int, size: int) -> Material:
        clip, truth = (render(scene, n_frames, size) for scene in (self.source, self.target))
        return Material(
            clip.frames, clip.flow, clip.flow_valid,
            truth.frames, truth.flow, truth.flow_valid, {"depth": clip.depth_pictures},
        )  # fmt: skip


@dataclass(frozen=True)
class ClipCase:
    """One clip from disk and one edit of it. Its true edit is not known.

    pictures: names of what ControlNets may see of it, each with a clip or folder of pictures.
    """

    kind: str
    index: int
    path: Path
    source_prompt: str
    prompt: str
    attributes: None = None
    motion: None = None
    pictures: tuple[tuple[str, Path], ...] = ()

    @property
    def labels(self) -> dict[str, str | int]:
        """Columns that name this edit in a row."""
        return {"kind": self.kind, "index": self.index}

    def material(self, n_frames: int, size: int) -> Material:
        frames = read_clip(self.path, n_frames, size=size).frames
        pictures = {}
        for name, path in self.pictures:
            pictures[name] = read_clip(path, len(frames), size=size).frames
            if len(pictures[name]) < len(frames):
                raise InputError(
                    f"{path} holds {len(pictures[name])} of the {len(frames)} frames of "
                    f"{self.path}: give one picture of {name} per frame."
                )
        return Material(frames, *estimate_flow(frames), pictures=pictures)


def _caption(scene: Scene) -> str:
    """The caption of a scene. One sentence holds for shots that show the same."""
    is_alike = all(shot.attributes == scene.attributes for shot in scene.then)
    return (replace(scene, then=()) if is_alike else scene).caption


def edit_cases(
    world: World, split: str, n: int, kinds: Iterable[str] = tuple(EDITS), motion: str = "usual"
) -> list[EditCase]:
    """Draw `n` sprite cases per kind of edit, within the rules of the world.

    A case of the same kind and number has the same captions under every motion.
    motion: how the object moves, see `sprites.motions`.
    """
    cases = []
    for kind in kinds:
        chosen_from("edit", kind, EDITS)
        for index in range(n):
            generator = split_generator(split, 10_000_000 + index)
            source = random_scene(generator, world=replace(world, empty=0.0))
            edited = target_scene(source, kind, world, generator).attributes
            source = in_motion(source, motion, world, split_generator(split, 20_000_000 + index))
            cases.append(EditCase(kind, index, source, source.edited(**edited), motion))
    return cases


def folder_cases(folder: str | Path) -> list[ClipCase]:
    """The edits listed in the `edits.csv` of a folder: clip, source_prompt, prompt[, kind].

    Several lines may edit one clip. The columns depth and pose may name clips or folders of
    pictures for a ControlNet, one per frame. Raises InputError naming a missing file, column,
    prompt or clip, and for a listing that is not UTF-8.
    """
    listing = Path(folder) / "edits.csv"
    if not listing.is_file():
        raise InputError(
            f"{folder} has no edits.csv: list the clips there, with the columns clip, "
            "source_prompt and prompt (and kind, if you like)."
        )
    try:
        with listing.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file, restval=""))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{listing} is no csv in UTF-8 ({error}): save it as one.") from error
    if not lines:
        raise InputError(f"{listing} lists no edit: add a line for each.")
    if missing := {"clip", "source_prompt", "prompt"} - set(lines[0]):
        raise InputError(f"{listing} has no column {', '.join(sorted(missing))}: add it.")
    if empty := [i for i, line in enumerate(lines, 2) if not line["clip"] or not line["prompt"]]:
        raise InputError(f"{listing}, line {empty[0]} lacks its clip or its prompt: add it.")
    clips = list(dict.fromkeys(line["clip"] for line in lines))
    named = clips + [line[k] for line in lines for k in PICTURES if line.get(k)]
    if absent := [name for name in named if not (listing.parent / name).exists()]:
        raise InputError(f"{listing} names {', '.join(absent)}, which {folder} does not hold.")
    return [
        ClipCase(line.get("kind") or "edit", clips.index(line["clip"]),
                 listing.parent / line["clip"], line["source_prompt"], line["prompt"],
                 pictures=tuple((k, listing.parent / line[k]) for k in PICTURES if line.get(k)))
        for line in lines
    ]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A clip, its caption, and the words whose attention map is measured.

    mask: where the words truly are, if known. seed: of the noise, the same for all settings.
    """

    frames: Float[Tensor, "f 3 y x"]
    prompt: str
    words: str
    mask: Float[Tensor, "f 1 y x"] | None = None
    seed: int = 0

    def views(self, pipe: Any, t: int, noise: str = "own") -> dict[str, View]:
        """`views_of` this clip."""
        generator = torch.Generator().manual_seed(self.seed)
        return views_of(pipe, self.frames, self.prompt, t, generator, noise)


def sprite_cases(
    n: int, world: World, n_frames: int = 2, size: int = 64, words: str = "shape"
) -> list[Case]:
    """Test clips of the sprite world with an object. Frames are adjacent ones of a clip of 16.

    words: the attribute whose word is measured.
    """
    cases = []
    for i in range(n):
        scene = random_scene(split_generator("test", i), world=replace(world, empty=0.0))
        clip = render(scene, 16, size)
        word = scene.attributes[words]
        cases.append(Case(clip.frames[:n_frames], scene.caption, word, clip.mask[:n_frames], i))
    return cases
