"""Bound the errors of a denoising path by closed forms, for any schedule: C.6, C.8, C.9.

Appendix C.2 of arXiv 2501.04606 (4.6, 4.8, 4.9 in arXiv 2504.16016). The update is the paper's
(53), x_{t-1} = (B(x) - beta_t / sqrt(1 - alpha_bar_t) eps(B(x))) / sqrt(alpha_t) +
sqrt(1 - alpha_{t-1}) z. In docstrings L is L_eps. It is the mean of DDPM and
denoises; see `ddim_inversion`.
"""

from math import sqrt

import torch
from torch import Tensor

from theory.attack import attack
from theory.error_factors import (
    excess,
    levels_of,
    log_product,
    log_update_bound,
    mean_norm,
    noise_gain,
    noise_gain_bound,
    schedules,
    shares,
    stable_diffusion,
    sum_of_norms,
    update_factor,
    update_factors,
    update_mean,
)
from theory.filtered_steps import (
    ALPHA,
    ALPHA_BAR,
    default_filter_step,
    first_moment_ratio,
    largest_step,
    literal_reading,
    one_filtered_step,
    two_noisy_steps,
)
from theory.verdict import ROUNDING, Counterexample, Verdict, statement


@statement("C.6")
def expected_step(seed: int = 0, n: int = 6, n_starts: int = 64, n_steps: int = 300) -> Verdict:
    """Theorem C.6, (55): E||x'_{t-1} - xbar|| <= C E||x_t - xbar|| + sqrt(1 - alpha_{t-1}) E||z||,
    for some constant C of the schedule and L_eps. x'_{t-1} is the output of (53), unfiltered.

    Verdict: false for every C. The filter moves even the ideal latent, by an amount that scales
    with sigma_intensity. C does not depend on sigma_intensity.

    Corrected, under the theorem's own hypotheses (first moments, fixed sigma):
    (1) E||e_{t-1}|| <= C_t (E||e_t|| + b(S) sigma sqrt(N)) + sqrt(1 - alpha_{t-1}) E||z||.
    With second moments, R_t^2 = E||e_t||^2, and z independent of the past with mean 0, better:
    (2) R_{t-1}^2 <= C_t^2 (R_t + b(S) sigma sqrt(N))^2 + (1 - alpha_{t-1}) N, C_t of (71).
    With the default filter, sigma = c std(x_t), put the root of E[sigma^2] for sigma.

    Proof: theory/README.md, B4: (1) is the mean of C.8; (2) is C.8 without its noise, squared: the
    noise is orthogonal to it.
    seed: of the attack on three taps, n sites, L = 1. The mean over z is exact, not sampled.
    Returns measured: the largest ratio of both roots of (2), bound 1.
    """
    worst = largest_step(True, seed, n, n_starts, n_steps)
    return Verdict(
        statement="C.6", verdict="false",
        claim="E|x'_{t-1} - xbar| <= C E|x_t - xbar| + sqrt(1 - alpha_{t-1}) E|z| (55)",
        corrected="E|e_{t-1}| <= C_t (E|e_t| + b(S) sigma sqrt(N)) + sqrt(1 - alpha_{t-1}) E|z|; "
        "E|e_{t-1}|^2 <= C_t^2 (sqrt(E|e_t|^2) + b(S) sigma sqrt(N))^2 + (1 - alpha_{t-1}) N",
        measured=worst.value, bound=1.0,
        witness={"x": worst.point[0]},
        hypotheses={
            "C_t > 1": update_factor(ALPHA, ALPHA_BAR) > 1,
            "first moments, simulated, keep their bound": 0.7 < first_moment_ratio(seed) <= 1,
        },
        counterexample=one_filtered_step(),
        least_tightness=0.99, n_searched=worst.n_searched,
    )  # fmt: skip


