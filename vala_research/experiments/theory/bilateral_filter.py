"""Notebook 42: how far a bilateral filter moves images, and how far it stretches differences.

GE-Adapter (arXiv 2501.04606), appendix C, Lemma C.7. sigma is fixed: the default
`BilateralSettings`, whose sigma follows the clip, has a larger constant (theory/README.md, B9).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import Tensor

from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import save_rows
from vala_research.experiments.network_preset import ClipPreset
from vala_research.methods.bilateral import (
    bias_bound,
    bilateral_filter_frames,
    lipschitz_bound,
    neighbour_mass,
)

RANDOM, CLIP, WORST = "random images", "latents of a clip, and noised", "the worst images"


@dataclass(frozen=True, kw_only=True)
class Settings(ClipPreset):
    """Parameters of notebook 42; `n_frames` is also the number of sites of a random image."""

    n_frames: int = 8  # of the clip
    n_random: int = 300  # random pairs
    n_steps: int = 300  # of an attack
    seed: int = 1  # of attacks, images and noise; the table of all statements takes 0


def run(settings: Settings, output: str | Path, stretch: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of `distance_rows`, part "distance", and those of `theory.measurements.filter_stretch`.

    The latents of the clip are compared with noised ones at every seventh site.
    """
    pipe = quiet_pipeline(settings.model)
    generator = torch.Generator().manual_seed(settings.seed)
    latents = pipe.encode(settings.case(pipe).frames).cpu().double().flatten(1)[:, ::7]
    noise = torch.randn(latents.shape, generator=generator, dtype=torch.float64)
    n = settings.n_frames
    rows = [
        *distance_rows(RANDOM, *random_pairs(n, settings.n_random, generator)),
        *distance_rows(CLIP, latents, latents + 0.5 * noise),
        *distance_rows(WORST, *worst_pairs(n, 12)),
    ]
    return save_rows([*({"part": "distance"} | row for row in rows), *stretch], output)


def distance_rows(
    kind: str, x: Float[Tensor, "f n"], xbar: Float[Tensor, "f n"], sigma: float = 1.0
) -> list[dict]:
    """Measure the RMS distance of each column to another, before and after filtering along frames.

    The filter has three taps. bound: before + b(S) sigma, the corrected C.7 over sqrt(f); the
    paper's bound is `before` itself.
    """
    filtered = bilateral_filter_frames(x, 3, 1.0, sigma)
    bias = bias_bound(neighbour_mass(3, 1.0, n_axes=1), sigma)
    before, after = ((y - xbar).square().mean(0).sqrt() for y in (x, filtered))
    return [{"kind": kind, "before": b, "after": a, "bound": b + bias}
            for b, a in zip(before.tolist(), after.tolist(), strict=True)]  # fmt: skip


def random_pairs(
    n_frames: int, n: int, generator: torch.Generator
) -> tuple[Float[Tensor, "f n"], Float[Tensor, "f n"]]:
    """Draw images of deviations 0.3 to 3, and others at distances from 0 to 1.5."""
    x, e = (torch.randn(n_frames, n, generator=generator, dtype=torch.float64) for _ in "xe")
    scale, size = (torch.rand(n, generator=generator, dtype=torch.float64) for _ in "se")
    x = 0.3 * 10**scale * x
    return x, x + 1.5 * size * e / e.square().mean(0).sqrt()


