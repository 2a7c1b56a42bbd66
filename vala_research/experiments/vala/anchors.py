"""Anchors of a clip: how many are in use, and the loss of their key frames (notebook 10).

Both are judged where the right answer is known: the shots of sprite clips, and the best of all
sets of key frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import Tensor

from vala_research import InputError, read_clip
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation import statistics
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.statistics import paired_gain
from vala_research.evaluation.verdicts import OPEN, Claim
from vala_research.experiments.contract import STABLE_DIFFUSION, Preset, save_rows
from vala_research.experiments.vala.anchor_figures import anchor_map
from vala_research.experiments.vala.anchor_quality import (
    effective_anchors,
    frame_descriptors,
    keyframe_excess,
    n_scenes,
    scene_counts,
    sprite_clip,
)
from vala_research.methods.anchors import Anchors, AnchorSettings, assign_anchors

PER_FRAME, PER_SITE = "one descriptor per frame", "one descriptor per site"
KEYFRAMES, SHOTS = "key frames", "shots"
FEWEST = 10  # clips: fewer say little of either claim


@dataclass(frozen=True, kw_only=True)
class Settings(Preset):
    """Parameters of notebook 10."""

    PRESETS = {
        "smoke": {"priors": (1e-3, 1e-1, 10.0)},
        "paper": {"model": STABLE_DIFFUSION, "n_clips": 40},
    }

    CHOICES = {"granularity": ("site", "token")}

    model: str = "miniature"  # or a folder or a hub id
    clip: str = ""  # the pictured clip: a video, gif or folder of frames; "": see `shown`
    clips: str = ""  # a folder of clips; "": sprite clips, clip i has i mod 5 cuts
    n_clips: int = 10  # clips in the table, at most
    n_frames: int = 16  # frames per clip
    size: int = 0  # side of the square frames, in pixels; 0: the model's own
    n_anchors: int = 6  # anchors of the pictured clip, at most
    dirichlet: float = 0.1  # prior a0 of the anchors' weights
    contrastive_weight: float = 0.1  # of the InfoNCE term, in the refinement
    refinement_steps: int = 0  # Adam steps of the refinement; 0: plain variational Bayes
    granularity: str = "site"  # "site": an anchor is a pseudo-frame; "token": one token
    n_keyframes: int = 4  # key frames per clip
    shown: int = 7  # index of the pictured clip, when `clip` is ""
    seed: int = 0  # of the random key frames and the refinement
    priors: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # values of a0 that are compared

    @property
    def assignment(self) -> AnchorSettings:
        """Settings of the pictured anchors."""
        return AnchorSettings(
            self.n_anchors, self.dirichlet, self.contrastive_weight, self.refinement_steps,
            self.granularity, n_keyframes=self.n_keyframes,
        )  # fmt: skip

    def files(self) -> list[Path]:
        """The clips of the folder, without hidden files."""
        return sorted(Path(self.clips).glob("[!.]*"))[: self.n_clips] if self.clips else []

    def inputs(self) -> list[str | Path]:
        """The files that are read."""
        return [path for path in (self.clip, *self.files()) if path]

    def frames(self, i: int, size: int) -> tuple[Float[Tensor, "f 3 y x"], int | None]:
        """Frames of clip i at size x size pixels, and its number of shots (None: unknown)."""
        if self.clips:
            return read_clip(self.files()[i], self.n_frames, size=size).frames, None
        clip = sprite_clip(i, "test", self.n_frames, size)
        return clip.frames, n_scenes(clip)


@dataclass(frozen=True)
class Pictured:
    """The pictured clip: frames, latents, anchors, number of shots (None: unknown)."""

    pipe: Any
    size: int
    frames: Float[Tensor, "f 3 y x"]
    latents: Float[Tensor, "f c h w"]
    anchors: Anchors
    n_shots: int | None

    def map(self) -> Picture:
        """The clip's `anchor_map`."""
        return anchor_map(self.frames, self.anchors, tuple(self.latents.shape[-2:]))


def pictured(settings: Settings) -> Pictured:
    """Load the model and find the anchors of the pictured clip."""
    pipe = quiet_pipeline(settings.model, settings.dtype)
    size = settings.size or pipe.unet.config.sample_size * pipe.vae_scale_factor
    if settings.clip:
        frames, n_shots = read_clip(settings.clip, settings.n_frames, size=size).frames, None
    else:
        frames, n_shots = settings.frames(settings.shown, size)
    latents = pipe.encode(frames).float().cpu()
    generator = torch.Generator().manual_seed(settings.seed)
    anchors = assign_anchors(latents.flatten(2).mT, settings.assignment, generator)
    return Pictured(pipe, size, frames, latents, anchors, n_shots)


