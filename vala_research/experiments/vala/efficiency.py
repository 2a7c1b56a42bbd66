"""What anchors cost: FLOPs of an edit, the assignment itself, and memory (notebook 13).

FLOPs are counted, not timed, on the Stable Diffusion 1.5 configuration without weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from matplotlib import rc_context
from torch import Tensor

from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.figures import COLOURS, COLUMN, STYLE, Picture, drawn
from vala_research.evaluation.flops import meta_unet
from vala_research.evaluation.memory import edit_memory
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import STABLE_DIFFUSION, Preset, part_of, save_rows
from vala_research.experiments.vala.assignment_cost import (
    assignment_flops,
    assignment_speed,
    latent_tokens,
)
from vala_research.experiments.vala.attention_cost import CURVES, cost_curves, editors, flop_table
from vala_research.methods.anchors import AnchorSettings
from vala_research.sprites.render import render
from vala_research.sprites.scene import WORLD, random_scene, split_generator

SIDE = 64  # of the latents whose edit is counted: 512 pixels
MEMORY_POLICIES = ("own", "extended", "anchors site", "anchors token")
AIMS = {"own + 2 site anchors": 1.35, "own + 256 token anchors": 1.03}


@dataclass(frozen=True, kw_only=True)
class Settings(Preset):
    """Parameters of notebook 13."""

    PRESETS = {
        "smoke": {},
        "paper": {
            "model": STABLE_DIFFUSION, "curve_frames": (8, 16, 64, 128),
            "memory_frames": (16, 64, 128), "is_fresh": True, "n_tokens": 4096, "sprite_size": 256,
            "memory_policies": ("own", "anchors site", "anchors token", "extended"),
        },
    }  # fmt: skip

    CHOICES = {"memory_policies": MEMORY_POLICIES}

    model: str = "miniature"  # whose memory is measured; or a folder or a hub id
    size: int = 0  # side of the square frames whose memory is measured; 0: 64 or 512 by the model
    n_frames: int = 32  # frames per clip in the table
    curve_frames: tuple[int, ...] = (8, 128)  # frames per clip in the first figure, besides
    memory_frames: tuple[int, ...] = (8, 16)  # frames per clip in the second figure, ascending
    memory_policies: tuple[str, ...] = ("own", "anchors site")
    is_fresh: bool = False  # one new process per measurement of memory
    n_tokens: int = 1024  # tokens per frame whose assignment is counted
    sprite_size: int = 128  # side of the sprite frames whose assignment is timed
    seed: int = 0  # of the noise that is assigned


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Rows of each measurement, named in column `part`.

    The parts: "policies" and "curves" are rows of `flop_table`; "assignment" is the share of one
    UNet forward of the clip; "speed" is rows of `assignment_speed`; "memory" is of `edit_memory`.
    """
    unet, n = meta_unet(), settings.n_frames
    policies = flop_table(unet, editors(n, SIDE, SIDE), n, SIDE, SIDE)
    forward = 1e12 * policies[0]["tflop"] * n  # FLOPs, own frame alone
    size = settings.size or (64 if settings.model == "miniature" else 512)
    dtype = "float16" if settings.dtype else "float32"
    parts = {
        "policies": policies,
        "curves": cost_curves(unet, settings.curve_frames, SIDE, SIDE),
        "assignment": [assignment_share(settings, forward)],
        "speed": speeds(settings),
        "memory": [
            row
            for name in settings.memory_policies
            for row in edit_memory(
                settings.memory_frames, *name.split(), model=settings.model, size=size,
                dtype=dtype, is_fresh=settings.is_fresh,
            )
        ],
    }  # fmt: skip
    return save_rows([{"part": part} | row for part in parts for row in parts[part]], output)


