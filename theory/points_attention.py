"""Heads and tokens at which the bounds of attention are attained: C.10 to C.15, L_softmax.

No search, some milliseconds. Each term of (F) and (R) is attained where the other terms are zero
or negligible.
"""

import math

import torch
from torch import Tensor

from theory.attention import Comparison, Head, centred, fro, row, two
from theory.shared_tokens import least_distance
from theory.softmax_norms import chosen, filled, softmax_bound, spread, variation_bound
from theory.verdict import attains, known_points

EPS = 1e-5  # of small differences; outputs differ by 1e10 roundings


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def unit(*shape: int) -> Tensor:
    """A matrix with a single 1, at its first row and column."""
    a = torch.zeros(shape, dtype=torch.float64)
    a[0, 0] = 1.0
    return a


def other_queries(offset: float) -> Comparison:
    """Equal tokens, queries that differ: d = 4; offset: of both tokens, invisible to softmax."""
    head = Head(2 * unit(4, 4), 3 * unit(4, 4), 0.7 * unit(4, 4))
    z = tensor([offset - 2.0, 0, 0, 0], [offset + 2.0, 0, 0, 0])
    x = EPS * unit(1, 4)
    return Comparison(head, x, 0 * x, z, z)


def other_tokens(length: float) -> Comparison:
    """Equal long queries, tokens that move along them: term A by tokens alone. d = 2."""
    eye = torch.eye(2, dtype=torch.float64)
    x, z = length * unit(1, 2), tensor([0.0, 1.0], [0.0, -1.0])
    dz = 1e-9 * tensor([1.0, 0.0], [-1.0, 0.0])
    return Comparison(Head(2 * eye, 3 * eye, 0.5 * eye), x, x, z + dz, z)


def moved_values() -> Comparison:
    """No queries: the output is the mean of the values, which all move alike. M = 3."""
    eye = torch.eye(2, dtype=torch.float64)
    x, z = torch.zeros(3, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    return Comparison(Head(eye, eye, 3 * eye), x, x, z + tensor([0.3, 0.4]), z)


def bounds() -> dict[str, bool]:
    """(F) and (R), term by term."""
    queries, shifted, tokens = other_queries(0.0), other_queries(5.0), other_tokens(1e4)
    values = moved_values()
    frobenius = [shifted, tokens, values]
    rows = [queries, tokens, values]
    return {
        "known points: each term of (F)": attains(
            [fro(c.difference) for c in frobenius], [c.bound_f() for c in frobenius]
        ),
        "known points: each term of (R)": attains(
            [row(c.difference) for c in rows], [c.bound_r() for c in rows]
        ),
        "known points: term A": attains(
            [fro(c.term_a) for c in (shifted, tokens)], [c.bound_a() for c in (shifted, tokens)]
        ),
    }


known_points("C.10", "C.12", "C.14")(bounds)


@known_points("C.10", "C.11")
def heads() -> dict[str, bool]:
    """A head is PyTorch's attention, its terms add up, and its contraction is attained."""
    g = torch.Generator().manual_seed(0)
    w_q, w_k, w_v = torch.randn(3, 4, 4, generator=g, dtype=torch.float64)
    x, y = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)
    z, z_ideal = torch.randn(2, 5, 4, generator=g, dtype=torch.float64)
    head = Head(w_q, w_k, w_v)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *((a @ w)[None] for a, w in ((x, w_q), (z, w_k), (z, w_v)))
    )[0]
    c, pair = Comparison(head, x, y, z, z_ideal), other_queries(5.0)
    return {
        "the head is PyTorch's attention": torch.allclose(head(x, z), theirs),
        "both terms add up": torch.allclose(c.term_a + c.term_b, c.difference)
        and torch.allclose(c.difference, head(x, z) - head(y, z_ideal)),
        "known points: the contraction": attains(
            fro(pair.difference) / EPS, pair.head.contraction(pair.z)
        ),
        "columns are centred": torch.allclose(centred(z), (torch.eye(5, dtype=z.dtype) - 0.2) @ z),
    }


@known_points("L_softmax", "C.13")
def softmax() -> dict[str, bool]:
    """Two tokens at a tie; rows that are equal, and rows that all choose one token."""
    small, step = tensor([EPS, -EPS, 0.0])[0], tensor([1.5, -1.5])[0]
    tie = tensor([0.0, 0.0, -60.0])[0]
    moved = ((tie + small).softmax(-1) - tie.softmax(-1)).norm()
    crossed = ((step / 2).softmax(-1) - (-step / 2).softmax(-1)).abs().sum() / 2
    even, one = torch.zeros(6, 2, dtype=torch.float64), 60 * tensor(*[[1.0, 0.0, 0.0]] * 4)
    norms = [filled(even), spread(even), filled(one), chosen(one)]
    return {
        "known points: softmax": attains(
            [moved, crossed], [softmax_bound(small), variation_bound(step)]
        ),
        "known points: norms of weights": attains(norms, [1.0] * 4, 1 - 1e-9)
        and attains([two(even.softmax(-1)), two(one.softmax(-1))], [3**0.5, 2.0], 1 - 1e-9),
    }


@known_points("C.15")
def tokens() -> dict[str, bool]:
    """The least distance is that of a least-squares fit, with a bias and without."""
    g = torch.Generator().manual_seed(0)
    h, z = torch.randn(2, 7, 3, generator=g, dtype=torch.float64)
    found, fits = [], []
    for columns, has_bias in ((h, False), (torch.cat([h, torch.ones_like(h[:, :1])], 1), True)):
        fit = columns @ torch.linalg.lstsq(columns, z).solution
        found.append(least_distance(h, z, has_bias))
        fits.append((fit - z).norm())
    return {
        "known points: least squares": attains(found, fits, 1 - 1e-9),
        "known points: the distance of (1, -1) from (1, 1)": attains(
            least_distance(tensor([1.0], [1.0]), tensor([1.0], [-1.0])), math.sqrt(2), 1 - 1e-9
        ),
    }
