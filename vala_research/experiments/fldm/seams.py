"""Seams of a clip that is edited in windows, and how much they show.

A seam is a pair of neighbouring frames to which the windows contribute in different shares: every
pair across an overlap, where one window's prediction gives way to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from vala_research.editing.source import shares_of, windows_of
from vala_research.evaluation.cases import Material
from vala_research.evaluation.comparison_tables import per_clip
from vala_research.evaluation.metrics import warp_error
from vala_research.experiments.fldm.settings import IMAGE


def seams(n_frames: int, window: int | None, overlap: int) -> list[int]:
    """Pairs (t, t+1), by t, whose frames are not made by the same windows in the same shares."""
    windows = windows_of(n_frames, window, overlap)
    if not windows:
        return []
    shares = shares_of(windows)
    return (shares.diff(dim=1).abs() > 1e-6).any(0).nonzero()[:, 0].tolist()


@dataclass(frozen=True)
class SeamError:
    """A measure for `run_edits`: E_warp at the seams of these windows, and elsewhere.

    Every pair weighs the same, however much of it is hidden. NaN where there is no seam.
    """

    window: int
    overlap: int

    def __call__(self, frames: Float[Tensor, "f c h w"], material: Material) -> dict[str, float]:
        at = set(seams(len(frames), self.window, self.overlap))
        errors = pair_errors(frames, material)
        inside = [e for t, e in enumerate(errors) if t in at]
        outside = [e for t, e in enumerate(errors) if t not in at]
        mean = {"seam_warp": inside, "other_warp": outside}
        return {k: float(np.nanmean(v)) if v else float("nan") for k, v in mean.items()}


def pair_errors(frames: Float[Tensor, "f c h w"], material: Material) -> list[float]:
    """E_warp of every pair of neighbours; NaN where nothing can be followed."""
    flow, valid = material.flow, material.flow_valid
    return [
        warp_error(frames[t : t + 2], flow[t : t + 1], valid[t : t + 1])
        if valid[t].any()
        else float("nan")
        for t in range(len(frames) - 1)
    ]


def seam_excess(rows: pd.DataFrame, name: str) -> np.ndarray:
    """One value per clip: log(E_warp at seams / elsewhere) of a setting, minus the image model's.

    The image model knows no windows, but its ratio holds the clip's own motion at the same pairs.
    """
    rows = rows.dropna(subset=["seam_warp", "other_warp"])
    if rows.empty or name not in set(rows.setting) or IMAGE not in set(rows.setting):
        return np.empty(0)
    rows = rows.assign(ratio=np.log(rows.seam_warp / rows.other_warp))
    values = per_clip(rows, "ratio", dict.fromkeys((name, IMAGE)))
    return (values[name] - values[IMAGE]).dropna().to_numpy()
