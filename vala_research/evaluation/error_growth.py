"""How errors grow along the paths of a network, beside what its Lipschitz constants allow.

GE-Adapter (arXiv 2501.04606), appendix C, C.6 to C.9. A constant measured at points of a path is
local, a lower bound of the network's own. So an error above a bound made of it refutes no theorem,
and an error below it shows how far the theorem is from what happens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import chosen_from
from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.bilateral_inversion import BilateralInversion, bilateral_path
from vala_research.diffusion.ddpm_update import error_factor, update_levels
from vala_research.diffusion.inversion import invert
from vala_research.diffusion.level import Level
from vala_research.diffusion.schedule import Predict, Schedule, ddim_step
from vala_research.evaluation.jacobian import jacobian_norm
from vala_research.methods.bilateral import bias_bound, neighbour_mass

WAYS = ("ddim", "update", "inversion")


@dataclass(frozen=True)
class Path:
    """A walk of n steps along a schedule.

    latents: n + 1, the start first.
    asked: (z, t) of each step, as the network was given them.
    biases: b(S) sigma of each step's filter, 0 where there is none.
    """

    latents: tuple[Tensor, ...]
    asked: tuple[tuple[Tensor, float], ...]
    biases: tuple[float, ...]


def network(pipe: Any, prompt: str) -> Predict:
    """Ask a pipeline's UNet about a prompt, without guidance."""
    with torch.no_grad():
        text, ask = pipe.encode_prompt([prompt]), Backbone(pipe.unet)
    return lambda z, t: ask(z[None], t, text)[0]


def follow(
    predict: Predict,
    z: Float[Tensor, "f c h w"],
    schedule: Schedule,
    way: str = "ddim",
    settings: BilateralInversion | None = None,
) -> Path:
    """Walk a schedule from z and keep everything.

    way: "ddim" denoises; "update" denoises by the paper's (53), without its noise; "inversion" is
    plain DDIM inversion. settings: of the filter before every step, None for none.
    """
    _check_way(way)
    asked: list[tuple[Tensor, float]] = []

    def ask(z: Tensor, t: float) -> Tensor:
        asked.append((z, t))
        return predict(z, t)

    if way == "inversion":
        latents = invert(ask, z, schedule, settings or "ddim").trajectory[::-1]
    else:
        rule = "paper_eq12" if way == "update" else "ddim"
        latents = (z, *bilateral_path(ask, z, schedule, settings, rule, has_noise=False))
    last = max(1, len(schedule) - 1)
    biases = [_bias(settings, latent, i / last) for i, latent in enumerate(latents[:-1])]
    return Path(tuple(latents), tuple(asked), tuple(biases))


def _bias(settings: BilateralInversion | None, z: Tensor, fraction: float) -> float:
    """b(S) sigma of the filter of z: no site moves further."""
    sigma = 0.0 if settings is None else settings.intensity(z, fraction)
    if sigma == 0:
        return 0.0
    return bias_bound(neighbour_mass(settings.kernel_size, settings.sigma_spatial), sigma)


def local_constants(
    predict: Predict,
    path: Path,
    schedule: Schedule,
    generator: torch.Generator,
    n_iterations: int = 20,
) -> list[float]:
    """`jacobian_norm` where a path asked the network, one per step: of eps, or of a velocity."""

    def eps_at(t: float) -> Callable[[Tensor], Tensor]:
        if schedule.flow:
            return lambda z: predict(z, t)
        level = Level.preserving(schedule.alpha_bar[t])
        return lambda z: schedule.split(z, predict(z, t), level)[1]

    return [jacobian_norm(eps_at(t), z, generator, n_iterations)[0] for z, t in path.asked]


def step_factors(schedule: Schedule, way: str, lipschitz: Sequence[float]) -> list[float]:
    """Bound the growth of an error in each step of a way, in its order.

    A_t + |B_t| L for DDIM, either way, by `ddim_step`; C_t for the update, `error_factor`. Of a
    flow 1 + h_t L, either way.
    lipschitz: the network's constant at each step.
    """
    _check_way(way)
    if schedule.flow:
        steps = list(schedule) if way == "ddim" else list(reversed(list(schedule)))
        lengths = [step.noisy.s - step.clean.s for step in steps]
        return [1 + h * c for h, c in zip(lengths, lipschitz, strict=True)]
    if way == "update":
        levels = zip(update_levels(schedule), lipschitz, strict=True)
        return [error_factor(alpha, alpha_bar, c) for (alpha, alpha_bar, _), c in levels]

    # One step is linear in z and eps: its coefficients are what it makes of (1, 0) and (0, 1).
    factors, one = [], torch.ones(1, dtype=torch.float64)
    steps = list(schedule) if way == "ddim" else list(reversed(list(schedule)))
    for step, constant in zip(steps, lipschitz, strict=True):
        ends = (step.alpha_bar_t, step.alpha_bar_s)
        ends = ends if way == "ddim" else ends[::-1]
        a, b = (float(ddim_step(z, e, *ends)) for z, e in ((one, 0 * one), (0 * one, one)))
        factors.append(a + abs(b) * constant)
    return factors


