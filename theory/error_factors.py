"""Growth of an error in one step, and closed forms for all steps, for any schedule.

Levels are alpha_bar_0 >= ... >= alpha_bar_T, the least noisy level first.
alpha_t = alpha_bar_t / alpha_bar_{t-1}. L is the network's Lipschitz constant.
kappa(a) = (1 + sqrt(1 - a)) / sqrt(a).
"""

from collections.abc import Callable, Iterator
from math import exp, lgamma, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.schedule import Schedule
from vala_research.diffusion.spacing import inference_timesteps


def check_levels(levels: Float[Tensor, "*b n"], lipschitz: float = 0.0) -> None:
    """Refuse levels outside (0, 1] or increasing, and a Lipschitz constant below 0."""
    if levels.shape[-1] < 2:
        raise InputError(f"There are {levels.shape[-1]} noise levels: give 2 or more.")
    if not ((levels > 0) & (levels <= 1)).all():
        raise InputError("The levels alpha_bar leave (0, 1]: give signal levels of a schedule.")
    if not (levels.diff(dim=-1) <= 0).all():
        raise InputError("The levels alpha_bar increase: give them from clean to noisy.")
    if not 0 <= lipschitz < float("inf"):
        raise InputError(f"The Lipschitz constant is {lipschitz}: give a finite number from 0 on.")