@statement("C.8")
def one_step(seed: int = 0, n: int = 6, n_starts: int = 64, n_steps: int = 300) -> Verdict:
    """Lemma C.8, (64), (72): ||x'_{t-1} - xbar_{t-1}|| <= C ||x_t - xbar_t|| +
    sqrt(1 - alpha_{t-1}) ||z||, C = (1 + (1 - alpha_t) L_eps / sqrt(1 - alpha_bar_t)) /
    sqrt(alpha_t). x'_{t-1} is read as the output of (53), as in (65).

    Verdict: false, since it rests on C.7. The algebra up to (68) holds, and C is the best constant.

    Corrected: C_t (||x_t - xbar_t|| + b(S) sigma sqrt(N)) + sqrt(1 - alpha_{t-1}) ||z||. Read as
    (54), x'_{t-1} = B(x_{t-1}), add b(S) sigma sqrt(N) once more. With the default filter,
    b(S) sigma sqrt(N) is b(S) c ||x_t - mean||.

    Proof: theory/README.md, B4: (68), and C.7 as corrected. Attained by eps(x) = -L x.
    seed: of the attack on three taps, n sites, L = 1, over linear networks.
    Returns measured: the largest ratio of both sides, bound 1.
    """
    worst = largest_step(False, seed, n, n_starts, n_steps)
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    c = update_factor(ALPHA, ALPHA_BAR)
    gain = float(update_mean(x, -x, ALPHA, ALPHA_BAR).norm() / x.norm())
    twice, once_allowed, twice_allowed = literal_reading()
    defaults = [default_filter_step(c) for c in (0.3, 1.0, 2.0)]
    return Verdict(
        statement="C.8", verdict="false",
        claim="|x'_{t-1} - xbar| <= C |x_t - xbar| + sqrt(1 - alpha_{t-1}) |z| (72)",
        corrected="|e_{t-1}| <= C_t (|e_t| + b(S) sigma sqrt(N)) + sqrt(1 - alpha_{t-1}) |z|; plus "
        "b(S) sigma sqrt(N) if x'_{t-1} is filtered, as (54) says",
        measured=worst.value, bound=1.0,
        witness={"x": worst.point[0]},
        hypotheses={
            "eps = -L_eps x attains C_t": abs(gain / c - 1) < 1e-12,
            "read as (54), the added term is needed": once_allowed < twice <= twice_allowed,
            "the default filter keeps its bound": all(a <= b for a, b in defaults),
        },
        counterexample=one_filtered_step(),
        least_tightness=0.99, n_searched=worst.n_searched,
    )  # fmt: skip


@statement("C.9")
def all_steps(
    seed: int = 0, n_levels: int = 256, n_starts: int = 16, n_steps: int = 200
) -> Verdict:
    """Lemma C.9, (74), (80): E||x'_0 - xbar_0|| <= C^n delta + sqrt(d) sum_t C^(t-1) noise_t, and
    the same with C^(n-t) in its proof; since C is bounded, the series converges.

    Verdict: false. (74) inherits C.7: one filtered step breaks it. (80) contradicts (74), to which
    (77) unrolls, and is exceeded without a filter too. "Converges" is vacuous:
    the sum is finite for fixed n, and C > 1 always, so that C^n has no limit (4.6e12 for Stable
    Diffusion's 1000 steps, L_eps = 1).

    Corrected: for any schedule from alpha_bar_0 = 1 and any number of steps,
    prod C_t <= kappa(alpha_bar_n)^(2 L_eps) / sqrt(alpha_bar_n). Let G_t be this bound for
    alpha_bar_t. With a fixed sigma, or one that is a root mean square of each step's sigma:
    R_0 <= sqrt(G_n^2 R_n^2 + N V) + b(S) sigma sqrt(N) sum_t G_t, V of C.9-noise.

    Proof: theory/README.md, B4: a right sum of a decreasing function is below its integral.
    seed: of the attack over schedules of n_levels that end at Stable Diffusion's last level, L = 1.
    Returns measured: sum ln(C_t sqrt(alpha_t)) / (2 L ln kappa), bound 1.
    """
    end = levels_of(stable_diffusion())
    signal = -float(end[-1].log())

    def ratio(logits: Tensor) -> Tensor:
        levels = schedules(logits, signal)
        grown = update_factors(levels, 1.0).log().sum(-1) - signal / 2
        return grown / (log_update_bound(levels, 1.0) - signal / 2)

    # Attack the bound over schedules; then random schedules, and Stable Diffusion's own.
    worst = attack(ratio, shares(n_starts, n_levels), seed, n_steps, 0.1)
    above, n_random = excess(log_product(update_factors), log_update_bound, seed)
    factors, bound = update_factors(end, 1.0), float(log_update_bound(end, 1.0).exp())
    return Verdict(
        statement="C.9", verdict="false",
        claim="E|x'_0 - xbar_0| <= C^n delta + sqrt(d) sum C^(t-1) sqrt(1 - alpha_{t-1}) (74), and "
        "with C^(n-t) (80)",
        corrected="prod C_t <= G_n for any schedule; sqrt(E|e_0|^2) <= sqrt(G_n^2 E|e_n|^2 + N V) "
        "+ b(S) sigma sqrt(N) sum G_t, V = kappa(a)^(4 L_eps) (1/a - 1), a = alpha_bar_{n-1}",
        measured=worst.value, bound=1.0,
        witness={
            "prod C_t": float(factors.prod()), "closed form": bound,
            "C^T": float(factors.max() ** len(factors)),
        },
        hypotheses={
            f"{n_random} random schedules keep the bound": above <= 1e-9,
            "C_t > 1: C never contracts": bool((factors > 1).all()),
            "(80) is exceeded without a filter": two_noisy_steps().breaks,
            "Stable Diffusion keeps the bound": float(factors.prod()) <= bound,
        },
        counterexample=one_filtered_step("of (74), n = 1, alpha_0 = 1, delta = 0, is"),
        least_tightness=0.95, n_searched=worst.n_searched + n_random,
    )  # fmt: skip