def growth_rows(
    path: Path, other: Path, schedule: Schedule, way: str, lipschitz: Sequence[float]
) -> list[dict]:
    """Measure the distance of two paths at each level, beside its bounds: rows from the start on.

    path: the clean one. other: from a perturbed start, filtered or not.
    Returns per row error: measured; product: of the corrected recursion, e <- factor (e + bias
    sqrt(N)); paper: the largest C_t to the power of the steps, times the first error, (74) without
    its noise. The paper states it for DDIM too.
    """
    factors = step_factors(schedule, way, lipschitz)
    is_inversion, steps = way == "inversion", list(schedule)
    levels = [step.alpha_bar_t for step in steps] + [steps[-1].alpha_bar_s]
    if is_inversion:
        levels.reverse()

    # The paper speaks of sampling: its constants are in the order of sampling for every way.
    constants = list(lipschitz)[::-1] if is_inversion else list(lipschitz)
    of_flow = bool(schedule.flow)
    largest = nan if of_flow else max(step_factors(schedule, "update", constants))
    errors = [
        float((a - b).detach().norm()) for a, b in zip(path.latents, other.latents, strict=True)
    ]

    # The bound grows by the step's factor; the filter of the other path adds to what grows.
    size, product, rows = sqrt(path.latents[0].numel()), errors[0], []
    for i, (level, error) in enumerate(zip(levels, errors, strict=True)):
        if i:
            product = factors[i - 1] * (product + other.biases[i - 1] * size)
        constant = lipschitz[i] if i < len(lipschitz) else None
        rows.append({"way": way, "step": i, "alpha_bar": level, "error": error, "product": product,
                     "paper": largest**i * errors[0], "lipschitz": constant})  # fmt: skip
    return rows


def perturbed(
    predict: Predict,
    z: Float[Tensor, "f c h w"],
    schedule: Schedule,
    way: str,
    generator: torch.Generator,
    size: float = 1e-2,
    n_iterations: int = 0,
) -> Float[Tensor, "f c h w"]:
    """Move z by `size`: at random, or, with iterations, in the direction that grows most.

    That direction is the first singular vector of the whole path's Jacobian, as far as the
    iterations go.
    """
    if n_iterations:

        def end(x: Tensor) -> Tensor:
            return follow(predict, x, schedule, way).latents[-1]

        _, direction = jacobian_norm(end, z, generator, n_iterations, tolerance=0.0)
    else:
        direction = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
    return z + size * direction / direction.norm()


def study(
    predict: Predict,
    noisy: Float[Tensor, "f c h w"],
    clean: Float[Tensor, "f c h w"],
    schedule: Schedule,
    generator: torch.Generator,
    exact: Callable[[float], float] | None = None,
    n_iterations: int = 20,
    settings: BilateralInversion | None = None,
    size: float = 1e-2,
) -> list[dict]:
    """`growth_rows` of denoising from noisy and of inversion from clean, both moved by `size`.

    exact: t -> the network's constant; None measures it along the path by `local_constants`, and
        the column is_local says so.
    Returns rows of three starts: "random"; "worst", after n_iterations; and, with settings,
    "filtered", a random start whose path is filtered before every step.
    """
    rows = []
    for way, z in (("ddim", noisy), ("inversion", clean)):
        with torch.no_grad():
            path = follow(predict, z, schedule, way)
        if exact is None:
            constants = local_constants(predict, path, schedule, generator, n_iterations)
        else:
            constants = [exact(t) for _, t in path.asked]
        starts = {"random": (0, None), "worst": (n_iterations, None)}
        if settings is not None:
            starts["filtered"] = (0, settings)
        for start, (n, used) in starts.items():
            moved = perturbed(predict, z, schedule, way, generator, size, n)
            with torch.no_grad():
                other = follow(predict, moved, schedule, way, used)
            rows += [{"start": start, "is_local": exact is None} | row
                     for row in growth_rows(path, other, schedule, way, constants)]  # fmt: skip
    return rows


def _check_way(way: str) -> None:
    chosen_from("way", way, WAYS)
