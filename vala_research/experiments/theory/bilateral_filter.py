"""What a bilateral filter did to images, beside what it can do: distances and stretches.

Theory of GE-Adapter (arXiv 2504.16016), Lemma C.7.
"""

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from vala_research.evaluation.figures import COLOURS, STYLE
from vala_research.methods.bilateral import (
    bias_bound,
    bilateral_filter_frames,
    lipschitz_bound,
    neighbour_mass,
)


def distance_rows(
    kind: str, x: Float[Tensor, "f n"], xbar: Float[Tensor, "f n"], sigma: float = 1.0
) -> list[dict]:
    """RMS distance of each column to another, before and after filtering along frames, three taps.

    bound: before + b(S) sigma, the corrected C.7 over sqrt(f); the paper's is before itself.
    """
    filtered = bilateral_filter_frames(x, 3, 1.0, sigma)
    bias = bias_bound(neighbour_mass(3, 1.0, n_axes=1), sigma)
    before, after = ((y - xbar).square().mean(0).sqrt() for y in (x, filtered))
    return [{"kind": kind, "before": b, "after": a, "bound": b + bias}
            for b, a in zip(before.tolist(), after.tolist(), strict=True)]  # fmt: skip


def random_pairs(
    n_frames: int, n: int, generator: torch.Generator
) -> tuple[Float[Tensor, "f n"], Float[Tensor, "f n"]]:
    """Images of deviations 0.3 to 3 and others at distances from 0 to 1.5."""
    x, e = (torch.randn(n_frames, n, generator=generator, dtype=torch.float64) for _ in "xe")
    scale, size = (torch.rand(n, generator=generator, dtype=torch.float64) for _ in "se")
    x = 0.3 * 10**scale * x
    return x, x + 1.5 * size * e / e.square().mean(0).sqrt()


def worst_pairs(n_frames: int, n: int) -> tuple[Float[Tensor, "f n"], Float[Tensor, "f n"]]:
    """Pairs that attain the corrected bound: x alternates by u sigma, xbar lies behind it."""
    b = bias_bound(neighbour_mass(3, 1.0, n_axes=1), 1.0)
    u = (b + sqrt(b**2 + 4)) / 2  # u - 1/u = b
    x = u * (torch.arange(n_frames, dtype=torch.float64) % 2)[:, None].expand(-1, n)
    shift = bilateral_filter_frames(x, 3, 1.0, 1.0) - x
    return x, x - torch.linspace(0, 1.5, n, dtype=torch.float64) / b * shift


def filter_figure(pairs: Sequence[Mapping], found: Sequence[Mapping]) -> Figure:
    """Left, distances after over before: the paper's diagonal, the corrected line. Right, stretch.

    pairs: of `distance_rows`. found: rows of window, mass, norm ("largest site" or "Euclidean")
    and stretch, the largest found by attacks; the curve is `lipschitz_bound`, attained.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.7))
        left, right = figure.subplots(1, 2)
        _distances(left, pairs)
        _stretches(right, found)
    return figure


def _distances(axes, pairs: Sequence[Mapping]) -> None:
    kinds = list(dict.fromkeys(row["kind"] for row in pairs))
    longest = max(row["before"] for row in pairs)
    ends = np.array([0, longest])
    bias = pairs[0]["bound"] - pairs[0]["before"]
    axes.plot(ends, ends + bias, color="black", label="corrected: + b(S) sigma")
    axes.plot(ends, ends, color=COLOURS[1], linestyle="--", label="paper (57): no further")
    for kind, colour in zip(kinds, (COLOURS[5], COLOURS[0], COLOURS[2]), strict=False):
        chosen = [row for row in pairs if row["kind"] == kind]
        axes.scatter([r["before"] for r in chosen], [r["after"] for r in chosen], s=7,
                     color=colour, alpha=0.7, linewidths=0, label=kind, zorder=3)  # fmt: skip
    axes.set(xlabel="RMS |x - xbar| / sigma", ylabel="RMS |B(x) - xbar| / sigma",
             title="Distance to another image", xlim=(0, None), ylim=(0, None))  # fmt: skip
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.02), handlelength=1.4)


def _stretches(axes, found: Sequence[Mapping]) -> None:
    mass = np.geomspace(0.5, 60, 100)
    axes.plot(mass, [lipschitz_bound(float(s)) for s in mass], color="black",
              label="proved, largest site: 1 + 4 W(S exp(-3/2))")  # fmt: skip
    axes.axhline(1, color=COLOURS[1], linestyle="--", label="paper: non-expansive")
    for norm, colour, marker in (("largest site", COLOURS[0], "o"), ("Euclidean", COLOURS[2], "s")):
        chosen = [row for row in found if row["norm"] == norm]
        axes.scatter([r["mass"] for r in chosen], [r["stretch"] for r in chosen], s=14,
                     color=colour, marker=marker, label=f"attacked, {norm}", zorder=3)  # fmt: skip
        for row in chosen:
            side = -9 if row["mass"] < 1.3 else 10 if row["mass"] < 2 else 0  # else they meet
            place = (side, 4 if side < 1 else -8) if norm == "largest site" else (0, -10)
            axes.annotate(row["window"], (row["mass"], row["stretch"]), place, ha="center",
                          textcoords="offset points", fontsize=6)  # fmt: skip
    axes.set(xscale="log", xlabel="spatial weights of the neighbours, S",
             ylabel="|B(x) - B(y)| / |x - y|", title="Stretch of a difference",
             ylim=(0.5, None))  # fmt: skip
    axes.legend(loc="upper left", handlelength=1.4)
