"""Bound suprema by their values on a grid, between the nodes too: no sample can miss them.

A trigonometric polynomial p of degree n in one angle stays above |p|_max cos(n x) within x of its
largest value (M. Riesz). Hence N > 2 n even nodes give |p|_max <= max over nodes / cos(pi n / N).
In several angles the factors multiply. These certificates use no proof of theory/README.md: they
are independent of A3 and A4, and exact up to rounding (1e-12). `lemma_margin` is interval
arithmetic and fully exact.
"""

import math
from collections.abc import Iterable

import torch
from mpmath import iv, mp
from torch import Tensor

from vala_research import InputError


def between_nodes(n_nodes: int, degrees: Iterable[int]) -> float:
    """Bound the supremum of a trigonometric polynomial, divided by its maximum on a grid.

    n_nodes: nodes on the circle of every angle. degrees: one per angle.
    Raises InputError for too few nodes.
    """
    factor = 1.0
    for degree in degrees:
        if n_nodes <= 2 * degree:
            raise InputError(f"{n_nodes} nodes for degree {degree}: take more than {2 * degree}.")
        factor /= math.cos(math.pi * degree / n_nodes)
    return factor


def gradient_supremum(n_frames: int, n_nodes: int = 2000) -> tuple[float, float]:
    """Bound |dL/dF_t| |F_t| (T - 1) over all frames; A4.

    x = sin a and y = sin b are the similarities on both sides of frame t. The value is at most
    twice |w| cos a + |w'| cos b: polynomials of degree 2 in each angle, for any signs.
    Returns the largest value on the grid, and the certified bound.
    """
    if n_frames < 3:
        raise InputError(f"A loss of {n_frames} frames: give at least 3.")

    # |w| and |w'|: a frame next to the ends of the path has fewer changes beside it.
    a = torch.arange(n_nodes, dtype=torch.float64) * (2 * math.pi / n_nodes)
    x, y = a.sin()[:, None], a.sin()[None]
    before, after = (2 * x - y).abs() + 1, (2 * y - x).abs() + 1
    if n_frames == 3:  # both similarities are the ends of the path
        before = after = (x - y).abs()
    elif n_frames == 4:  # one of them is
        before = (x - y).abs()
    largest = 2 * (before * a.cos().abs()[:, None] + after * a.cos().abs()[None]).max().item()
    return largest, largest * between_nodes(n_nodes, (2, 2))