def run(settings: Settings, output: str | Path, clip: Pictured | None = None) -> pd.DataFrame:
    """Rows of each panel, named in column `panel`.

    clip: of `pictured`, so that the model is loaded once; None: it is found here.
    The panels: rows of `keyframe_excess`; of `scene_counts`, for sprite clips; of
    `effective_anchors` of the pictured clip, for both kinds of descriptors.
    """
    clip = clip or pictured(settings)
    n_clips = len(settings.files()) if settings.clips else settings.n_clips
    latents, shots = [], []
    for i in range(n_clips):
        frames, n_shots = settings.frames(i, clip.size)
        latents.append(clip.pipe.encode(frames).float().cpu())
        shots.append(n_shots)

    sites = [z.flatten(2).mT for z in latents]
    generator = torch.Generator().manual_seed(settings.seed)
    shown = clip.latents.flatten(2).mT
    panels = {
        KEYFRAMES: keyframe_excess(sites, settings.n_keyframes, generator=generator),
        SHOTS: [] if settings.clips else scene_counts(latents, shots),
        PER_FRAME: effective_anchors([frame_descriptors(clip.latents)], settings.priors),
        PER_SITE: effective_anchors([shown], settings.priors),
    }
    rows = [{"panel": panel} | row for panel in panels for row in panels[panel]]
    return save_rows(rows, output)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean, median and worst D(S) and excess of each method's key frames, the best first."""
    by_method = rows[rows.panel == KEYFRAMES].groupby("method")[["distortion", "excess"]]
    return by_method.agg(["mean", "median", "max"]).sort_values(("distortion", "mean"))


def claims(rows: pd.DataFrame) -> list[Claim]:
    """As many anchors as shots; VALA's key frames lose less than uniform ones."""
    excess = rows[rows.panel == KEYFRAMES]
    loss = excess.pivot(index="clip", columns="method", values="distortion")
    gain = paired_gain(loss["uniform"].to_numpy(), loss["vala"].to_numpy())
    means, n = excess.groupby("method").excess.mean().to_dict(), len(loss)
    lost = "Key frames of VALA lose less than uniform ones"
    facts = [
        Claim.of_fact(f"{lost} on average over these clips", "mean excess of uniform - VALA",
                      means["uniform"] - means["vala"], means["vala"] < means["uniform"], n),
    ]  # fmt: skip

    # The number of shots is known of sprite clips alone.
    counts = rows[rows.panel == SHOTS]
    if len(counts):
        share = float((counts.found == counts.scenes).mean())
        facts.append(
            Claim.of_fact("As many anchors as shots on 9 of 10 clips at least",
                          "share of clips", share, share >= 0.9, len(counts))
        )  # fmt: skip
    if n < FEWEST:
        facts = [replace(fact, verdict=OPEN, is_asserted=False) for fact in facts]
    return [Claim.of_gain(lost, "D(S), reduction", gain), *facts]


@drawn
def figure(rows: pd.DataFrame, n_shots: int | None = None) -> Picture:
    """Draw effective anchors of each kind of descriptor beside the excess of key frames.

    n_shots: of the pictured clip; it belongs to the descriptors of frames.
    """
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, 2.3), layout="constrained")
        first, second, last = fig.subplots(1, 3)
        effective_anchors_curve(rows[rows.panel == PER_FRAME], first, n_shots)
        effective_anchors_curve(rows[rows.panel == PER_SITE], second)
        second.get_legend().remove()  # the colours are the first panel's
        second.set_ylabel("")
        keyframe_excess_strip(rows[rows.panel == KEYFRAMES], last)
        for ax, title in zip((first, second, last), (PER_FRAME, PER_SITE, KEYFRAMES), strict=True):
            ax.set_title(title)
    return fig


def effective_anchors_curve(rows: pd.DataFrame, ax: Axes, n_shots: float | None = None) -> None:
    """Draw the effective number of anchors against the prior, one line per bound; grey: the shots.

    rows: of `effective_anchors`. Mean and 95% bootstrap interval over clips, if there are enough.
    Where bounds agree, the tighter bound is the wider line.
    """
    import seaborn as sns

    if rows.empty:
        raise InputError("There are no rows: give those of effective_anchors.")
    rows = rows.astype({"n_anchors": int})
    bounds = sorted(rows.n_anchors.unique())
    interval = ("ci", 95) if rows["clip"].nunique() >= statistics.FEWEST else None
    sns.lineplot(rows, x="dirichlet", y="n_effective", hue="n_anchors", size="n_anchors",
                 palette=COLOURS[: len(bounds)], sizes=np.geomspace(4, 1, len(bounds)).tolist(),
                 size_order=bounds, marker="o", errorbar=interval, seed=0, ax=ax)  # fmt: skip
    if n_shots is not None:
        ax.axhline(n_shots, color="#999999", linewidth=7, zorder=0, alpha=0.4, label="shots")
    ax.set(xscale="log", xlabel="prior a0", ylabel="effective anchors", ylim=(0, 1.1 * bounds[-1]))
    ax.minorticks_off()
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.legend(title="at most")


def keyframe_excess_strip(rows: pd.DataFrame, ax: Axes) -> None:
    """Draw the excess of D(S) over the best set in percent, one dot per clip and method.

    rows: of `keyframe_excess`. The bar is the median; the axis is linear up to 1%.
    """
    import seaborn as sns

    if rows.empty:
        raise InputError("There are no rows: give those of keyframe_excess.")
    rows = rows.assign(excess=100 * rows.excess)
    medians = rows.groupby("method", sort=False).excess.median()
    order = list(medians.index)
    sns.stripplot(rows, x="excess", y="method", order=order, size=2.5, alpha=0.5,
                  color=COLOURS[0], jitter=0.25, ax=ax)  # fmt: skip
    ax.scatter(medians, range(len(medians)), marker="|", s=120, color="black", zorder=5)
    ax.set_xscale("symlog", linthresh=1)
    ax.set(xlabel="D(S) above the best set, %", ylabel="", xlim=(-0.3, None))
