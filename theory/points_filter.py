"""Images at which the bounds of the bilateral filter are attained: C.7.

No search, some milliseconds. Where a bound is not attained (C.7-euclid), each of its parts is held
against a maximum that is computed without the formula.
"""

import math
from functools import cache

import torch
from mpmath import iv
from torch import Tensor

from theory.bilateral_certificate import enclosures, moments
from theory.bilateral_window import (
    column_bound,
    euclidean_bound,
    image_bias,
    jacobian,
    masses,
    spatial_weights,
    weights,
)
from theory.verdict import attains, known_points
from vala_research.methods.bilateral import (
    bias_bound,
    bilateral_filter,
    bilateral_filter_frames,
    lipschitz_bound,
    neighbour_mass,
)

WINDOWS = ((3, 1.0), (5, 2.0))  # kernel_size, sigma_spatial


def best_shift(bias: float) -> float:
    """The distance u of all neighbours that attains a bias b: b = u - 1 / u."""
    return (bias + math.sqrt(bias**2 + 4)) / 2


@known_points("C.7")
def shift() -> dict[str, bool]:
    """b(S) sigma at one site of a full window, and N^(1/p) b(S) sigma on an alternating image."""
    shifts, limits, sigma = [], [], 0.7
    for k, spatial in WINDOWS:
        for n_axes in (1, 2):
            bias = bias_bound(neighbour_mass(k, spatial, n_axes), sigma)
            x = torch.full((k,) * n_axes, best_shift(bias / sigma) * sigma, dtype=torch.float64)
            x[(k // 2,) * n_axes] = 0.0
            if n_axes == 1:
                moved = bilateral_filter_frames(x, k, spatial, sigma, "truncate")[k // 2]
            else:
                moved = bilateral_filter(x[None, None], k, spatial, sigma, "truncate")
                moved = moved[0, 0, k // 2, k // 2]
            shifts.append(moved)
            limits.append(bias)

    # Three taps, mirrored borders: every second site is at u sigma.
    bias = bias_bound(neighbour_mass(3, 1.0, 1), sigma)
    x = best_shift(bias / sigma) * sigma * (torch.arange(6, dtype=torch.float64) % 2)
    moved = bilateral_filter_frames(x, 3, 1.0, sigma) - x
    norms = [torch.linalg.vector_norm(moved, p) for p in (1, 2, math.inf)]
    images = [image_bias(6, p, bias) for p in (1, 2, math.inf)]
    return {
        "known points: b(S) sigma": attains(shifts, limits),
        "known points: N^(1/p)": attains(norms, images),
    }


def split_window(k: int, spatial: float) -> tuple[Tensor, Tensor]:
    """A line whose middle window is split in two halves, at which its row sum is largest."""
    g = spatial_weights((1, k), k, spatial)
    excess = (lipschitz_bound(float(masses(g)[k // 2])) - 1) / 2
    side = torch.sign(torch.arange(k, dtype=torch.float64) - k // 2)
    return side * math.sqrt(3 + excess), g


@known_points("C.7-max")
def stretch() -> dict[str, bool]:
    """1 + 4 W of a window that is split in two halves, and the sure enclosures of three taps."""
    sums = []
    for k, spatial in WINDOWS:
        x, _ = split_window(k, spatial)
        row = torch.autograd.functional.jacobian(
            lambda y, k=k, s=spatial: bilateral_filter_frames(y, k, s, 1.0, "truncate"), x
        )[k // 2]
        sums.append(row.abs().sum())
    limits = [lipschitz_bound(neighbour_mass(k, s, 1)) for k, s in WINDOWS]

    # Boxes of one point hold the shift and the row sum, and nothing else.
    g, is_tight = spatial_weights((1, 3), 3, 1.0), True
    for d in ((0.3, -2.0), (1.9, -1.8), (2.5, 0.4)):
        x = torch.tensor([d[0], 0.0, d[1]], dtype=torch.float64)
        values = (weights(x, g) @ x)[1], jacobian(x, g)[1].abs().sum()
        boxes = enclosures(*((v, v) for v in d), iv.mpf(float(g[0, 1])))
        is_tight &= all(abs(float(b.mid) - float(v)) < 1e-12 and float(b.delta) < 1e-12
                        for b, v in zip(boxes, values, strict=True))  # fmt: skip
    return {
        "known points: row sums": attains(sums, limits),
        "enclosures of points are points": is_tight,
        "enclosures of boxes end at the extrema": _moments_are_ranges(),
    }


def _moments_are_ranges() -> bool:
    """Whether `moments` of boxes equal the ranges of e, d e, (d^2 - 1) e on a fine grid."""
    for low, high in ((-0.5, 0.7), (1.7, 2.5), (-3.0, -0.9), (6.0, math.inf)):
        d = torch.linspace(low, min(high, 40.0), 2001, dtype=torch.float64)
        e = torch.exp(-(d**2) / 2)
        for box, values in zip(moments(low, high), (e, d * e, (d**2 - 1) * e), strict=True):
            ends = [float(v) for v in values.aminmax()]
            if max(abs(float(box.a) - ends[0]), abs(float(box.b) - ends[1])) > 1e-5:
                return False
    return True


@known_points("C.7-euclid")
def columns() -> dict[str, bool]:
    """L_1: its diagonal is attained; its other entries are maxima over distance and shift."""
    x, g = split_window(3, 1.0)
    diagonal = jacobian(x, g)[1, 1]
    lip = lipschitz_bound(float(masses(g).max()))
    by_hand, limits = [], []
    for shape, k, spatial in (((1, 5), 3, 1.0), ((3, 3), 3, 1.5)):
        g = spatial_weights(shape, k, spatial)
        most = lipschitz_bound(float(masses(g).max()))
        off = [sum(_largest_entry(w, bias_bound(float(masses(g).max()), 1.0))
                   for w in column if w > 0)
               for column in (g - g.diagonal().diag()).T.tolist()]  # fmt: skip
        by_hand.append(math.sqrt(most * (1 + (most - 1) / 2 + max(off))))
        limits.append(euclidean_bound(g, 2001))
    return {
        "known points: the diagonal is 1 + n*": attains(diagonal, (lip + 1) / 2),
        "known points: sqrt(L_inf L_1)": attains(by_hand, limits, 0.9999),
    }


@cache
def _largest_entry(weight: float, shift: float) -> float:
    """Largest |w (1 - delta (delta - s))| over delta, |s| <= shift: w of a lone neighbour."""
    delta = torch.linspace(-8, 8, 8001, dtype=torch.float64)[:, None]
    s = torch.tensor([-shift, 0.0, shift], dtype=torch.float64)  # linear in s: the ends suffice
    w = weight * torch.exp(-(delta**2) / 2)
    return float((w / (1 + w) * (1 - delta * (delta - s))).abs().max())


@known_points("C.7-fixed")
def fixed() -> dict[str, bool]:
    """The largest column of three taps: an island whose neighbours are alone with it."""
    x = torch.tensor([50.0, 0.0, 0.0, 0.0, -50.0], dtype=torch.float64)
    tables = [spatial_weights((1, 5), 3, spatial) for spatial in (0.8, 2.0)]
    sums = [weights(x, g).sum(0).max() for g in tables]
    return {"known points: column sums": attains(sums, [column_bound(g) for g in tables])}


@known_points("C.7-max", "C.7-euclid", "C.7-fixed")
def matrices() -> dict[str, bool]:
    """Weights and Jacobians of lines and images are those of the library's filter."""
    same = True
    for shape, k, border in (
        ((3, 3), 3, "reflect"),
        ((3, 4), 5, "truncate"),
        ((1, 4), 5, "reflect"),
    ):
        x, flat, expected, whole = _filtered(shape, k, border)
        g = spatial_weights(shape, k, 1.3, border)
        same &= torch.allclose(weights(flat, g) @ flat, expected, atol=1e-13)
        same &= torch.allclose(jacobian(flat, g), whole, atol=1e-12)
    return {"the matrices are the library's filter": bool(same)}


@cache
def _filtered(shape: tuple[int, int], k: int, border: str) -> tuple[Tensor, ...]:
    """An image, its values in a row, those filtered by the library, and the Jacobian."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)

    def run(flat: Tensor) -> Tensor:
        if 1 in shape:
            return bilateral_filter_frames(flat, k, 1.3, 1.0, border)
        return bilateral_filter(flat.view(1, 1, *shape), k, 1.3, 1.0, border).flatten()

    flat = x.flatten()
    return x, flat, run(flat), torch.autograd.functional.jacobian(run, flat)