def curvature_supremum(n_nodes: int = 128) -> tuple[float, float]:
    """Bound the Hessian norm of L for T = 3, |F_t| = 1; A3.

    Frames: (cos a, sin a, 0), (1, 0, 0), (cos b, sin b cos c, sin b sin c). Motions out of the
    space of the three frames form a second block. Entries are polynomials of degree 4 in a, b and
    c. By mirrors and reversal of time, a grid over 0 <= a <= b <= pi, 0 <= c <= pi suffices.
    Returns the largest value on the grid, and the certified bound.
    """
    if n_nodes % 2:
        raise InputError(f"{n_nodes} nodes: give an even number, the mirrors need it.")
    half = torch.arange(n_nodes // 2 + 1, dtype=torch.float64) * (2 * math.pi / n_nodes)
    pairs = torch.combinations(half, 2, with_replacement=True)
    largest = 0.0
    for c in half.tolist():
        a, b = pairs.unbind(1)
        for block in hessian_blocks(three_frames(a, b, c)):
            largest = max(largest, torch.linalg.eigvalsh(block).abs().max().item())
    return largest, largest * between_nodes(n_nodes, (4, 4, 4))


def three_frames(a: Tensor, b: Tensor, c: float) -> Tensor:
    """Unit frames at angles a and b from the middle one, in planes that meet at c: n 3 3."""
    zero = torch.zeros_like(a)
    first = torch.stack([a.cos(), a.sin(), zero], -1)
    middle = torch.stack([zero + 1, zero, zero], -1)
    last = torch.stack([b.cos(), b.sin() * math.cos(c), b.sin() * math.sin(c)], -1)
    return torch.stack([first, middle, last], 1)


def hessian_blocks(u: Tensor, flicker_weight: float = 0.0) -> tuple[Tensor, Tensor]:
    """Hessian of L + w mean(1 - s) at unit u, b f d, in two blocks.

    Block b fd fd: motions within the space of the frames. Block b f f: motions out of it. A motion
    x out of the space has s'' = 2 <x_t, x_t+1> - s (|x_t|^2 + |x_t+1|^2), and s' = 0.
    """
    n, n_frames, d = u.shape
    s = (u[:, :-1] * u[:, 1:]).sum(-1)
    change = s.diff(dim=1)
    first = torch.zeros(n, n_frames - 1, n_frames, d, dtype=u.dtype)
    inside = torch.zeros(n, n_frames, d, n_frames, d, dtype=u.dtype)
    across = torch.zeros(n, n_frames, n_frames, dtype=u.dtype)
    weight = torch.full_like(s, -flicker_weight / 2)  # D'D s - w / 2
    weight[:, 1:] += change
    weight[:, :-1] -= change

    # Add the second derivatives of each s_t, weighted by dL/ds_t, and keep its first derivatives.
    eye = torch.eye(d, dtype=u.dtype)
    for t in range(n_frames - 1):
        f, g, w = u[:, t], u[:, t + 1], weight[:, t]
        cos = s[:, t, None, None]
        ff, gg, fg = (p[:, :, None] * q[:, None] for p, q in ((f, f), (g, g), (f, g)))
        first[:, t, t], first[:, t, t + 1] = g - s[:, t, None] * f, f - s[:, t, None] * g
        mixed = fg + fg.mT
        scale = w[:, None, None]
        inside[:, t, :, t] += scale * (3 * cos * ff - mixed - cos * eye)
        inside[:, t + 1, :, t + 1] += scale * (3 * cos * gg - mixed - cos * eye)
        cross = scale * (eye - ff - gg + cos * fg)
        inside[:, t, :, t + 1] += cross
        inside[:, t + 1, :, t] += cross.mT
        across[:, [t, t + 1], [t, t + 1]] -= (w * s[:, t])[:, None]
        across[:, [t, t + 1], [t + 1, t]] += w[:, None]

    # Add the squares of the first derivatives of the changes s_t - s_{t-1}.
    jacobian = first.flatten(2).diff(dim=1)
    inside = inside.reshape(n, n_frames * d, -1) + jacobian.mT @ jacobian
    scale = 2 / (n_frames - 1)
    return scale * inside, scale * across


def lemma_polynomial(big_p, u):
    """h(P, u) of lemma A3.3, for numbers or intervals."""
    return big_p * (1 + u) / 2 - (big_p - 2) * u**3 / 4 + (u - 1) * u**4 / 8


def lemma_margin(n_boxes: int = 64) -> float:
    """Bound the polynomial h of lemma A3.3 from below, by interval arithmetic. It exceeds 0.

    h(P, u) = P (1 + u) / 2 - (P - 2) u^3 / 4 + (u - 1) u^4 / 8 on 4 <= P <= 64/7, 1 <= u <= 2. This
    is the only inequality in the proof of the sharp constant that is not obvious. h is affine in P,
    so that the two ends of P bound it.
    """
    before, iv.prec = iv.prec, 80
    try:
        least = mp.inf
        for big_p in (iv.mpf(4), iv.mpf(64) / 7):
            for i in range(n_boxes):
                u = iv.mpf([1 + mp.mpf(i) / n_boxes, 1 + mp.mpf(i + 1) / n_boxes])
                least = min(least, mp.mpf(lemma_polynomial(big_p, u).a))
    finally:
        iv.prec = before
    return float(least)
