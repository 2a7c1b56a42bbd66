"""Notebook 53: how errors grow along a rectified flow, and how far plain inversion misses.

theory/README.md, D1 to D3. No paper states these bounds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import Tensor

from vala_research.diffusion.bilateral_inversion import BilateralInversion
from vala_research.diffusion.fixed_point import ExactSettings
from vala_research.diffusion.inversion import invert
from vala_research.diffusion.schedule import Predict, Schedule, sample
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.editing.source import SourceBackbone, own_scales, own_schedule
from vala_research.evaluation.cases import sprite_cases
from vala_research.evaluation.error_growth import follow, local_constants, study
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.gaussian_mixture import GaussianMixture
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import STABLE_DIFFUSION, save_rows
from vala_research.experiments.flow.gaussian_flow import GaussianFlow
from vala_research.experiments.network_preset import NetworkPreset, side_of
from vala_research.sprites.scene import WORLD

MIXTURE, NETWORK = "two Gaussians", "network"
SIZE = 1e-2  # of the first error
STARTS = {"worst": (COLOURS[0], "o"), "random": (COLOURS[5], "s"), "filtered": (COLOURS[2], "^")}
NAMES = {"ddim": "sampling", "inversion": "inversion"}


@dataclass(frozen=True, kw_only=True)
class Settings(NetworkPreset):
    """Parameters of notebook 53; `seed` is that of starts and directions."""

    PRESETS = {
        "smoke": {"n_steps": 3, "n_iterations": 2, "trips": (4, 8)},
        "sprites": {"trips": (5, 10, 20, 40, 80)},
        "paper": {"model": STABLE_DIFFUSION, "n_steps": 20},
    }  # fmt: skip

    n_steps: int = 10  # of the paths through the network
    n_iterations: int = 10  # of power iteration
    mixture_steps: int = 20  # of the paths through the two Gaussians
    sigma: float = 0.05  # intensity of the filter, in the latents' unit
    lipschitz: float = 1.0  # L of the bounds by step
    trips: Sequence[int] = (5, 10, 20)  # numbers of steps of the round trips


def flow_of(n_steps: int) -> Schedule:
    """Even steps from noise to data."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / n_steps, n_steps).tolist())
    levels = (*scheduler.sigmas[:-1].double().tolist(), 0.0)
    return Schedule((), 1.0, "flow_prediction", tuple(1000 * s for s in levels[:-1]), levels)


def velocity(pipe: Any, prompt: str, schedules: Sequence[Schedule]) -> Predict:
    """Ask a pipeline's network for velocities under a prompt; of diffusion, by change of variables.

    schedules: all levels that will be asked.
    """
    with torch.no_grad():
        text = pipe.encode_prompt([prompt])
    timesteps, scales, own = {}, {}, None
    for schedule in schedules:
        own = own_schedule(schedule, pipe.scheduler)
        timesteps |= dict(zip(schedule.timesteps, own.timesteps, strict=True))
        scales |= own_scales(schedule, own)
    as_flow = None if own is None or own.flow else own
    ask = SourceBackbone(pipe.unet, timesteps=timesteps, scales=scales, as_flow=as_flow)
    return lambda z, t: ask(z[None], t, text)[0]


