"""Notebook 43: how errors may grow along a path, by which bound, and how they do.

GE-Adapter (arXiv 2501.04606), appendix C, C.6 to C.9.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from vala_research.diffusion.bilateral_inversion import BilateralInversion
from vala_research.diffusion.schedule import Schedule
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.cases import sprite_cases
from vala_research.evaluation.error_growth import network, study
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.gaussian_mixture import GaussianMixture
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import STABLE_DIFFUSION, save_rows
from vala_research.experiments.network_preset import NetworkPreset, side_of
from vala_research.sprites.scene import WORLD

MIXTURE, UNET = "two Gaussians", "UNet"
SIZE = 1e-2  # of the first error
PAPER, PROVED = COLOURS[1], "black"
STYLES = {  # series: colour, line
    "paper": (PAPER, "--"), "update, closed form": (COLOURS[3], "-"),
    "update, product of C_t": (COLOURS[3], "-"), "DDIM, closed form": (COLOURS[0], "-"),
    "DDIM, product": (COLOURS[0], "-"),
}  # fmt: skip
NOISES = {  # series: label, colour, line, marker
    "sums of norms": ("paper: norms add up", PAPER, "--", "o"),
    "roots of squares": ("true: squares add up", COLOURS[0], "-", "o"),
    "closed forms": ("closed form", PROVED, ":", ""),
}
STARTS = {  # start: label, colour, marker
    "worst": ("worst direction", COLOURS[0], "o"),
    "random": ("random direction", COLOURS[5], "s"),
    "filtered": ("filtered", COLOURS[2], "^"),
}


@dataclass(frozen=True, kw_only=True)
class Settings(NetworkPreset):
    """Parameters of notebook 43; `seed` is that of starts and directions."""

    PRESETS = {
        "smoke": {}, "paper": {"model": STABLE_DIFFUSION, "n_steps": 20, "n_iterations": 10}
    }  # fmt: skip

    n_steps: int = 4  # of the paths through the network
    n_iterations: int = 5  # of power iteration
    mixture_steps: int = 20  # of the paths through the two Gaussians
    sigma: float = 0.05  # intensity of the filter, in the latents' unit
    lipschitz: float = 1.0  # L of the bounds by step; the noise has half of it


def run(settings: Settings, output: str | Path, bounds: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of `study`, part "growth", after those of `theory.measurements.error_bounds`.

    The models are two Gaussians, whose Lipschitz constant is known, and the network.
    """
    pipe = quiet_pipeline(settings.model)
    (case,) = sprite_cases(1, WORLD, 2, side_of(pipe))
    clean = pipe.encode(case.frames)[:1].float()
    fine, coarse = (Schedule.from_scheduler(pipe.scheduler, n)
                    for n in (settings.mixture_steps, settings.n_steps))  # fmt: skip
    smoothing = BilateralInversion(kernel_size=3, sigma_intensity=settings.sigma, unit="absolute")
    generator = torch.Generator().manual_seed(settings.seed)

    mixture = GaussianMixture.of_a_blob(fine.alpha_bar)
    undecided, drawn = mixture.undecided(generator), mixture.draw(1, generator)
    exact = study(mixture, undecided, drawn, fine, generator, mixture.lipschitz,
                  settings=smoothing, size=SIZE)  # fmt: skip

    noisy = torch.randn(clean.shape, generator=generator).to(clean)
    local = study(network(pipe, case.prompt), noisy, clean, coarse, generator,
                  n_iterations=settings.n_iterations, settings=smoothing, size=SIZE)  # fmt: skip
    growth = [
        {"part": "growth", "model": model} | row
        for model, rows in ((MIXTURE, exact), (UNET, local))
        for row in rows
    ]
    return save_rows([*bounds, *growth], output)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Error, product and the paper's bound at the end of each path, over the first error."""
    paths = rows[rows.part == "growth"].groupby(["model", "way", "start"], sort=False)
    return paths[["error", "product", "paper"]].last() / SIZE


