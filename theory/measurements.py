"""Rows of numbers that the notebooks plot, one function per notebook.

The package may not import the theory. A notebook hands these rows to its experiment, which adds
what it measures on networks. The column `part` says which panel a row belongs to.
"""

from collections.abc import Sequence
from math import nan
from typing import Any

import torch
from tqdm import tqdm

from theory.__main__ import ordered
from theory.attention_alignment import alignment, combined
from theory.attention_search import random_ratios
from theory.bilateral_filter import bias, stretch, stretch_euclidean
from theory.ddim_stability import noise
from theory.descent_rate import promised_losses
from theory.error_factors import (
    denoising_factors,
    levels_of,
    log_denoising_bound,
    log_update_bound,
    stable_diffusion,
    update_factors,
)
from theory.flow_factors import euler_factors, log_euler_bound
from theory.flow_steps import euler, filtered, inversion
from theory.gradient_descent import descend, total_loss_step
from theory.shared_tokens import distances
from theory.strict_saddles import along_theta, parameter_minimum
from theory.temporal_curvature import (
    chord_on_the_sphere,
    curvature_attack,
    curvature_of,
    path_constant,
    sign_pattern,
)
from theory.temporal_loss import gradient_points
from theory.verdict import STATEMENTS, Verdict
from vala_research.methods.bilateral import neighbour_mass
from vala_research.methods.temporal import temporal_consistency_loss


def smoothness(
    attacked: Sequence[int], known: Sequence[int], norms: Sequence[float], seed: int = 0
) -> list[dict]:
    """Constants of the temporal loss: C.2, C.3 and C.1.

    attacked: numbers of frames whose curvature is attacked. known: those at which the worst
        pattern is measured. norms: of every frame, in the measurement of 16 / M. seed: of points
        and attacks.
    Returns parts "gradient" (s, product = |grad| |F|), "lipschitz" (M; ratio, measured; paper;
    ours) and "curvature" (n_frames; attacked, nan where not; constant, c_T; pattern, measured).
    """
    points = [gradient_points(d, seed, 300) for d in (2, 3, 10)]
    rows = [
        {"part": "gradient", "s": float(s), "product": float(product)}
        for pair in points
        for s, product in zip(*pair, strict=True)
    ]
    rows += [
        {"part": "lipschitz", "M": m, "ratio": chord_on_the_sphere(m)[0], "paper": 16 / m,
         "ours": 6 / m**2}
        for m in norms
    ]  # fmt: skip

    # The attack is slow, so that fewer numbers of frames have it.
    largest = {n: curvature_attack(n, seed, 32, 300)[0] for n in attacked}
    rows += [
        {"part": "curvature", "n_frames": n, "attacked": largest.get(n, nan),
         "constant": path_constant(n), "pattern": curvature_of(sign_pattern(n)) * (n - 1) / 2}
        for n in known
    ]  # fmt: skip
    return rows


def descent(steps: Sequence[float], n_free: int) -> list[dict]:
    """Descent on the temporal loss of three frames, a chord, a line of adapters: C.4 and C.5.

    steps: step sizes in units of 1 / L_s. n_free: number of steps of each size.
    Returns parts "descent" (steps, step, loss), "promised" (of A5.4, for the sizes below 2 but the
    first), "chord" (u, loss), "line" (theta, loss, minimum: whether it is the false bottom) and
    "total" (before, after: L over one step on the total loss; total_before, total_after).
    """
    start = torch.tensor([[[1.0, 0.0], [0.03, 1.0], [-1.0, 0.0]]], dtype=torch.float64)
    paths = {size: descend(start, size, n_free)[0][:, 0].tolist() for size in steps}
    below = [size for size in steps if size < 2]
    promised = {size: promised_losses(start, size, n_free) for size in below[1:]}
    rows = [
        {"part": part, "steps": size, "step": k, "loss": loss}
        for part, runs in (("descent", paths), ("promised", promised))
        for size, run in runs.items()
        for k, loss in enumerate(run)
    ]

    # Both ends of the chord have equal similarities, its middle has not.
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    rows += [
        {"part": "chord", "u": u, "loss": temporal_consistency_loss((1 - u) * a + u * b).item()}
        for u in torch.linspace(0, 1, 101).tolist()
    ]

    bottom, _, _ = parameter_minimum()
    rows += [
        {"part": "line", "theta": theta, "minimum": theta == bottom,
         "loss": temporal_consistency_loss(along_theta(theta)).item()}
        for theta in sorted([*torch.linspace(-4, 4, 401).tolist(), bottom])
    ]  # fmt: skip
    names = ("before", "after", "total_before", "total_after")
    return [*rows, {"part": "total"} | dict(zip(names, total_loss_step(), strict=True))]


