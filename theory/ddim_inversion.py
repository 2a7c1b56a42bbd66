"""DDIM is not the paper's update: its errors grow half as fast, and its steps can be inverted.

Growth of errors under `vala_research.diffusion.schedule.ddim_step`, either way.
"""

from math import sqrt

import torch
from torch import Tensor

from theory.attack import attack
from theory.error_factors import (
    denoising_factors,
    excess,
    inversion_factors,
    levels_of,
    log_denoising_bound,
    log_inversion_bound,
    log_product,
    schedules,
    shares,
    stable_diffusion,
    update_mean,
)
from theory.verdict import Counterexample, Verdict, statement
from vala_research import InputError
from vala_research.diffusion.schedule import ddim_step


@statement("DDIM")
def denoising(
    seed: int = 0, n_levels: int = 256, n_starts: int = 16, n_steps: int = 200
) -> Verdict:
    """The paper, (8), (12), (53): its update is the DDIM step, and C of (71) bounds its error.

    Verdict: false. (53) without noise is the mean of DDPM. In fine steps it moves twice as far
    along eps as DDIM. Its errors grow with exponent 2L, errors of DDIM with exponent L.

    Corrected: the constant of a step is A_t + |H_t| L, where ddim_step(z, eps) = A_t z + H_t eps;
    eps(x) = -L x attains it. prod_t (A_t + |H_t| L) <= kappa(alpha_bar_n)^L / sqrt(alpha_bar_n) for
    any schedule from alpha_bar_0 = 1 and any number n of steps. L is L_eps.

    Proof: theory/README.md, B5: in x / sqrt(alpha_bar) a step is an Euler step in lambda.

    seed: of the attack over schedules of n_levels that end at Stable Diffusion's last level, L = 1.
    Returns measured: sum ln((A_t + |H_t| L) sqrt(alpha_t)) / (L ln kappa), bound 1.
    """
    signal = -float(levels_of(stable_diffusion())[-1].log())

    def ratio(logits: Tensor) -> Tensor:
        levels = schedules(logits, signal)
        return (denoising_factors(levels, 1.0).log().sum(-1) - signal / 2) / (
            log_denoising_bound(levels, 1.0) - signal / 2
        )

    # Attack the bound over schedules; then random schedules, and the worst path through the code.
    worst = attack(ratio, shares(n_starts, n_levels), seed, n_steps, 0.1)
    above, n_random = excess(log_product(denoising_factors), log_denoising_bound, seed)
    products = {n: worst_path(n) for n in (10, 50, 1000)}
    closed = float(log_denoising_bound(levels_of(stable_diffusion()), 1.0).exp())

    # Counterexample: one step of each from the same point.
    one, none = torch.ones(1).double(), torch.zeros(1).double()
    apart = update_mean(none, one, 0.5 / 0.6, 0.5) - ddim_step(none, one, 0.5, 0.6)
    return Verdict(
        statement="DDIM", verdict="false",
        claim="the update (53) is the DDIM step",
        corrected="DDIM's errors grow by A_t + |H_t| L_eps per step, in all by <= "
        "kappa(alpha_bar_n)^L_eps / sqrt(alpha_bar_n)",
        measured=worst.value, bound=1.0,
        witness={"Stable Diffusion, L = 1, by steps": products, "closed form": closed},
        hypotheses={
            f"{n_random} random schedules keep the bound": above <= 1e-9,
            "eps = -x through ddim_step keeps the closed form": max(products.values()) <= closed,
        },
        counterexample=Counterexample(
            "x = 0, eps = 1, alpha_bar 0.5 -> 0.6: |update - DDIM|",
            float(apart.abs()), 0.0,
        ),
        least_tightness=0.95, n_searched=worst.n_searched + n_random,
    )  # fmt: skip


def worst_path(n_steps: int, lipschitz: float = 1.0, is_inversion: bool = False) -> float:
    """Carry an error of 1 through `ddim_step` by the worst network: eps = -L x, or L x back."""
    x, steps = torch.ones(1, dtype=torch.float64), list(stable_diffusion(n_steps))
    for step in reversed(steps) if is_inversion else steps:
        ends = step.alpha_bar_t, step.alpha_bar_s
        if is_inversion:
            x = ddim_step(x, lipschitz * x, *reversed(ends))
        else:
            x = ddim_step(x, -lipschitz * x, *ends)
    return float(x)


