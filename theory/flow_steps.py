"""Rectified flows: what the other groups say of diffusion paths, for straight paths. Ours.

The papers state nothing of flows. The code that runs is `vala_research.diffusion.schedule`, whose
step is Euler's on this path.
"""

import torch
from torch import Tensor

from theory.attack import attack
from theory.error_factors import shares
from theory.flow_factors import (
    contraction,
    euler_factors,
    flows,
    largest_excess,
    log_euler_bound,
    log_preimage_bound,
    missed,
    missed_bound,
    preimage_factors,
    shifted,
    shifted_bound,
)
from theory.verdict import Verdict, statement
from vala_research.diffusion.schedule import Schedule, sample


def schedule_of(levels: Tensor) -> Schedule:
    """The library's schedule of these levels, clean first; timesteps are 1000 s."""
    s = tuple(levels.flip(0).tolist())
    return Schedule((), 1.0, "flow_prediction", tuple(1000 * x for x in s[:-1]), s)


def uniform(n_steps: int) -> Tensor:
    """Levels of n even steps from 0 to 1."""
    return torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)


@statement("flow")
def euler(seed: int = 0, n_levels: int = 256, n_starts: int = 16, n_steps: int = 200) -> Verdict:
    """Ours: how errors grow along a flow, sampling or inverting, for any levels.

    A step has the constant 1 + h_t L, attained by v = -L z in sampling and by v = L z in inversion.
    The product is <= exp(L (s_n - s_0)) <= exp(L), whatever the shift and the number of steps.

    Proof: theory/README.md, D1.

    seed: of the attack over flows of n_levels, L = 1.
    Returns measured: sum ln(1 + h_t L) / L, bound 1.
    """
    worst = attack(lambda logits: euler_factors(flows(logits), 1.0).log().sum(-1),
                   shares(n_starts, n_levels), seed, n_steps, 0.1)  # fmt: skip
    above, n_random = largest_excess(
        lambda s, c: euler_factors(s, c).log().sum(-1), log_euler_bound, seed
    )
    one = torch.ones(1, dtype=torch.float64)
    products = {n: float(sample(lambda z, t: -z, one, schedule_of(uniform(n))))
                for n in (10, 50, 1000)}  # fmt: skip
    closed = float(log_euler_bound(uniform(1), 1.0).exp())
    return Verdict(
        statement="flow", verdict="holds",
        claim="(ours) an Euler step of a flow grows an error by at most 1 + h_t L_v",
        corrected="in all by <= exp(L_v), for any levels, shift and number of steps, both ways",
        measured=worst.value, bound=1.0,
        witness={"v = -z, even steps": products, "closed form": closed},
        hypotheses={
            f"{n_random} random flows keep the bound": above <= 1e-9,
            "v = -z through Schedule keeps the closed form": max(products.values()) <= closed,
        },
        least_tightness=0.99, n_searched=worst.n_searched + n_random,
    )  # fmt: skip


@statement("flow-inversion")
def inversion(
    seed: int = 0, n_levels: int = 256, n_starts: int = 16, n_steps: int = 200
) -> Verdict:
    """Ours: plain inversion of a flow misses by first order; a step has one preimage if h_t L < 1.

    Plain inversion holds the velocity at the cleaner end. Its round trip misses by at most
    sum_t h_t^2 L V prod_{r < t} (1 + h_r L) <= h V (exp(L) - 1), |v| <= V, h the longest step.
    The preimage is found by z -> z_s + h_t v(z) at rate h_t L; it is 1 / (1 - h_t L)-Lipschitz, and
    the product of all is <= exp(L / (1 - q)), q the largest h_t L.

    Proof: theory/README.md, D2.

    seed: of the attack over flows of n_levels, L = 1.
    Returns measured: the round trip's bound by steps over its closed form, bound 1.
    """
    worst = attack(
        lambda logits: missed(flows(logits), 1.0, 1.0) / missed_bound(flows(logits), 1.0, 1.0),
        shares(n_starts, n_levels), seed, n_steps, 0.1,
    )  # fmt: skip
    above, n_random = largest_excess(lambda s, c: missed(s, c, 1.0),
                                     lambda s, c: missed_bound(s, c, 1.0), seed)  # fmt: skip
    fine = uniform(64)  # of which every h_t L of the draws is below 1
    exact = [float(preimage_factors(fine, c).log().sum() / log_preimage_bound(fine, c))
             for c in (0.5, 1.0, 3.0, 20.0)]  # fmt: skip
    q, errors = iteration_errors(uniform(4), 2.0, seed)
    trips = {n: round_trip(uniform(n)) for n in (10, 50, 250)}
    return Verdict(
        statement="flow-inversion", verdict="holds",
        claim="(ours) a step has one preimage where h_t L_v < 1; plain inversion misses it",
        corrected="the round trip misses by <= h V (exp(L_v) - 1); the iteration converges at rate "
        "h_t L_v; exact steps in all are exp(L_v / (1 - q))-Lipschitz",
        measured=worst.value, bound=1.0,
        witness={"round trips through Schedule, L = V = 1": trips, "q": q,
                 "errors of the iteration": errors[:4]},
        hypotheses={
            f"{n_random} random flows keep the bound": above <= 1e-9,
            "exact steps keep their bound": max(exact) <= 1 + 1e-12,
            "q < 1: iterations contract by q": q < 1 and all(
                b <= q * a + 1e-15 for a, b in zip(errors[:-1], errors[1:], strict=True)),
            "q < 1: 60 iterations are exact": errors[-1] < 1e-14,
        },
        least_tightness=0.99, n_searched=worst.n_searched + n_random,
    )  # fmt: skip


