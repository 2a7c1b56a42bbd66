"""Windows at which the constant of a filter whose sigma follows the image is attained: C.7-std.

No search, some milliseconds. `closed_form` is not attained; it is held against its terms, each
maximised by a grid of its own.
"""

import math

import torch
from torch import Tensor

from theory.deviation_bound import (
    FARTHEST,
    aligned_constant,
    best_constant,
    certify_mass,
    closed_form,
    multiplied,
)
from theory.deviation_filter import row_terms
from theory.verdict import attains, known_points
from vala_research.methods.bilateral import neighbour_mass

MASSES = tuple(neighbour_mass(k, 1.0, axes) for k, axes in ((3, 1), (3, 2)))


def aligned_windows(mass: float) -> tuple[Tensor, Tensor, Tensor]:
    """Windows with one neighbour of weight `mass` at difference v, with their nu and r."""
    v = torch.linspace(0, FARTHEST, 9_001, dtype=torch.float64)
    return v, *row_terms(v[:, None], torch.tensor([mass], dtype=torch.float64))


@known_points("C.7-std")
def aligned() -> dict[str, bool]:
    """1 + 2 nu + c |r| of windows whose neighbours agree; nu and r of one that differs, by hand."""
    largest, limits = [], []
    for mass in MASSES:
        _, nu, r = aligned_windows(mass)
        for c in (0.5, 3.0):
            largest.append((1 + 2 * nu + c * r.abs()).max())
            limits.append(aligned_constant(mass, c))

    # Weights .5 and .25 at differences 2 and -1.5: the shares of all three, then their moments.
    far, near = 0.5 * math.exp(-2), 0.25 * math.exp(-1.125)
    whole = 1 + far + near
    s = (2 * far - 1.5 * near) / whole
    nu = (far * (3 - 2 * s) + near * (1.25 + 1.5 * s)) / whole
    r = (far * 4 * (2 - s) + near * 2.25 * (-1.5 - s)) / whole
    d, g = (torch.tensor(x, dtype=torch.float64) for x in ([[2.0, -1.5]], [0.5, 0.25]))
    found = [float(x) for x in row_terms(d, g)]
    return {
        "known points: neighbours that agree": attains(largest, limits, 0.99999),
        "known points: neighbours that differ": max(abs(found[0] - nu), abs(found[1] - r)) < 1e-12,
    }


@known_points("C.7-std")
def best() -> dict[str, bool]:
    """The best constant is attained at c = 1, certified a little above and not below."""
    is_attained, is_certified = True, True
    for mass in MASSES:
        constant = best_constant(mass, 1.0)
        is_attained &= abs(constant - aligned_constant(mass, 1.0)) < 2e-3
        is_certified &= certify_mass(mass, 1.0, constant + 3e-3)
        is_certified &= not certify_mass(mass, 1.0, constant - 3e-3)
    return {"known points: the best constant": is_attained, "it is certified": is_certified}


@known_points("C.7-std")
def allowance() -> dict[str, bool]:
    """What a multiplier allows is 2 nu + c r of a window that keeps its own equation."""
    same = True
    for mass in MASSES:
        v, nu, r = aligned_windows(mass)
        q = mass * torch.exp(-(v**2) / 2)
        s = q * v / (1 + q)
        for mu in (-1.0, 2.0):
            same &= torch.allclose(multiplied(v, s, torch.tensor(mu).double(), mass, 0.7),
                                   2 * nu + 0.7 * r, atol=1e-9)  # fmt: skip
    return {"known points: multipliers": bool(same)}


@known_points("C.7-std")
def closed() -> dict[str, bool]:
    """The closed form is the sum of its terms, by another grid and by another writing."""
    limits, by_hand = [], []
    for mass in MASSES:
        for c in (0.0, 4.0):
            v = torch.linspace(0.01, 11, 9_001, dtype=torch.float64)
            share = 1 / (1 + torch.exp(v * v / 2) / mass)
            third, square = share * c * v * v * v, share * c * v * v
            by_hand.append((third + 2 * share * (v - 1) * (v + 1) + square * square / 8).max() + 1)
            limits.append(closed_form(mass, c))
    return {"known points: the closed form": attains(by_hand, limits, 0.99999)}