@statement("C.9-noise")
def noise(
    n_refinements: tuple[int, ...] = (100, 1000, 10_000), lipschitz: float = 0.5, seed: int = 0
) -> Verdict:
    """The paper, (73) to (82): E||z|| = sqrt(d), and norms of the steps' noises add up.

    Verdict: false, as an equality. E||z|| = sqrt(2) Gamma((d+1)/2) / Gamma(d/2) is in
    [d / sqrt(d+1), sqrt(d)), so that "<=", which is all that (73) needs, is true. Adding norms is a
    valid triangle inequality, and loose: independent noise of mean 0 adds in squares. As n steps
    refine one path, the paper's sum grows like sqrt(n), while the squares converge.

    Corrected: the noise's mean square at the end is <= N V, V = kappa(a)^(4 L_eps) (1/a - 1),
    a = alpha_bar_{n-1}, for any schedule from alpha_bar_0 = 1 and any number of steps.

    Proof: theory/README.md, B6: (1 - alpha_j) / alpha_bar_j telescopes.
    n_refinements: numbers of steps of the path from 1 to Stable Diffusion's last level.
    lipschitz: L of that path. seed: of the random schedules.
    Returns measured, bound: sqrt of the sum of squares and sqrt(V), for the finest path, N = 1.
    """
    # Refine one path: sums of norms, roots of the sums of squares, and their closed forms.
    (u,) = -levels_of(stable_diffusion())[-1:].log()
    paths = [torch.exp(-u * torch.linspace(0, 1, n + 1).double() ** 2) for n in n_refinements]
    sums = [sum_of_norms(p, lipschitz) for p in paths]
    squares = [sqrt(noise_gain(p, lipschitz)) for p in paths]
    limits = [sqrt(noise_gain_bound(p, lipschitz)) for p in paths]

    # Random schedules keep the bound; E||z|| / sqrt(d) by dimension.
    logs = [lambda p, lip, f=f: f(p, lip).log() for f in (noise_gain, noise_gain_bound)]
    above, n_random = excess(*logs, seed)
    norms = {d: mean_norm(d) / sqrt(d) for d in (1, 2, 4, 64, 16384)}
    refined = sqrt(n_refinements[-1] / n_refinements[-2])
    return Verdict(
        statement="C.9-noise", verdict="false",
        claim="E|z| = sqrt(d), and norms of noises add up (73), (82)",
        corrected="E|z| <= sqrt(d); squares add up, to at most N kappa(a)^(4 L_eps) (1/a - 1), a = "
        "alpha_bar_{n-1}",
        measured=squares[-1], bound=limits[-1],
        witness={
            "sums of norms": sums, "roots of squares": squares, "closed forms": limits,
            "E||z||/sqrt(d)": norms,
        },
        hypotheses={
            f"{n_random} random schedules keep the bound": above <= 1e-9,
            "d / (d+1) <= (E||z||/sqrt(d))^2 < 1": all(d / (d + 1) <= v**2 < 1
                                                       for d, v in norms.items()),
            "L_eps = 0 attains the bound": bool(abs(noise_gain(paths[0], 0.0) / noise_gain_bound(
                paths[0], 0.0) - 1) < ROUNDING),
            "the sum of norms grows like sqrt(T)": abs(sums[-1] / sums[-2] / refined - 1) < 0.1,
        },
        counterexample=Counterexample("d = 1: sqrt(d) > E|z|", 1.0, mean_norm(1)),
        least_tightness=0.6, n_searched=n_random + len(paths),
    )  # fmt: skip
