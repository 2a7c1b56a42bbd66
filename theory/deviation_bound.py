"""The best Lipschitz constant of a filter whose sigma follows the image, and its certificate.

sigma = c std(x). A window has spatial weights of sum S beside its centre. Proof: B9 in
theory/README.md.
"""

from functools import cache
from math import e

import torch
from torch import Tensor

from vala_research.methods.bilateral import bias_bound

FARTHEST = 12.0  # differences beyond this have weights below exp(-72)


def closed_form(mass: float, c: float) -> float:
    """Proved bound of the constant: 1 + max_v p (2 v^2 - 2 + c v^3) + (c p v^2)^2 / 8; B9.

    p = q / (1 + q), q = S exp(-v^2 / 2). c = 0 is the constant of a fixed sigma. Not attained: it
    is 15 to 44 percent above `best_constant` at c = 1.
    """
    v = torch.linspace(0, FARTHEST, 24_001, dtype=torch.float64)
    p = _share(v, mass)
    return 1 + float((p * (2 * v**2 - 2 + c * v**3) + (c * p * v**2) ** 2 / 8).max())


def aligned_constant(mass: float, c: float) -> float:
    """Largest 1 + 2 nu + c |r| of windows with all neighbours at one difference v. Attained; B9.

    nu = p ((1 - p) v^2 - 1) and r = p (1 - p) v^3, with p = q / (1 + q). It equals `best_constant`
    at c = 1 for the windows here.
    """
    v = torch.linspace(0, FARTHEST, 240_001, dtype=torch.float64)
    p = _share(v, mass)
    return 1 + float((p * (1 - p) * (2 * v**2 + c * v**3) - 2 * p).max())


def best_constant(mass: float, c: float) -> float:
    """Best constant that depends on S and c alone: 1 + max_s min_mu max_d of `multiplied`; B9.

    Evaluated on a grid, from below and to 2e-3. `certify_mass` proves it without a grid's gaps.
    """
    return max(1 + float(_multipliers(mass, c)[1].max()), aligned_constant(mass, c))


def multiplied(d: Tensor, s: Tensor, mu: Tensor, mass: float, c: float) -> Tensor:
    """(q X - mu s) / (1 + q), the constant less 1 that a multiplier mu allows at difference d.

    q = S exp(-d^2 / 2), X = 2 (d^2 - s d - 1)_+ + (c d^2 + mu)(d - s). The multiplier belongs to
    the equation sum_i q_i (d_i - s) = s, which defines the shift s.
    """
    q = mass * torch.exp(-(d**2) / 2)
    x = 2 * (d**2 - s * d - 1).clamp_min(0) + (c * d**2 + mu) * (d - s)
    return (q * x - mu * s) / (1 + q)


@cache
def _multipliers(mass: float, c: float, n: int = 81) -> tuple[Tensor, Tensor, Tensor]:
    """Shifts s on [-b, b]; for each the least value over mu of the largest over d; that mu."""
    b, top = bias_bound(mass, 1.0), 6 + 4 * c
    s = torch.linspace(-b, b, n, dtype=torch.float64)
    mu = torch.linspace(-top, top, 101, dtype=torch.float64)
    d = torch.linspace(-7, 7, 701, dtype=torch.float64)
    worst = [multiplied(d, at, mu[:, None], mass, c).amax(-1) for at in s]
    least, index = torch.stack(worst).min(-1)
    return s, least, mu[index]


def certify_mass(mass: float, c: float, bound: float, n_nodes: int = 8001) -> bool:
    """Whether 1 + 2 nu + c |r| <= bound is proved for every window of spatial weights S.

    With G = bound - 1 it shows q (X - G) <= G + mu s for |s| <= b(S), at one mu per cell of s. The
    left side less the right is convex in s: the ends of a cell suffice. Between nodes of d it is
    at most h^2 / 8 times its largest second derivative above the nodes (a kink of (.)_+ is convex).
    Beyond the last node it is below 1e-12. Rounding is below 1e-10. Both are added. False: not
    shown, by this grid.
    """
    shifts, _, chosen = _multipliers(mass, c)
    d = torch.linspace(-FARTHEST, FARTHEST, n_nodes, dtype=torch.float64)
    q, g, h = mass * torch.exp(-(d**2) / 2), bound - 1, float(d[1] - d[0])
    most = [1.0] + [(k / e) ** (k / 2) for k in range(1, 6)]  # of |d|^k exp(-d^2 / 2)
    for i in range(len(shifts) - 1):
        mu = float((chosen[i] + chosen[i + 1]) / 2)
        for s in shifts[i : i + 2].tolist():
            x = 2 * (d**2 - s * d - 1).clamp_min(0) + (c * d**2 + mu) * (d - s) - g

            # Coefficients of X - G as a cubic, with (.)_+ or 0; its second derivative with q.
            sizes = (2 + abs(mu * s) + g, 2 * abs(s) + abs(mu), 2 + abs(c * s), c)
            bend = sum(a * (most[k + 2] + (1 + 2 * k) * most[k] + k * (k - 1) * most[max(k - 2, 0)])
                       for k, a in enumerate(sizes))  # fmt: skip
            if float((q * x).max()) + mass * bend * h**2 / 8 + 1e-9 > g + mu * s:
                return False
    return True


def _share(v: Tensor, mass: float) -> Tensor:
    """p = q / (1 + q): weight of all neighbours together, each at difference v."""
    q = mass * torch.exp(-(v**2) / 2)
    return q / (1 + q)
