"""All fusions of one clip on a small grid of schedules, made once and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from matplotlib import rc_context
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor

from vala_research import InputError
from vala_research.editing.plan import Plan
from vala_research.evaluation.benchmark import run_edits
from vala_research.evaluation.cases import ClipCase, EditCase
from vala_research.evaluation.comparison_tables import METRICS
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import STYLE, Picture
from vala_research.experiments.fldm.settings import FRAMEWISE
from vala_research.files import written_whole
from vala_research.methods.fusion import KINDS, FusionSchedule

Point = tuple[str, float, float]  # kind, the video model's share at tau, tau
VALUES, TAUS = (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class FusionGrid:
    """One clip's edits by schedule, ratio and tau.

    frames: of the edits, i f 3 h w. rows: one dict per edit, the columns of `run_edits`.
    edit_of: the place of each point's edit; points of the same weights share one edit.
    source, truth: the clip and its true edit, if known. n_steps, prompt: of the edits.
    """

    frames: UInt8[Tensor, "i f 3 h w"]
    rows: list[dict]
    edit_of: dict[Point, int]
    source: UInt8[Tensor, "f 3 h w"]
    truth: UInt8[Tensor, "f 3 h w"] | None
    n_steps: int
    prompt: str

    def save(self, path: str | PathLike) -> Path:
        """One safetensors file, whole or not at all."""
        tensors = {"frames": self.frames, "source": self.source}
        tensors |= {} if self.truth is None else {"truth": self.truth}
        known = {"rows": self.rows, "points": [[*p, i] for p, i in self.edit_of.items()],
                 "n_steps": self.n_steps, "prompt": self.prompt}  # fmt: skip
        with written_whole(Path(path)) as unfinished:
            save_file(tensors, unfinished, {"grid": json.dumps(known)})
        return Path(path)

    @classmethod
    def load(cls, path: str | PathLike) -> FusionGrid:
        """Read what `save` wrote; raises InputError for anything else."""
        try:
            with safe_open(path, "pt") as file:
                known = json.loads(file.metadata()["grid"])
            tensors = load_file(path)
        except Exception as error:
            raise InputError(
                f"{path} holds no grid of fusions: give a file that one was saved to."
            ) from error
        edit_of = {(kind, a, tau): i for kind, a, tau, i in known.pop("points")}
        return cls(edit_of=edit_of, truth=tensors.pop("truth", None), **tensors, **known)


def fusion_grid(
    pipe,
    case: EditCase | ClipCase,
    kinds: Sequence[str] = KINDS,
    values: Sequence[float] = VALUES,
    taus: Sequence[float] = TAUS,
    n_frames: int = 8,
    size: int = 64,
    clip_scorer=None,
    motion: str = "miniature",
    **common,
) -> FusionGrid:
    """Edit a clip by every kind of schedule from every share a at every tau.

    Points of the same weights share one edit. common: arguments of every EditSetting.
    """
    # One setting per distinct weights, named by its number.
    n_steps = EditSetting(**common).num_inference_steps
    settings, edit_of, known = {}, {}, {}
    for kind in kinds:
        for a in values:
            for tau in taus:
                schedule = FusionSchedule(kind, (a, 1 - a), float(tau))
                i = known.setdefault(weighing(schedule, n_steps), len(known))
                edit_of[kind, float(a), float(tau)] = i
                plan = Plan(attentions=FRAMEWISE, schedule=schedule, motion=motion)
                settings.setdefault(str(i), EditSetting(fusion=plan, **common))

    # The frames come through the measure, which makes no column.
    kept, clip = [], {}

    def keep(frames: Tensor, material) -> dict:
        kept.append(in_bytes(frames))
        clip.update(source=in_bytes(material.frames),
                    truth=None if material.truth is None else in_bytes(material.truth))  # fmt: skip
        return {}

    rows = list(run_edits(pipe, [case], settings, n_frames, size, keep, clip_scorer))
    return FusionGrid(torch.stack(kept), rows, edit_of, n_steps=n_steps, prompt=case.prompt, **clip)


def weighing(schedule: FusionSchedule, n_steps: int) -> str:
    """A key that is equal for schedules of two sources that must give one result.

    A model that has all the weight at every fused step is alone, whatever tau is.
    """
    weights = [schedule.weights(i, n_steps) for i in range(n_steps)]
    shares = {w[0] for w in weights if w is not None}  # none: source 0 is the result
    alone = next((name for a, name in ((1, "video"), (0, "image")) if shares <= {a}), None)
    return alone or repr(weights)


def in_bytes(frames: Float[Tensor, "f 3 h w"]) -> UInt8[Tensor, "f 3 h w"]:
    return frames.detach().cpu().mul(255).round().clamp(0, 255).byte()


def sheet(grid: FusionGrid, kind: str, frame: int | None = None) -> Picture:
    """Draw one frame (None: the middle one) of every edit of a kind: a down, tau across."""
    points = [p for p in grid.edit_of if p[0] == kind]
    values, taus = (sorted({p[i] for p in points}) for i in (1, 2))
    frame = grid.source.shape[0] // 2 if frame is None else frame
    with rc_context(STYLE | {"axes.grid": False}):
        fig = Picture(figsize=(1.0 + 1.05 * len(taus), 0.5 + 1.15 * len(values)))
        axes = fig.subplots(len(values), len(taus), squeeze=False)
        for line, a in zip(axes, values, strict=True):
            line[0].set_ylabel(f"a = {a:g}")
            for ax, tau in zip(line, taus, strict=True):
                i = grid.edit_of[kind, a, tau]
                ax.imshow(rearrange(grid.frames[i, frame], "c h w -> h w c").numpy())
                ax.set_xlabel(captions(grid.rows[i]), fontsize=7, labelpad=2)
                ax.set(xticks=[], yticks=[])
        for ax, tau in zip(axes[0], taus, strict=True):
            ax.set_title(f"tau {tau:g}")
    return fig


def captions(row: dict) -> str:
    """The two metrics of an edit in a few letters."""
    shown = [m for m in ("clip_t", "warp_error") if m in row]
    return "\n".join(f"{METRICS[m].axis} {METRICS[m].factor * row[m]:.3g}" for m in shown)