def filter_stretch(seed: int, n_steps: int) -> list[dict]:
    """How far the bilateral filter moves an image, and stretches a difference: C.7.

    seed, n_steps: of the attacks.
    Returns parts "verdict" and "stretch": window, mass (spatial weights of the neighbours), norm
    ("largest site" or "Euclidean") and stretch, the largest that the attacks find.
    """
    verdicts = [
        bias(seed, n_steps=n_steps), stretch(seed, n_steps=n_steps),
        stretch_euclidean(seed, n_starts=32),
    ]  # fmt: skip
    masses = {"1x3": neighbour_mass(3, 1.0, 1), "1x5": neighbour_mass(5, 1.0, 1),
              "3x3": neighbour_mass(3, 1.0), "5x5": neighbour_mass(5, 2.0)}  # fmt: skip
    line, square = verdicts[2].witness["found"].values()
    largest = {"largest site": verdicts[1].witness["found"],
               "Euclidean": {"1x3": line, "3x3": square}}  # fmt: skip
    rows = [
        {"part": "stretch", "window": name, "mass": masses[name], "norm": norm, "stretch": value}
        for norm, values in largest.items()
        for name, value in values.items()
    ]
    return [*map(_verdict_row, verdicts), *rows]


def error_bounds(
    lipschitz: float, refined: Sequence[int] = (30, 100, 300, 1000, 3000, 10_000)
) -> list[dict]:
    """Bounds on errors along Stable Diffusion's schedule, and on noise: C.6 to C.9.

    lipschitz: L of the bounds; the noise has half of it. refined: numbers of steps of one path.
    Returns parts "bounds" (series, step, growth: error over the first error), "noise" (series,
    steps, size: at the end, over sqrt(N)) and "verdict".
    """
    levels = levels_of(stable_diffusion())  # least noisy first
    walked = [levels[-1 - n :] for n in range(1, 1000)]  # by n steps of sampling
    c = update_factors(levels, lipschitz).flip(0)  # in the order of sampling
    series = {
        "paper": c.max() ** torch.arange(1, 1000),
        "update, closed form": torch.stack([log_update_bound(x, lipschitz) for x in walked]).exp(),
        "update, product of C_t": c.cumprod(0),
        "DDIM, closed form": torch.stack([log_denoising_bound(x, lipschitz) for x in walked]).exp(),
        "DDIM, product": denoising_factors(levels, lipschitz).flip(0).cumprod(0),
    }
    rows = [
        {"part": "bounds", "series": name, "step": n, "growth": float(values[n - 1])}
        for name, values in series.items()
        for n in range(1, 1000, 2)
    ]
    verdict = noise(tuple(refined), lipschitz / 2)
    rows += [
        {"part": "noise", "series": name, "steps": n, "size": size}
        for name in ("sums of norms", "roots of squares", "closed forms")
        for n, size in zip(refined, verdict.witness[name], strict=True)
    ]
    return [_verdict_row(verdict), *rows]


def flow_bounds(lipschitz: float, n_steps: int = 20, shifts: Sequence[float] = (1, 3, 8)):
    """Bounds on errors along rectified flows, for even steps under several shifts: D1 to D3.

    Returns parts "bounds" (series, step, level, growth: error over the first error, in sampling)
    and "verdict".
    """
    rows = []
    even = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    for shift in shifts:
        levels = shift * even / (1 + (shift - 1) * even)
        walked = [levels[-1 - n :] for n in range(1, n_steps + 1)]  # by n steps of sampling
        product = euler_factors(levels, lipschitz).flip(0).cumprod(0)
        closed = torch.stack([log_euler_bound(x, lipschitz) for x in walked]).exp()
        rows += [
            {"part": "bounds", "series": f"{name}, shift {shift:g}", "step": n,
             "level": float(levels[-1 - n]), "growth": float(values[n - 1])}
            for name, values in (("product", product), ("closed form", closed))
            for n in range(1, n_steps + 1)
        ]  # fmt: skip
    return [*map(_verdict_row, (euler(), inversion(), filtered())), *rows]


def attention_bounds(seed: int, n_random: int, n_steps: int, width: int) -> list[dict]:
    """Bounds of attention at random heads and under ascent; what tokens can learn: C.10 to C.15.

    n_random: random heads. n_steps: of each ascent. width: d of the tokens.
    Returns parts "random" (ratio_paper, ratio_F, ratio_R: measured over bound, one row per head),
    "ascent" (name of the bound; ratio, the largest), "tokens" (width, n_unshared, distance, bias)
    and "verdict".
    """
    verdicts = {"F": alignment(seed, n_steps), "R": combined(seed, n_steps)}
    ratios = random_ratios(n_random, seed)
    rows = [
        {"part": "random", "ratio_paper": paper, "ratio_F": f, "ratio_R": r}
        for paper, f, r in zip(*(ratios[name] for name in ("paper", "F", "R")), strict=True)
    ]
    rows += [{"part": "ascent", "name": k, "ratio": v.measured} for k, v in verdicts.items()]
    rows += [
        {"part": "tokens", "width": width} | row
        for has_bias in (False, True)
        for row in distances(width, 3 * width, has_bias=has_bias, seed=seed)
    ]
    return [*map(_verdict_row, verdicts.values()), *rows]


def checks(only: Sequence[str] = (), left_out: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Check statements, and return the objects of `python -m theory --json`.

    only: names of statements; none: all but those left out.
    """
    names = only or [name for name in ordered() if name not in left_out]
    return [STATEMENTS[name]().as_row() for name in tqdm(names, disable=None)]


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    row = verdict.as_row()
    return {"part": "verdict"} | row | {"hypotheses": "; ".join(row["hypotheses"])}
