"""Notebook 14: TokenFlow with VALA's key frames, beside random and other ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vala_research.diffusion.token_flow import TokenFlow
from vala_research.editing.hosts import HOSTS
from vala_research.evaluation.comparison_figures import gains_figure
from vala_research.evaluation.comparison_tables import METRICS, comparison_table, gain_of
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import drawn
from vala_research.evaluation.flops import forward_flops, meta_policy, meta_unet
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import CLIP, POINT, PUBLISHED
from vala_research.experiments.vala.motion_preset import MotionPreset, by_motion, motions_of

RANDOM, ONCE = "random key frames", "random key frames, drawn once"
VALA, ANEW = "VALA key frames", "VALA key frames, drawn anew"
JUDGED = ("warp_error_truth", "warp_error", "jitter", "psnr", "success")


@dataclass(frozen=True, kw_only=True)
class Settings(MotionPreset):
    """Parameters of notebook 14."""

    PRESETS = {
        "smoke": {"n_clips": 1, "n_frames": 4, "batch": 2, "steps": 2},
        "sprites": POINT | {"n_clips": 8, "n_frames": 24, "motions": ("usual", "fast", "cut")},
        "paper": {**PUBLISHED, "clip_model": CLIP, "n_frames": 32, "n_processes": 0},
    }

    kinds: Sequence[str] = ("several",)  # kinds of edit of sprite clips
    batch: int = 8  # frames per key frame


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """TokenFlow as released, and with key frames that are chosen once, by several methods.

    The released rule draws its key frames anew at every step and mixes by batches. "random key
    frames" draws them alike, and mixes as the chosen ones do. From "drawn once" the chosen ones
    differ by the choice alone. "drawn anew" draws at every step one of the frames that each of
    VALA's key frames serves.
    """
    flows = {
        "frame by frame": "own",
        "released": TokenFlow(settings.batch),
        RANDOM: TokenFlow(settings.batch, mixing="nearest"),
        ONCE: TokenFlow(settings.batch, mixing="nearest", redraws=False),
        "uniform key frames": TokenFlow(settings.batch, "uniform"),
        "k-means key frames": TokenFlow(settings.batch, "kmeans"),
        VALA: TokenFlow(settings.batch, "vala"),
        ANEW: TokenFlow(settings.batch, "vala", redraws=True),
    }
    injection = HOSTS["token_flow"].injection
    return {
        name: EditSetting(flow, injection=injection, **settings.sampling)
        for name, flow in flows.items()
    }


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """One row per setting, motion, kind of edit and clip, with the cost; resumes from `output`."""
    settings_by_name = edit_settings(settings)
    rows = settings.compare(settings_by_name, output)
    flow = relative_cost(settings.batch)
    costs = {name: 1.0 if s.attention == "own" else flow for name, s in settings_by_name.items()}
    return rows.assign(motion=motions_of(rows, settings), cost=rows.setting.map(costs))


def relative_cost(batch: int, n_frames: int = 32) -> float:
    """FLOPs of a guided step of TokenFlow at Stable Diffusion 1.5's size, over frame by frame.

    Both have the source as a third branch, which is injected. The choice of key frames costs
    nothing here.
    """
    unet, shape = meta_unet(), (n_frames, 64, 64)
    flow = meta_policy(TokenFlow(batch), *shape)
    own, ours = (forward_flops(unet, policy, *shape, n_branches=3) for policy in ("own", flow))
    return ours / own


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """`comparison_table` against random key frames per motion, and the cost of each setting."""
    tables = [
        comparison_table(part, RANDOM).assign(motion=motion)
        for motion, part in by_motion(rows).items()
    ]
    compared = pd.concat(tables, ignore_index=True)
    return compared.assign(cost=compared.setting.map(_costs(rows)))


@drawn
def figure(rows: pd.DataFrame) -> Figure:
    """What each choice gains on random key frames, its cost beside its name."""
    gains = table(rows)
    if gains.motion.nunique() > 1:
        named = gains.setting + ", " + gains.motion
        gains["setting"] = gains.setting.where(gains.setting == RANDOM, named)
    return gains_figure(gains, dict(zip(gains.setting, gains.cost, strict=True)))


def claims(rows: pd.DataFrame) -> list[Claim]:
    """VALA's key frames against others, and drawing anew against drawing once, per motion.

    These are reported. Asserted: the choice of key frames changes the edit.
    """
    parts, known = by_motion(rows), set(rows.setting)
    pairs = [(VALA, than) for than in (RANDOM, ONCE, "uniform key frames", "released")]
    pairs += [(RANDOM, ONCE), *((ANEW, than) for than in (RANDOM, VALA, "released"))]
    stated = [
        _gain_claim(part, metric, better, than, motion * (len(parts) > 1))
        for motion, part in parts.items()
        for better, than in pairs if {better, than} <= known
        for metric in (m for m in JUDGED if m in part and part[m].notna().any())
    ]
    warp = rows.pivot_table("warp_error", ["motion", "kind", "index"], "setting")
    alike = int((warp[VALA] == warp[RANDOM]).sum())
    return [*stated, Claim.of_fact("the key frames change the edit", "edits alike", alike,
                                   alike < len(warp))]  # fmt: skip


def _gain_claim(rows: pd.DataFrame, metric: str, better: str, than: str, motion: str) -> Claim:
    shown = METRICS[metric]
    where = f" ({motion})" if motion else ""
    measured = f"{shown.axis}, {'gain' if shown.sign > 0 else 'reduction'}"
    gain = gain_of(rows, metric, better, than, shown.sign)
    return Claim.of_gain(f"{better} beat {than} in {shown.axis}{where}", measured, gain)


def _costs(rows: pd.DataFrame) -> dict[str, float]:
    return dict(zip(rows.setting, rows.cost, strict=True))