def worst_pairs(n_frames: int, n: int) -> tuple[Float[Tensor, "f n"], Float[Tensor, "f n"]]:
    """Construct pairs that attain the bound: x alternates by u sigma, xbar lies behind it."""
    b = bias_bound(neighbour_mass(3, 1.0, n_axes=1), 1.0)
    u = (b + sqrt(b**2 + 4)) / 2  # u - 1/u = b
    x = u * (torch.arange(n_frames, dtype=torch.float64) % 2)[:, None].expand(-1, n)
    shift = bilateral_filter_frames(x, 3, 1.0, 1.0) - x
    return x, x - torch.linspace(0, 1.5, n, dtype=torch.float64) / b * shift


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Verdicts on the statements; then, per kind of pair, how often and how far they part."""
    verdicts, pairs = (rows[rows.part == part] for part in ("verdict", "distance"))
    judged = verdicts.set_index("statement")[["verdict", "measured", "bound", "tightness"]]
    return pd.concat([judged, _parting(pairs)])


def _parting(pairs: pd.DataFrame) -> pd.DataFrame:
    share = (pairs.after - pairs.before) / (pairs.bound - pairs.before)
    parts = pairs.assign(further=pairs.after > pairs.before, share=share).groupby("kind")
    return pd.DataFrame({"pairs further apart": parts.further.mean(),
                         "largest share of the bound": parts.share.max()})  # fmt: skip


def claims(rows: pd.DataFrame) -> list[Claim]:
    """The verdicts reproduce; images part, within the bound, which is attained."""
    verdicts, pairs = (rows[rows.part == part] for part in ("verdict", "distance"))
    parting, is_sound = _parting(pairs), verdicts.reproduced.astype(bool)
    further = parting["pairs further apart"][RANDOM]
    share = parting["largest share of the bound"][WORST]
    return [
        Claim.of_fact("every verdict on C.7 reproduces", "share of verdicts",
                      is_sound.mean(), is_sound.all(), len(verdicts)),
        Claim.of_fact("no pair is further apart than before + b(S) sigma",
                      "largest after / bound", (pairs.after / pairs.bound).max(),
                      (pairs.after <= pairs.bound * (1 + 1e-9)).all(), len(pairs)),
        Claim.of_fact("the bound is attained", "largest share of it", share, share > 0.999),
        Claim.of_fact("filtering brings random images further apart", "share of pairs",
                      further, further > 0),
    ]  # fmt: skip


@drawn(claim="further apart, share")
def figure(rows: pd.DataFrame) -> Picture:
    """Draw distances after over before, and stretches over the window's mass.

    Left: the paper's diagonal and the corrected line. Right: what attacks find, and the curve of
    `lipschitz_bound`, which is attained.
    """
    with rc_context(STYLE):
        picture = Picture(figsize=(PAGE, 2.7), layout="constrained")
        left, right = picture.subplots(1, 2)
        _distances(left, rows[rows.part == "distance"])
        _stretches(right, rows[rows.part == "stretch"])
    return picture


def _distances(axes: Axes, pairs: pd.DataFrame) -> None:
    ends = np.array([0, pairs.before.max()])
    bias = (pairs.bound - pairs.before).iloc[0]
    axes.plot(ends, ends + bias, color="black", label="corrected: + b(S) sigma")
    axes.plot(ends, ends, color=COLOURS[1], linestyle="--", label="paper (57): no further")
    for (kind, part), colour in zip(
        pairs.groupby("kind", sort=False), (COLOURS[5], COLOURS[0], COLOURS[2]), strict=False
    ):
        axes.scatter(part.before, part.after, s=7, color=colour, alpha=0.7, linewidths=0,
                     label=kind, zorder=3)  # fmt: skip
    axes.set(xlabel="RMS |x - xbar| / sigma", ylabel="RMS |B(x) - xbar| / sigma",
             title="Distance to another image", xlim=(0, None), ylim=(0, None))  # fmt: skip
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.02), handlelength=1.4)


def _stretches(axes: Axes, largest: pd.DataFrame) -> None:
    mass = np.geomspace(0.5, 60, 100)
    axes.plot(mass, [lipschitz_bound(float(s)) for s in mass], color="black",
              label="proved, largest site: 1 + 4 W(S exp(-3/2))")  # fmt: skip
    axes.axhline(1, color=COLOURS[1], linestyle="--", label="paper: non-expansive")
    for norm, colour, marker in (("largest site", COLOURS[0], "o"), ("Euclidean", COLOURS[2], "s")):
        part = largest[largest.norm == norm]
        axes.scatter(part.mass, part.stretch, s=14, color=colour, marker=marker,
                     label=f"attacked, {norm}", zorder=3)  # fmt: skip
        for row in part.itertuples():
            side = -9 if row.mass < 1.3 else 10 if row.mass < 2 else 0  # else they meet
            place = (side, 4 if side < 1 else -8) if norm == "largest site" else (0, -10)
            axes.annotate(row.window, (row.mass, row.stretch), place, ha="center",
                          textcoords="offset points", fontsize=7)  # fmt: skip
    axes.set(xscale="log", xlabel="spatial weights of the neighbours, S",
             ylabel="|B(x) - B(y)| / |x - y|", title="Stretch of a difference",
             ylim=(0.5, None))  # fmt: skip
    axes.legend(loc="upper left", handlelength=1.4)
