"""The contract of every experiment: presets of settings, and one way to publish what was found.

An experiment module offers `Settings`, `run(settings, output)`, `table(rows)`, `figure(rows)` and
`claims(rows)`, so that notebooks, batches, figures and tests treat all experiments alike.
"""

from __future__ import annotations

import sys
import time
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import pandas as pd
import torch

import vala_research
from vala_research import InputError, chosen_from, miniature_path
from vala_research.diffusion.attention import ANCHORS, POLICIES
from vala_research.editing.extras import PARTS, own_parts
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.benchmark import edited_frames
from vala_research.evaluation.cases import ClipCase, EditCase, edit_cases, folder_cases
from vala_research.evaluation.comparison import Run, compare
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import Picture
from vala_research.evaluation.sheet import strip
from vala_research.experiments.parameters import converted, given_names
from vala_research.files import check_output, written_whole
from vala_research.sprites.edits import EDITS
from vala_research.sprites.scene import WORLD

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
MOTION_MODULES = "guoyww/animatediff-motion-adapter-v1-5-2"  # for Stable Diffusion 1.5
CLIP = "openai/clip-vit-base-patch32"
# The preset "paper" of edits by Stable Diffusion; its clips are your own.
PUBLISHED = dict(model=STABLE_DIFFUSION, n_clips=0, kinds=(), n_frames=16, size=512, steps=50,
                 guidance=7.5)  # fmt: skip