def assignment_share(settings: Settings, forward: float) -> dict:
    """Bound the FLOPs of an assignment, relative to one UNet forward of the clip.

    forward: FLOPs of that forward at 4096 tokens per frame. The assignment is of noise, where no
    structure ends the 50 sweeps early.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    noise = torch.randn(settings.n_frames, settings.n_tokens, 4, generator=generator)
    flops = assignment_flops(noise, AnchorSettings(tolerance=-1.0))["flops"]
    share = flops / (settings.n_tokens / SIDE**2) / forward
    return {"frames": settings.n_frames, "flops": flops, "share": share}


def speeds(settings: Settings) -> list[dict]:
    """Time the assignment beside KMeans: on a sprite clip and, in preset paper, on wide tokens."""
    scene = random_scene(split_generator("validation", 0), world=WORLD)
    clip = render(scene, settings.n_frames, settings.sprite_size).frames
    features = [latent_tokens(quiet_pipeline("miniature"), clip).cpu()]
    if settings.preset_name == "paper":
        features.append(planted_tokens(settings.n_frames, settings.seed))
    return [
        {"frames": len(x), "tokens": str(x.shape[:2])} | assignment_speed(x, repeats=3)
        for x in features
    ]


def planted_tokens(n_frames: int, seed: int) -> Tensor:
    """Draw 1024 tokens per frame of width 320 around 12 directions."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(12, (n_frames, 1024), generator=generator)
    centres = torch.randn(12, 320, generator=generator)
    return centres[which] + 0.3 * torch.randn(n_frames, 1024, 320, generator=generator)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """FLOPs of every policy, the aims, and the cost of an edit with guidance (2 branches back)."""
    policies = part_of(rows, "policies").set_index("policy").drop(columns="part")
    edit = policies.tflop * policies.frames * 50 * 3
    return policies.assign(aim=pd.Series(AIMS), **{"TFLOP of 50 + 50 steps": edit})


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Anchors cost what is aimed at, the assignment a hundredth, memory is no more than linear."""
    policies = table(rows)
    claims = [
        Claim.of_fact(f"{name} costs at most {aim} times editing frame by frame",
                      "relative FLOPs", policies.ratio[name], bool(policies.ratio[name] <= aim))
        for name, aim in AIMS.items()
    ]  # fmt: skip
    error = float((policies.ratio / policies.arithmetic - 1).abs().max())
    share = float(part_of(rows, "assignment").share.max())
    faster = float(part_of(rows, "speed").ratio.min())
    speed = Claim.of_fact("The assignment is faster than KMeans on the same tokens",
                          "time of KMeans relative to it", faster, faster > 1)  # fmt: skip
    claims += [
        Claim.of_fact("Counted FLOPs are those by hand", "relative error", error, error < 1e-6),
        Claim.of_fact("The assignment costs at most a hundredth of one UNet forward",
                      "share", share, share <= 0.01),
        replace(speed, is_asserted=False),  # machines differ
    ]  # fmt: skip
    return claims + growth_claims(part_of(rows, "memory"))


def growth_claims(rows: pd.DataFrame) -> list[Claim]:
    """Live memory grows no faster than the frames; anchors add at most a tenth to its slope."""
    lines = rows.groupby("attention", sort=False)
    growth = {name: slopes(line.to_dict("records"), "live") for name, line in lines}
    claims = []
    for name, slope in growth.items():
        if len(slope) > 1:
            bend = max(slope) / slope[0]
            claims.append(
                Claim.of_fact(f"Memory grows no faster than the frames ({name})",
                              "largest slope relative to the first", bend, bend <= 1.02)
            )  # fmt: skip
        if name != "own":
            more = slope[0] / growth["own"][0]
            claims.append(
                Claim.of_fact(f"Memory grows at most a tenth faster than frame by frame ({name})",
                              "relative slope", more, more <= 1.1)
            )  # fmt: skip
    return claims


def slopes(rows: Sequence[dict], measure: str) -> list[float]:
    """MiB per frame between consecutive lengths: equal slopes are linear growth."""
    return [
        (b[measure] - a[measure]) / (b["frames"] - a["frames"])
        for a, b in zip(rows, rows[1:], strict=False)
    ]


def costs(rows: pd.DataFrame) -> pd.DataFrame:
    """The counted FLOPs, which `figure` draws."""
    return part_of(rows, "policies", "curves").drop(columns="part")


@drawn
def figure(rows: pd.DataFrame) -> Picture:
    """Draw FLOPs relative to editing frame by frame, against the number of frames."""
    counted = costs(rows).sort_values("frames", kind="stable")
    with rc_context(STYLE):
        fig = Picture(figsize=(COLUMN, 2.6))
        axes = fig.add_subplot()
        for (name, label), colour, marker in zip(CURVES.items(), COLOURS, "osD^v", strict=False):
            line = counted[counted.policy == name].drop_duplicates("frames", keep="last")
            axes.plot(line.frames, line.ratio, color=colour, marker=marker, label=label)
        axes.axhline(1, color="black", linestyle=":", label="own frame alone")
        axes.set(xscale="log", yscale="log", xlabel="frames", ylabel="FLOPs / frame by frame")
        ticks = sorted(counted.frames.unique())
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        axes.minorticks_off()
        axes.legend(handlelength=1.8, labelspacing=0.3)
    return fig


@drawn(claim="grow")
def memory_figure(rows: pd.DataFrame, shows_process: bool = True) -> Picture:
    """Draw peak memory against frames: live tensors, and the growth of the process since the first.

    rows: of part "memory". shows_process: only where each measurement had a process of its own.
    """
    lines = rows.groupby("attention", sort=False)
    with rc_context(STYLE):
        fig = Picture()
        axes = fig.add_subplot()
        # Curves that coincide stay visible: each is drawn thinner on the one before.
        for i, ((name, line), colour) in enumerate(zip(lines, COLOURS, strict=False)):
            style = dict(linewidth=max(0.8, 4 - i), markersize=max(2, 7 - 1.5 * i))
            axes.plot(line.frames, line.live, "o-", color=colour, label=name, **style)
            if shows_process:
                grown = line.peak - line.peak.iloc[0] + line.live.iloc[0]
                axes.plot(line.frames, grown, "_", color=colour, markersize=14)
        if shows_process:
            axes.plot([], [], "_", color="grey", markersize=14, label="growth of the process")
        axes.set(xlabel="frames", ylabel="peak memory, MiB", ylim=(0, None))
        axes.set_xticks(sorted(rows.frames.unique()))
        axes.legend()
    return fig