@statement("DDIM-inversion")
def inversion(seed: int = 0, n_levels: int = 64, n_starts: int = 16, n_steps: int = 200) -> Verdict:
    """The paper, title of Theorem C.6: DDIM inversion is stable. (It has no numbered statement.)

    Verdict: holds with hypotheses, for deterministic DDIM. (53) is no inversion: it denoises. That
    the path leads back is our addition; appendix C does not claim it.

    Corrected: an inversion step t-1 -> t has the constant A_t + |H_t| L, attained by eps(x) = L x.
    The product of constants is <= sqrt(alpha_bar_n) kappa(alpha_bar_n)^max(1, L) for any schedule
    from alpha_bar_0 = 1; L is L_eps. For L <= 1 an error at most doubles. The exact preimage of a
    step is the only fixed point of z -> A z_s + H eps(z), reached at rate q, where
    q = (lambda_t - lambda_s) sqrt(alpha_bar_t) L < 1. The usual single iteration misses it.

    Proof: theory/README.md, B7: 1 + L (sinh s' - sinh s) / cosh s <= exp(max(1, L) (s' - s)).

    seed: of the attack over schedules of n_levels, L = 1.
    Returns measured: sum ln((A_t + |H_t| L) / sqrt(alpha_t)) / ln kappa, bound 1.
    """
    signal = -float(levels_of(stable_diffusion())[-1].log())

    def ratio(logits: Tensor) -> Tensor:
        levels = schedules(logits, signal)
        return (inversion_factors(levels, 1.0).log().sum(-1) + signal / 2) / (
            log_inversion_bound(levels, 1.0) + signal / 2
        )

    # Attack the bound over schedules; then random schedules, and the worst path through the code.
    worst = attack(ratio, shares(n_starts, n_levels), seed, n_steps, 0.1)
    above, n_random = excess(log_product(inversion_factors), log_inversion_bound, seed)
    products = {n: worst_path(n, is_inversion=True) for n in (10, 50, 1000)}
    closed = float(log_inversion_bound(levels_of(stable_diffusion()), 1.0).exp())

    # Fixed-point iterations with q < 1, and with q > 1 as the counterexample.
    q, errors = fixed_point_errors(0.5, 0.7, 0.8, seed)
    beyond = fixed_point_errors(0.01, 0.9, 3.0, seed, is_linear=True)
    return Verdict(
        statement="DDIM-inversion", verdict="holds with hypothesis",
        claim="DDIM inversion is stable (title of C.6)",
        corrected="errors grow by <= sqrt(alpha_bar_n) kappa(alpha_bar_n)^max(1, L_eps); our "
        "addition: a step inverts exactly, by fixed point, where q = (lambda_t - lambda_s) "
        "sqrt(alpha_bar_t) L_eps < 1",
        measured=worst.value, bound=1.0,
        witness={
            "Stable Diffusion, L = 1, by steps": products, "closed form": closed, "q": q,
            "errors of the iteration": errors,
        },
        hypotheses={
            f"{n_random} random schedules keep the bound": above <= 1e-9,
            "eps = x through ddim_step keeps the closed form": max(products.values()) <= closed,
            "q < 1: iterations contract by q": q < 1 and all(
                b <= q * a + 1e-15 for a, b in zip(errors[:-1], errors[1:], strict=True)),
            "q < 1: 60 iterations are exact": errors[-1] < 1e-14,
        },
        counterexample=Counterexample(
            f"q = {beyond[0]:.2f}, eps = L x: the iteration's error after 3 and 0 steps",
            beyond[1][3], beyond[1][0],
        ),
        least_tightness=0.9, n_searched=worst.n_searched + n_random,
    )  # fmt: skip


def fixed_point_errors(
    alpha_bar_t: float,
    alpha_bar_s: float,
    lipschitz: float,
    seed: int = 0,
    n_iterations: int = 60,
    is_linear: bool = False,
) -> tuple[float, list[float]]:
    """Measure errors of the iteration z^{k+1} = ddim_step(z_s, eps(z^k), s -> t) from z^0 = z_s.

    eps(z) = L tanh(M z) with ||M|| = 1, or L z. z* is drawn and stepped down to z_s first, so that
    the exact preimage is known.
    Returns q, and |z^k - z*| for every k. Raises InputError for alpha_bar_t > alpha_bar_s.
    """
    if not 0 < alpha_bar_t <= alpha_bar_s <= 1:
        raise InputError(
            f"The levels are {alpha_bar_t}, {alpha_bar_s}: give 0 < alpha_bar_t <= alpha_bar_s, "
            "at most 1."
        )

    # Draw z* and the network.
    generator = torch.Generator().manual_seed(seed)
    exact = torch.randn(8, generator=generator, dtype=torch.float64)
    m = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    m = m / torch.linalg.matrix_norm(m, ord=2)

    def eps(z: Tensor) -> Tensor:
        return lipschitz * (z if is_linear else torch.tanh(m @ z))

    # Step z* down to z_s, then iterate back.
    z_s = ddim_step(exact, eps(exact), alpha_bar_t, alpha_bar_s)
    z, errors = z_s, []
    for _ in range(n_iterations + 1):
        errors.append(float((z - exact).norm()))
        z = ddim_step(z_s, eps(z), alpha_bar_s, alpha_bar_t)
    return contraction_rate(alpha_bar_t, alpha_bar_s, lipschitz), errors


def contraction_rate(alpha_bar_t: float, alpha_bar_s: float, lipschitz: float) -> float:
    """q = (lambda_t - lambda_s) sqrt(alpha_bar_t) L, the rate of the fixed-point iteration: B7."""
    noisy, clean = (sqrt(1 / a - 1) for a in (alpha_bar_t, alpha_bar_s))  # lambda
    return (noisy - clean) * sqrt(alpha_bar_t) * lipschitz