def run(settings: Settings, output: str | Path, bounds: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of `study` and of `trips`, parts "growth" and "trip", after `measurements.flow_bounds`.

    The models are two Gaussians, whose Lipschitz constant is known, and the network.
    """
    pipe = quiet_pipeline(settings.model)
    (case,) = sprite_cases(1, WORLD, 2, side_of(pipe))
    clean = pipe.encode(case.frames)[:1].float()
    smoothing = BilateralInversion(kernel_size=3, sigma_intensity=settings.sigma, unit="absolute")
    generator = torch.Generator().manual_seed(settings.seed)

    blob = GaussianMixture.of_a_blob((1.0,))
    mixture = GaussianFlow(blob.mean, blob.deviation)
    undecided, drawn_one = blob.undecided(generator), blob.draw(1, generator)
    exact = study(mixture, undecided, drawn_one, flow_of(settings.mixture_steps), generator,
                  mixture.lipschitz, settings=smoothing, size=SIZE)  # fmt: skip

    coarse, walks = flow_of(settings.n_steps), [flow_of(n) for n in settings.trips]
    predict = velocity(pipe, case.prompt, [coarse, *walks])
    noisy = torch.randn(clean.shape, generator=generator).to(clean)
    local = study(predict, noisy, clean, coarse, generator, n_iterations=settings.n_iterations,
                  settings=smoothing, size=SIZE)  # fmt: skip
    rows = [
        {"part": "growth", "model": model} | row
        for model, found in ((MIXTURE, exact), (NETWORK, local)) for row in found
    ]  # fmt: skip
    given = settings.n_iterations, generator
    rows += [{"model": MIXTURE} | trip(mixture, drawn_one, w, mixture.lipschitz) for w in walks]
    rows += [{"model": NETWORK} | trip(predict, clean, w, None, *given) for w in walks]
    return save_rows([*bounds, *rows], output)


def trip(
    predict: Predict,
    z_0: Float[Tensor, "f c h w"],
    schedule: Schedule,
    exact: Callable[[float], float] | None = None,
    n_iterations: int = 10,
    generator: torch.Generator | None = None,
) -> dict[str, Any]:
    """Measure round trips from z_0: plain inversion's miss, its bound, and the exact inversion's.

    The bound is the recursion e <- (1 + h L) e + h^2 L |v| of D2, with the velocities of the
    inversion and the constants of `exact`, or those measured where it asked.
    """
    with torch.no_grad():
        path = follow(predict, z_0, schedule, "inversion")
        solved = invert(predict, z_0, schedule, ExactSettings(tolerance=1e-6))
        back = [sample(predict, z, schedule) for z in (path.latents[-1], solved.latents)]
        speeds = [float(predict(z, t).norm()) for z, t in path.asked]
    if exact is None:
        constants = local_constants(predict, path, schedule, generator, n_iterations)
    else:
        constants = [exact(t) for _, t in path.asked]
    steps, bound = list(reversed(list(schedule))), 0.0
    for step, c, speed in reversed(list(zip(steps, constants, speeds, strict=True))):
        h = step.noisy.s - step.clean.s
        bound = (1 + h * c) * bound + h**2 * c * speed
    h = max(step.noisy.s - step.clean.s for step in steps)
    plain, found = (float((z - z_0).norm()) / sqrt(z_0.numel()) for z in back)
    return {"part": "trip", "steps": len(steps), "plain": plain, "exact": found,
            "bound": bound / sqrt(z_0.numel()), "q": h * max(constants),
            "evaluations": solved.n_evaluations, "is_local": exact is None}  # fmt: skip


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Misses of the round trips, RMS over the latents' values, and the largest q = h L."""
    trips = rows[rows.part == "trip"]
    return trips.set_index(["model", "steps"])[["plain", "bound", "exact", "q", "evaluations"]]


def claims(rows: pd.DataFrame) -> list[Claim]:
    """The bounds hold where L is known; plain inversion is of first order, the other exact."""
    growth, trips = (rows[rows.part == part] for part in ("growth", "trip"))
    is_sound = rows[rows.part == "verdict"].reproduced.astype(bool)
    exact, known = growth[growth.model == MIXTURE], trips[trips.model == MIXTURE]
    ends = known.sort_values("steps")
    order = (ends.plain.iloc[0] / ends.plain.iloc[-1]) / (ends.steps.iloc[-1] / ends.steps.iloc[0])
    solved = trips[trips.q < 1].exact.max()
    return [
        Claim.of_fact("the three verdicts reproduce", "verdicts", len(is_sound), is_sound.all()),
        Claim.of_fact("errors of the two Gaussians keep the product of 1 + h L",
                      "largest error / bound", (exact.error / exact["product"]).max(),
                      (exact.error <= exact["product"] * (1 + 1e-6)).all()),
        Claim.of_fact("round trips of the two Gaussians keep their bound",
                      "largest miss / bound", (known.plain / known.bound).max(),
                      (known.plain <= known.bound * (1 + 1e-6)).all()),
        Claim.of_fact("plain inversion misses by first order", "miss x steps, first over last",
                      order, 0.5 < order < 2),
        Claim.of_fact("exact inversion returns wherever q = h L is below 1", "largest miss",
                      0.0 if pd.isna(solved) else solved, pd.isna(solved) or solved < 1e-3),
    ]  # fmt: skip


@drawn(claim="errors of the two Gaussians")
def figure(rows: pd.DataFrame) -> Picture:
    """Draw errors along paths of both models, either way, and the misses of round trips."""
    growth, trips = (rows[rows.part == part] for part in ("growth", "trip"))
    panels = dict(list(growth.groupby(["model", "way"], sort=False)))
    with rc_context(STYLE):
        picture = Picture(figsize=(PAGE, 4.9), layout="constrained")
        above, below = picture.subfigures(2, 1, height_ratios=(1, 1.05))
        row = above.subplots(1, len(panels), squeeze=False)[0]
        for axes, ((model, way), part) in zip(row, panels.items(), strict=True):
            _errors(axes, part)
            axes.set(xlabel="steps taken", title=f"{model},\n{NAMES[way]}")
        row[0].set_ylabel("error / first error")
        row[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
        left, right = below.subplots(1, 2)
        _bounds(left, rows[rows.part == "bounds"])
        _trips(right, trips)
    return picture


def _errors(axes: Axes, part: pd.DataFrame) -> None:
    for start, path in part.groupby("start", sort=False):
        (colour, marker), first = STARTS[start], path.error.iloc[0]
        axes.plot(path.step, path.error / first, color=colour, marker=marker, markersize=3,
                  label=start)  # fmt: skip
        if start != "random":
            axes.plot(path.step, path["product"] / first, color=colour, alpha=0.3, linewidth=4,
                      label=f"bound, {start}")  # fmt: skip
    axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _bounds(axes: Axes, bounds: pd.DataFrame) -> None:
    for (series, part), colour in zip(bounds.groupby("series", sort=False), 3 * COLOURS[:6],
                                      strict=False):  # fmt: skip
        is_closed = series.startswith("closed")
        axes.plot(part.level, part.growth, "--" if is_closed else "-", color=colour, label=series)
    axes.set(xlabel="level s", ylabel="error / first error", title="Bounds, whatever the shift")
    axes.invert_xaxis()
    axes.legend()


def _trips(axes: Axes, trips: pd.DataFrame) -> None:
    for (model, part), colour in zip(trips.groupby("model", sort=False), COLOURS, strict=False):
        for column, line in (("plain", "-o"), ("bound", ":"), ("exact", "--s")):
            axes.plot(part.steps, part[column], line, color=colour, markersize=3,
                      label=f"{model}, {column}")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="miss of a round trip, RMS",
             title="Plain and exact inversion")  # fmt: skip
    measured = sorted({int(n) for n in trips.steps})
    axes.set_xticks(measured, measured)
    axes.minorticks_off()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