def stable_diffusion(n_steps: int = 1000) -> Schedule:
    """Scaled-linear betas from 0.00085 to 0.012 over 1000 levels. The final level has no noise."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    levels = (1 - betas).cumprod(0).tolist()
    steps = inference_timesteps(1000, n_steps, "trailing", 0)
    return Schedule(tuple(levels), 1.0, "epsilon", steps)


def levels_of(schedule: Schedule) -> Float[Tensor, " n"]:
    """alpha_bar of all levels that the schedule visits, the final one first."""
    steps = list(schedule)
    levels = [steps[-1].alpha_bar_s] + [step.alpha_bar_t for step in reversed(steps)]
    return torch.tensor(levels, dtype=torch.float64)


def update_mean(
    x: Float[Tensor, "*s"], eps: Float[Tensor, "*s"], alpha: float, alpha_bar: float
) -> Float[Tensor, "*s"]:
    """(x - (1 - alpha) / sqrt(1 - alpha_bar) eps) / sqrt(alpha): the paper's (53) without noise.

    A step between two levels without noise, alpha = alpha_bar = 1, leaves x unchanged.
    """
    if alpha == alpha_bar == 1:
        return x
    return (x - (1 - alpha) / (1 - alpha_bar) ** 0.5 * eps) / alpha**0.5


def update_factors(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b t"]:
    """C_t = (1 + (1 - alpha_t) L / sqrt(1 - alpha_bar_t)) / sqrt(alpha_t), t = 1..T: (71).

    C_t = 1 between two levels without noise: a level of 1 has no step before it.
    """
    check_levels(levels, lipschitz)
    alpha, after = levels[..., 1:] / levels[..., :-1], levels[..., 1:]
    noise = (1 - after).masked_fill(after == 1, 1).sqrt()  # there 1 - alpha = 0
    return (1 + (1 - alpha) / noise * lipschitz) / alpha.sqrt()


def step_bound(factor: float, apart: float, shift: float, noise: Tensor | float):
    """C (|x_t - xbar_t| + b(S) sigma sqrt(N)) + |noise|, a bound of one step: B4."""
    return factor * (apart + shift) + noise


def rms_step_bound(factor: float, apart: float, shift: float, noise: Tensor | float):
    """Root of C^2 (R_t + b(S) sigma sqrt(N))^2 + E|noise|^2, a bound of R_{t-1}: B4."""
    return (step_bound(factor, apart, shift, 0.0) ** 2 + noise**2) ** 0.5


def update_factor(alpha: float, alpha_bar: float) -> float:
    """C_t of one step for L = 1."""
    levels = torch.tensor([alpha_bar / alpha, alpha_bar], dtype=torch.float64)
    return float(update_factors(levels, 1.0))


def ddim_coefficients(
    a: Float[Tensor, "*b"], b: Float[Tensor, "*b"]
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """(A, H) with ddim_step(z, eps, a, b) = A z + H eps."""
    scale = (b / a).sqrt()
    return scale, (1 - b).sqrt() - scale * (1 - a).sqrt()


def denoising_factors(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b t"]:
    """A_t + |H_t| L of the DDIM steps t -> t-1, t = 1..T."""
    check_levels(levels, lipschitz)
    a, b = ddim_coefficients(levels[..., 1:], levels[..., :-1])
    return a + b.abs() * lipschitz


def inversion_factors(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b t"]:
    """A_t + |H_t| L of the inversion steps t-1 -> t, t = 1..T."""
    check_levels(levels, lipschitz)
    a, b = ddim_coefficients(levels[..., :-1], levels[..., 1:])
    return a + b.abs() * lipschitz


def log_growth(levels: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """ln kappa(alpha_bar_n) - ln kappa(alpha_bar_0) = asinh lambda_T - asinh lambda_0."""
    log_k = ((1 + (1 - levels).sqrt()) / levels.sqrt()).log()
    return log_k[..., -1] - log_k[..., 0]


def log_update_bound(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b"]:
    """ln of kappa^(2L) / sqrt(alpha_bar), an upper bound of sum ln C_t: theory/README.md, B4."""
    return (levels[..., 0] / levels[..., -1]).log() / 2 + 2 * lipschitz * log_growth(levels)


def log_denoising_bound(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b"]:
    """ln of kappa^L / sqrt(alpha_bar), a bound of sum ln (A_t + |H_t| L): theory/README.md, B5."""
    return (levels[..., 0] / levels[..., -1]).log() / 2 + lipschitz * log_growth(levels)


def log_inversion_bound(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b"]:
    """ln of sqrt(alpha_bar) kappa^max(1, L), the bound for inversion: theory/README.md, B7.

    Fine steps approach sqrt(alpha_bar) kappa^L for every L. For L < 1 coarse steps exceed it.
    """
    scale = (levels[..., -1] / levels[..., 0]).log() / 2
    return scale + max(1.0, lipschitz) * log_growth(levels)


def noise_gain(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b"]:
    """Mean square of the noise at the end, over N: sum_t (prod_{s < t} C_s)^2 (1 - alpha_{t-1}).

    Step t -> t-1 adds noise of variance 1 - alpha_{t-1}; the last step, t = 1, adds none. Later
    steps s = t-1, ..., 1 stretch the noise.
    """
    gain = update_factors(levels, lipschitz).cumprod(-1)[..., :-1]
    return (gain**2 * (1 - levels[..., 1:-1] / levels[..., :-2])).sum(-1)


def noise_gain_bound(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b"]:
    """kappa(a)^(4L) (1 / a - 1), a = alpha_bar_{n-1}, for alpha_bar_0 = 1: theory/README.md, B6."""
    if not (levels[..., 0] == 1).all():
        raise InputError(
            "The final level is not 1: this bound starts at no noise. Give a first level of 1."
        )
    before = levels[..., :-1]
    return (4 * lipschitz * log_growth(before)).exp() * (1 / before[..., -1] - 1)


def mean_norm(dimension: int) -> float:
    """E||z|| = sqrt(2) Gamma((d + 1) / 2) / Gamma(d / 2) for d standard normal numbers."""
    if dimension < 1:
        raise InputError(f"The dimension is {dimension}: give 1 or more.")
    return sqrt(2) * exp(lgamma((dimension + 1) / 2) - lgamma(dimension / 2))


def sum_of_norms(levels: Tensor, lipschitz: float) -> float:
    """The sum of (74) with the C_t of each step: sum_t prod C_s sqrt(1 - alpha_{t-1})."""
    gain = update_factors(levels, lipschitz).cumprod(-1)[:-1]
    return float((gain * (1 - levels[1:-1] / levels[:-2]).sqrt()).sum())


def rms_closed_form(
    levels: Float[Tensor, " n"], lipschitz: float, n_values: int, start: float, bias: float
) -> float:
    """Bound of R_0: sqrt(G_n^2 start^2 + N V) + bias sqrt(N) sum_t G_t; theory/README.md, B6.

    G_t = kappa(alpha_bar_t)^(2L) / sqrt(alpha_bar_t). levels: alpha_bar_0 = 1. n_values: N.
    start: R_T. bias: b(S) sigma of the filter, at every step.
    """
    ends = range(2, len(levels) + 1)
    g = torch.stack([log_update_bound(levels[:n], lipschitz) for n in ends]).exp()
    noise = n_values * noise_gain_bound(levels, lipschitz)
    carried = ((g[-1] * start) ** 2 + noise).sqrt()
    return float(carried + bias * n_values**0.5 * g.sum())


def random_levels(seed: int, n: int = 20_000) -> Iterator[tuple[Float[Tensor, "b n"], float]]:
    """Draw n schedules from alpha_bar 1 of 2 to 100 steps, with random ends and L in [0, 3]."""
    generator, each = torch.Generator().manual_seed(seed), n // 20
    for i in range(20):
        lipschitz = float(3 * torch.rand(1, generator=generator))
        logits = 3 * torch.randn(each, 2 + i * i // 4, generator=generator, dtype=torch.float64)
        signal = 10 * torch.rand(each, generator=generator, dtype=torch.float64)
        yield schedules(logits, signal), lipschitz


def schedules(
    logits: Float[Tensor, "b t"], log_signal: Float[Tensor, "*b"] | float
) -> Float[Tensor, "b n"]:
    """Any schedule of t steps from alpha_bar 1 to exp(-log_signal), as a softmax of logits."""
    u = torch.as_tensor(log_signal, dtype=logits.dtype)[..., None] * logits.softmax(-1).cumsum(-1)
    return torch.cat([torch.ones_like(u[:, :1]), torch.exp(-u)], -1)


def shares(n_starts: int, n_levels: int) -> Callable[[torch.Generator], tuple[Tensor]]:
    """Draw starts of an attack on `schedules`: logits from even steps to very uneven ones."""
    spread = torch.linspace(0, 3, n_starts)[:, None]
    return lambda generator: (spread * torch.randn(n_starts, n_levels, generator=generator),)


def excess(log_value: Callable, log_bound: Callable, seed: int) -> tuple[float, int]:
    """Largest value less bound over random schedules, and the number of schedules."""
    largest, n = -float("inf"), 0
    for levels, lipschitz in random_levels(seed):
        above = log_value(levels, lipschitz) - log_bound(levels, lipschitz)
        largest, n = max(largest, float(above.max())), n + len(levels)
    return largest, n


def log_product(factors: Callable) -> Callable:
    """ln of the product of all steps' factors."""
    return lambda levels, lipschitz: factors(levels, lipschitz).log().sum(-1)