def claims(rows: pd.DataFrame) -> list[Claim]:
    """The bounds hold and are below the paper's; inversion comes near them, denoising does not."""
    growth, bounds = (rows[rows.part == part] for part in ("growth", "bounds"))
    is_sound = rows[rows.part == "verdict"].reproduced.astype(bool)
    exact = growth[growth.model == MIXTURE]
    ends, grown = bounds.groupby("series").growth.last(), table(rows)
    tightness = (grown.error / grown["product"]).unstack("way").drop("filtered", level="start")
    first = exact[(exact.start == "filtered") & (exact.step == 1)]
    gap = (tightness.inversion / tightness.ddim).min()
    update, ddim = ends["update, product of C_t"], ends["DDIM, product"]
    return [
        Claim.of_fact("the verdict on the noise reproduces", "verdicts", len(is_sound),
                      is_sound.all()),
        Claim.of_fact("errors of the two Gaussians keep the product of A + |B| L",
                      "largest error / bound", (exact.error / exact["product"]).max(),
                      (exact.error <= exact["product"] * (1 + 1e-6)).all()),
        Claim.of_fact("the update's product keeps its closed form, which is below the paper's",
                      "product", update,
                      update <= ends["update, closed form"] < ends["paper"]),
        Claim.of_fact("DDIM's product keeps its closed form", "product", ddim,
                      ddim <= ends["DDIM, closed form"]),
        Claim.of_fact("inversion comes nearer to its bound than denoising, from every start",
                      "least ratio of tightness", gap, gap > 1),
        Claim.of_fact("one filtered step exceeds the paper's bound", "least error / bound",
                      (first.error / first.paper).min(), (first.error > first.paper).all()),
    ]  # fmt: skip


@drawn(claim="errors of the two Gaussians")
def figure(rows: pd.DataFrame) -> Picture:
    """Draw all bounds along one schedule, and what noise adds; below, errors of each model.

    Left: what an error of 1 at the start may have become, by step.
    """
    bounds, noise, growth = (rows[rows.part == part] for part in ("bounds", "noise", "growth"))
    with rc_context(STYLE):
        picture = Picture(figsize=(PAGE, 5.9), layout="constrained")
        above, below = picture.subfigures(2, 1, height_ratios=(2.8, 3.1))
        left, right = above.subplots(1, 2, width_ratios=(1.25, 1))
        _bounds(left, bounds)
        _noise(right, noise)
        _growth(below, growth)
    return picture


def _bounds(axes: Axes, bounds: pd.DataFrame) -> None:
    for series, part in bounds.groupby("series", sort=False):
        colour, line = STYLES[series]
        name = "paper: C to the power of steps" if series == "paper" else series
        is_closed = "closed" in series  # nearly what it bounds: drawn around it
        axes.plot(part.step, part.growth, line, color=colour, label=name,
                  alpha=0.3 if is_closed else 1, linewidth=5 if is_closed else 1.4)  # fmt: skip
    axes.set(yscale="log", xlabel="steps taken", ylabel="error / first error",
             title="One schedule, all bounds")  # fmt: skip
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.03), handlelength=1.8, labelspacing=0.3)


def _noise(axes: Axes, noise: pd.DataFrame) -> None:
    for series, (label, colour, line, marker) in NOISES.items():
        part = noise[noise.series == series]
        axes.plot(part.steps, part["size"], line, color=colour, marker=marker, label=label)
    axes.set(xscale="log", yscale="log", xlabel="steps of the same path",
             ylabel="noise at the end / sqrt(N)", title="What the noise adds")  # fmt: skip
    axes.legend(loc="upper left", handlelength=1.8)


def _growth(page: SubFigure, growth: pd.DataFrame) -> None:
    """One panel per model and way: measured errors over the first, and the bounds on them."""
    names = {"ddim": "denoising", "inversion": "inversion", "update": "update (53)"}
    panels = dict(list(growth.groupby(["model", "way"], sort=False)))
    row = page.subplots(1, len(panels), squeeze=False)[0]
    for axes, ((model, way), part) in zip(row, panels.items(), strict=True):
        _panel(axes, {start: path for start, path in part.groupby("start")})
        axes.set(yscale="log", xlabel="steps taken", title=f"{model},\n{names[way]}")
        axes.xaxis.get_major_locator().set_params(integer=True)
    row[0].set_ylabel("error / first error")
    handles, labels = row[0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=1.8)


def _panel(axes: Axes, paths: Mapping[str, pd.DataFrame]) -> None:
    """The products are drawn wide, since measured errors may lie on them."""
    worst, first = paths["worst"], paths["worst"].error.iloc[0]
    wide = {"alpha": 0.3, "linewidth": 5}
    axes.plot(worst.step, worst.paper / first, "--", color=PAPER,
              label="paper: C to the power of steps")  # fmt: skip
    axes.plot(worst.step, worst["product"] / first, color=PROVED, label="product of A + |B| L",
              **wide)  # fmt: skip
    if "filtered" in paths:
        filtered = paths["filtered"]
        axes.plot(filtered.step, filtered["product"] / filtered.error.iloc[0], color=COLOURS[2],
                  label="the same, with the filter's bias", **wide)  # fmt: skip
    for start, (label, colour, marker) in STARTS.items():
        if start in paths:
            path = paths[start]
            axes.plot(path.step, path.error / path.error.iloc[0], color=colour, marker=marker,
                      markersize=3, label=f"measured, {label}")  # fmt: skip