# The preset "sprites" of comparisons: the miniature's default edit, where its edits are right,
# without motion modules and adapter, which are methods that the papers compare.
POINT = dict(parts=("controlnet",), n_frames=8, steps=15, guidance=2.0, n_processes=0)
ATTENTIONS = ChainMap({"anchors": ANCHORS}, POLICIES)  # names of attention policies
OF_EVERY_NOTEBOOK = {"preset", "output"}  # parameters beside the settings


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Base of every `Settings`: its fields are the parameters of the notebook.

    PRESETS: by name, the values that differ from the fields' defaults. CHOICES: by field, the names
    that it may hold. Values are converted to the fields' types, see `parameters`.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"smoke": {}}
    CHOICES: ClassVar[dict[str, Collection]] = {}

    preset_name: str = "smoke"
    started: ClassVar[float] = 0.0  # seconds since the epoch, where a notebook began

    def __post_init__(self):
        for name, value in self._converted(vars(self)).items():
            object.__setattr__(self, name, value)

    @classmethod
    def _converted(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of fields in the fields' types."""
        hints = get_type_hints(cls)
        return {k: converted(k, v, hints[k], cls.CHOICES.get(k, ())) for k, v in values.items()}

    @classmethod
    def preset(cls, name: str, **given: Any):
        """The settings of a preset; every value given, other than None, replaces its own."""
        chosen_from("preset", name, cls.PRESETS)
        known = sorted(field.name for field in fields(cls))
        for key in given:
            chosen_from("parameter", key, known)
        values = {key: value for key, value in given.items() if value is not None}
        return cls(**cls._converted(cls.PRESETS[name] | values), preset_name=name)

    @classmethod
    def from_notebook(cls, names: MutableMapping[str, Any]):
        """The settings that a notebook's parameters give; names: its `globals()`.

        A relative output, such as "../runs/fldm_alpha", is made absolute there: below the
        repository, or below /content on Colab, whatever the working directory is.
        Raises InputError for a misspelt parameter, before anything is loaded.
        """
        own = {field.name for field in fields(cls)} - {"preset_name"}
        for name in given_names(names):
            chosen_from("parameter", name, sorted(own | OF_EVERY_NOTEBOOK))
        settings = cls.preset(names["preset"], **{k: v for k, v in names.items() if k in own})
        object.__setattr__(settings, "started", time.time())
        if "output" in names:
            names["output"] = results_folder(names["output"])
        return settings

    @property
    def dtype(self) -> torch.dtype | None:
        """Half precision for published models on a GPU, else the default."""
        is_half = self.preset_name == "paper" and torch.cuda.is_available()
        return torch.float16 if is_half else None


@dataclass(frozen=True, kw_only=True)
class EditPreset(Preset):
    """Base of the settings of experiments that edit clips."""

    CHOICES: ClassVar[dict[str, Collection]] = {"kinds": EDITS, "parts": PARTS}

    model: str = "miniature"  # or a folder or a hub id
    parts: Sequence[str] = ()  # of the model's own default edit, which every setting has
    clips: str = ""  # a folder of clips with edits.csv; "": sprite clips
    clip_model: str = miniature_path("clip")  # CLIPModel that scores: a folder or a hub id
    n_clips: int = 2  # sprite clips of the test split
    kinds: Sequence[str] = ("colour",)  # kinds of edit of sprite clips
    n_frames: int = 4  # frames per clip
    size: int = 64  # side of the square frames, in pixels
    steps: int = 6  # diffusion steps each way
    guidance: float = 2.0  # 7.5 is usual for Stable Diffusion
    n_processes: int = 1  # 0: one per core, or one on a GPU

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments that every `EditSetting` of the experiment shares."""
        sampling = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        return sampling | self.own_parts

    @property
    def own_parts(self) -> dict[str, Any]:
        """Where the parts lie, as arguments of an `EditSetting`."""
        return own_parts(self.model, self.parts)

    def cases(self) -> list[EditCase | ClipCase]:
        """The edits: those of the folder, or of sprite clips of the test split."""
        if self.clips:
            return folder_cases(self.clips)
        if not self.kinds or self.n_clips < 1:
            raise InputError(
                f"The preset {self.preset_name!r} edits clips of your own: give clips, a folder "
                "with edits.csv, or kinds and n_clips of sprite clips."
            )
        return edit_cases(WORLD, "test", self.n_clips, self.kinds)

    def compare(
        self, edit_settings: dict, output: str | Path,
        cases: Sequence[EditCase | ClipCase] | None = None, **options: Any,
    ) -> pd.DataFrame:  # fmt: skip
        """`comparison.compare` on cases, kept in `output`/rows.csv; resumes from it.

        cases: None is those of the settings.
        """
        run = Run(
            self.model, self.n_frames, self.size, self.clip_model, self.dtype,
            self.n_processes or None,
        )  # fmt: skip
        cases = self.cases() if cases is None else cases
        return compare(cases, edit_settings, Path(output) / "rows.csv", run, **options)

    def strip_of(
        self, edits: Mapping[str, EditSetting], seen: Sequence[str] = (), n_columns: int = 6,
        title: str | None = None, line: str = "\n",
    ) -> Picture:  # fmt: skip
        """The first case as a strip: source, what a ControlNet sees, each edit, the true edit.

        seen: names of such pictures, if the case has them. line: takes the place of ", " in the
        names of the edits. title: with {source_prompt} and {prompt}.
        """
        case = self.cases()[0]
        material = case.material(self.n_frames, self.size)
        pipe = quiet_pipeline(self.model, self.dtype)
        made = edited_frames(pipe, case, dict(edits), self.n_frames, self.size)
        rows = {"source": material.frames}
        rows |= {name: material.pictures[name] for name in seen if name in material.pictures}
        rows |= {name.replace(", ", line): frames.float() for name, frames in made.items()}
        if material.truth is not None:
            rows["true edit"] = material.truth
        words = {"source_prompt": case.source_prompt, "prompt": case.prompt}
        return strip(rows, n_columns, title and title.format(**words), 96)


@dataclass(frozen=True, kw_only=True)
class LaterClipsPreset(EditPreset):
    """Base of the settings of experiments whose clips were not used before."""

    first_clip: int = 0  # number of the first sprite clip

    def cases(self) -> list[EditCase | ClipCase]:
        """The edits: those of the folder, or of n_clips sprite clips from the first one on."""
        if self.clips or self.n_clips < 1:
            return super().cases()
        n = self.first_clip + self.n_clips
        cases = edit_cases(WORLD, "test", n, self.kinds)
        return [case for case in cases if case.index >= self.first_clip]


def results_folder(output: str | Path) -> str:
    """Where a notebook writes: an output "../runs/..." as an absolute path, others as they are."""
    parts = Path(output).parts
    if parts[:2] != ("..", "runs"):
        return str(output)
    if "google.colab" in sys.modules:
        return str(Path("/content").joinpath(*parts[1:]))
    root = Path(vala_research.__file__).parents[1]
    return str(root.joinpath(*parts[1:])) if (root / "notebooks").is_dir() else str(output)


def save_rows(rows: Iterable[Mapping[str, Any]], output: str | Path) -> pd.DataFrame:
    """Write the rows to `output`/rows.csv, whole or not at all; return them as a table."""
    path = Path(output) / "rows.csv"
    check_output(path, makes_parents=True)  # before the rows, which may be made one by one
    table = pd.DataFrame(list(rows))
    with written_whole(path) as unfinished:
        table.to_csv(unfinished, index=False)
    return table


def part_of(rows: pd.DataFrame, *parts: str) -> pd.DataFrame:
    """The rows of these parts, without the columns that they do not have."""
    return rows[rows.part.isin(parts)].dropna(axis=1, how="all")