@statement("flow-filter")
def filtered(seed: int = 0, n_levels: int = 256, n_starts: int = 16, n_steps: int = 200) -> Verdict:
    """Ours: a filter before every step of an inversion, GE-Adapter's, on the path of a flow.

    A filter that moves latents by at most beta = b(S) sigma sqrt(N) leads the path away by at most
    beta sum_t prod_{r >= t} (1 + h_r L) <= beta sum_t exp(L (1 - s_{t-1})). That is at least beta
    times the number of steps: for a bound that no number of steps exceeds, sigma must shrink.

    Proof: theory/README.md, D3.

    seed: of the attack over flows of n_levels, L = 1.
    Returns measured: the recursion over its closed form, bound 1.
    """
    worst = attack(
        lambda logits: shifted(flows(logits), 1.0, 1.0) / shifted_bound(flows(logits), 1.0, 1.0),
        shares(n_starts, n_levels), seed, n_steps, 0.1,
    )  # fmt: skip
    above, n_random = largest_excess(lambda s, c: shifted(s, c, 1.0),
                                     lambda s, c: shifted_bound(s, c, 1.0), seed)  # fmt: skip
    led = {n: led_away(uniform(n)) for n in (10, 50, 250)}
    return Verdict(
        statement="flow-filter", verdict="holds",
        claim="(ours) a filter of shift beta before each step leads the inversion away by at most "
        "beta sum_t prod_{r >= t} (1 + h_r L_v)",
        corrected="<= beta sum_t exp(L_v (1 - s_{t-1})), which grows with the number of steps",
        measured=worst.value, bound=1.0,
        witness={"beta = 1, L = 1 through Schedule": led},
        hypotheses={f"{n_random} random flows keep the bound": above <= 1e-9},
        least_tightness=0.99, n_searched=worst.n_searched + n_random,
    )  # fmt: skip


def iteration_errors(
    levels: Tensor, lipschitz: float, seed: int = 0, is_linear: bool = False
) -> tuple[float, list[float]]:
    """Errors of 60 iterations of the library's inversion step, the first of the levels' steps.

    v(z) = L tanh(M z), |M| = 1, or L z. Returns q = h L and |z^k - z*| for every k.
    """
    generator = torch.Generator().manual_seed(seed)
    exact = torch.randn(8, generator=generator, dtype=torch.float64)
    m = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    m = m / torch.linalg.matrix_norm(m, ord=2)

    def velocity(z: Tensor) -> Tensor:
        return lipschitz * (z if is_linear else torch.tanh(m @ z))

    schedule = schedule_of(levels)
    step = list(schedule)[-1]
    z_s = schedule.denoise(exact, velocity(exact), step)
    z, errors = z_s, []
    for _ in range(61):
        errors.append(float((z - exact).norm()))
        z = schedule.renoise(z_s, z, velocity(z), step)
    return float(contraction(levels[:2], lipschitz)), errors


def round_trip(levels: Tensor, lipschitz: float = 1.0, speed: float = 1.0) -> float:
    """How far plain inversion's round trip through the library misses, by the worst velocity.

    v(z, s_t) = V - L (z - z_{t-1}), where z_{t-1} = V s_{t-1} is the point at which plain inversion
    asks: there |v| = V, and sampling carries every miss on by 1 + h_t L.
    """
    schedule = schedule_of(levels)
    steps = {step.t: step for step in schedule}

    def velocity(z: Tensor, t: float) -> Tensor:
        return speed - lipschitz * (z - speed * steps[t].clean.s)

    z = torch.zeros(1, dtype=torch.float64)
    for step in reversed(list(schedule)):
        z = schedule.renoise(z, z, velocity(z, step.t), step)
    return abs(float(sample(velocity, z, schedule)))


def led_away(levels: Tensor, lipschitz: float = 1.0, shift: float = 1.0) -> float:
    """How far a constant shift before each step leads an inversion through the library, v = L z."""
    schedule = schedule_of(levels)
    plain, other = torch.zeros(2, 1, dtype=torch.float64)
    for step in reversed(list(schedule)):
        other = other + shift
        plain, other = (schedule.renoise(z, z, lipschitz * z, step) for z in (plain, other))
    return float(other - plain)
