"""Attack bounds of attention over heads, queries and tokens, ideal and actual."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.linalg import pinv, svdvals

from theory.attack import Points, attack
from theory.attention import Comparison, Head, fro, row, two

EPS = torch.finfo(torch.float64).eps
Case = Callable[..., Comparison]
SIZES = ((1, 1, 2), (2, 2, 4))  # d, n_q, n_tok of the attacks: N_s = N_u = d, as the paper asks


@dataclass(frozen=True)
class Found:
    """Largest ratio of a search, its point, and the number of points evaluated."""

    value: float
    point: Comparison
    n_searched: int

    @property
    def witness(self) -> dict[str, Tensor]:
        """The point as named tensors."""
        c = self.point
        return {"w_q": c.head.w_q, "w_k": c.head.w_k, "w_v": c.head.w_v, "x": c.x,
                "x_ideal": c.x_ideal, "z": c.z, "z_ideal": c.z_ideal}  # fmt: skip


def search(
    case: Case, ratio: Callable[[Comparison], Tensor], seed: int, n_steps: int, dz_scale: float = 1
) -> Found:
    """Attack lhs / rhs at each of SIZES. dz_scale: factor of Z - Z*; 0 makes tokens equal."""

    def of(*points: Tensor) -> Comparison:
        return case(*points[:-1], dz_scale * points[-1])

    def counted(*points: Tensor) -> Tensor:
        c = of(*points)
        return torch.where(is_resolved(c), ratio(c), 0.0)

    attacks = [attack(counted, partial(draw, size=size), seed, n_steps) for size in SIZES]
    best = max(attacks, key=lambda attacked: attacked.value)
    return Found(best.value, of(*best.point), sum(a.n_searched for a in attacks))


def draw(g: torch.Generator, size: tuple[int, int, int], n: int = 48) -> Points:
    """Draw W_Q, W_K, W_V, X_t, X*, Z*, dZ: normal, dZ scaled by 1 to 1e-4."""
    d, m, n_tokens = size
    shapes = ((d, d), (d, d), (d, d), (m, d), (m, d), (n_tokens, d), (n_tokens, d))
    *points, dz = (torch.randn(n, *s, generator=g, dtype=torch.float64) for s in shapes)
    scale = 10 ** (-4 * torch.rand(n, 1, 1, generator=g, dtype=torch.float64))
    return *points, scale * dz


def as_drawn(w_q, w_k, w_v, x, x_ideal, z_ideal, dz) -> Comparison:
    """The comparison of drawn points, whether or not X* solves Eq. (83)."""
    return Comparison(Head(w_q, w_k, w_v), x, x_ideal, z_ideal + dz, z_ideal)


def is_resolved(c: Comparison) -> Tensor:
    """Whether outputs differ by at least 1e8 roundings: a ratio is then accurate to 1e-7."""
    logits = (c.x @ c.head.w_q @ (c.z @ c.head.w_k).mT).abs().amax((-2, -1))
    scale = (1 + logits) * two(torch.cat([c.z, c.z_ideal], -2) @ c.head.w_v)
    return torch.minimum(fro(c.difference), fro(c.term_a)) > 1e8 * EPS * scale


def solving(w_q, w_k, w_v, x, x_ideal, z_ideal, dz) -> Comparison:
    """`as_drawn` with the smallest change of W_V by which X* solves Eq. (83)."""
    mean = Head(w_q, w_k, w_v).weights(x_ideal, z_ideal) @ z_ideal  # P* does not depend on W_V
    solved = w_v + pinv(mean) @ (x_ideal - mean @ w_v)
    return Comparison(Head(w_q, w_k, solved), x, x_ideal, z_ideal + dz, z_ideal)


def solves_it(c: Comparison) -> Tensor:
    """Whether x_ideal solves Eq. (83) to float64 accuracy, and W_V is far from singular."""
    left = fro(c.head(c.x_ideal, c.z_ideal) - c.x_ideal)
    values = svdvals(c.head.w_v)
    return (left < 1e-9 * row(c.x_ideal)) & (values[..., -1] >= 0.01 * values[..., 0])


def random_ratios(n: int = 20_000, seed: int = 0) -> dict[str, list[float]]:
    """Sample lhs / rhs of the paper's bound, of (F) and of (R), where X* solves Eq. (83)."""
    ratios: dict[str, list[float]] = {"paper": [], "F": [], "R": []}
    for size in SIZES:
        c = solving(*draw(torch.Generator().manual_seed(seed), size, n // len(SIZES)))
        is_valid, lhs = solves_it(c) & is_resolved(c), fro(c.difference)
        ratios["paper"] += (lhs / c.bound_paper())[is_valid].tolist()
        ratios["F"] += (lhs / c.bound_f())[is_valid].tolist()
        ratios["R"] += (row(c.difference) / c.bound_r())[is_valid].tolist()
    return ratios
