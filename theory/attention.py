"""Compare one head of attention with its ideal, and bound the difference.

GE-Adapter (arXiv 2501.04606), appendix C.3. Proofs: theory/README.md, C1 to C4.
"""

from dataclasses import dataclass
from math import sqrt

from jaxtyping import Float
from torch import Tensor
from torch.linalg import matrix_norm, svdvals

from vala_research import InputError


@dataclass(frozen=True)
class Head:
    """One head of attention, Eq. (85): softmax(X W_Q W_K' Z' / sqrt(d)) Z W_V.

    The paper's matrices are square. Matrices of real layers are not; the bounds hold for them too.
    Axes before the last two are a batch.
    """

    w_q: Float[Tensor, "*b c d"]
    w_k: Float[Tensor, "*b e d"]
    w_v: Float[Tensor, "*b e v"]

    def weights(self, x: Float[Tensor, "*b m c"], z: Float[Tensor, "*b n e"]) -> Tensor:
        """Weights P of each query over the tokens; rows sum to 1."""
        if x.shape[-1] != self.w_q.shape[-2] or z.shape[-1] != self.w_k.shape[-2]:
            raise InputError(
                f"Queries are {x.shape[-1]} wide and tokens {z.shape[-1]}, but this head takes "
                f"{self.w_q.shape[-2]} and {self.w_k.shape[-2]}: give those widths."
            )
        return (x @ self.w_q @ (z @ self.w_k).mT / sqrt(self.w_q.shape[-1])).softmax(-1)

    def contraction(self, z: Float[Tensor, "*b n e"]) -> Tensor:
        """||H V||_2 ||H K W_Q'||_2 / (2 sqrt d), a Lipschitz constant of X -> head(X, Z): C4."""
        keys = two(centred(z @ self.w_k @ self.w_q.mT))
        return two(centred(z @ self.w_v)) * keys / (2 * sqrt(self.w_q.shape[-1]))

    def __call__(self, x: Float[Tensor, "*b m c"], z: Float[Tensor, "*b n e"]) -> Tensor:
        return self.weights(x, z) @ z @ self.w_v


@dataclass(frozen=True)
class Comparison:
    """Outputs of a head for (X_t, Z) and for the ideal (X*, Z*).

    The ideal output is head(x_ideal, z_ideal). It is X* itself where Eq. (83) holds. No bound here
    needs Eq. (83): x_ideal may be any other queries.
    """

    head: Head
    x: Float[Tensor, "*b m c"]
    x_ideal: Float[Tensor, "*b m c"]
    z: Float[Tensor, "*b n e"]
    z_ideal: Float[Tensor, "*b n e"]

    @property
    def difference(self) -> Tensor:
        """X~ - X*: output less ideal output."""
        return self.head(self.x, self.z) - self.head(self.x_ideal, self.z_ideal)

    @property
    def term_a(self) -> Tensor:
        """(P - P*) V*, of Eq. (86)."""
        ideal = self.head.weights(self.x_ideal, self.z_ideal)
        return (self.head.weights(self.x, self.z) - ideal) @ self.z_ideal @ self.head.w_v

    @property
    def term_b(self) -> Tensor:
        """P (Z - Z*) W_V, of Eq. (86)."""
        return self.head.weights(self.x, self.z) @ (self.z - self.z_ideal) @ self.head.w_v

    def bound_a(self) -> Tensor:
        """Bound of ||term A||_F: (F) without its last term."""
        h = self.head
        keys = centred(self.z_ideal @ h.w_k @ h.w_q.mT)
        moved = two(keys) * fro(self.x - self.x_ideal)
        moved = moved + two(self.x @ h.w_q @ h.w_k.mT) * fro(self.z - self.z_ideal)
        return two(centred(self.z_ideal @ h.w_v)) / (2 * sqrt(h.w_q.shape[-1])) * moved

    def bound_f(self) -> Tensor:
        """Bound (F) of the Frobenius norm of the difference."""
        last = two(self.head.weights(self.x, self.z)) * two(self.head.w_v)
        return self.bound_a() + last * fro(self.z - self.z_ideal)

    def bound_r(self) -> Tensor:
        """Bound (R) of every row of the difference; independent of the number of rows."""
        h, values, dz = self.head, self.z_ideal @ self.head.w_v, row(self.z - self.z_ideal)
        moved = row(self.z_ideal @ h.w_k @ h.w_q.mT) * row(self.x - self.x_ideal)
        moved = moved + row(self.x) * two(h.w_q @ h.w_k.mT) * dz
        return diameter(values) / (2 * sqrt(h.w_q.shape[-1])) * moved + two(h.w_v) * dz

    def bound_paper(self) -> Tensor:
        """The paper's bound gamma ||Z - Z*||_F, Eq. (84).

        The softmax constant is the largest that the paper allows, sqrt(d). delta is the smallest
        singular value of W_V.
        """
        h, factor = self.head, sqrt(self.head.w_q.shape[-1])
        gamma = factor * two(h.w_k) * two(h.w_v) / svdvals(h.w_v)[..., -1]
        return gamma * fro(self.z - self.z_ideal)


def fro(a: Tensor) -> Tensor:
    """Frobenius norm."""
    return matrix_norm(a)


def two(a: Tensor) -> Tensor:
    """Spectral norm."""
    return matrix_norm(a, 2)


def row(a: Tensor) -> Tensor:
    """Largest norm of a row."""
    return a.norm(dim=-1).amax(-1)


def centred(a: Tensor) -> Tensor:
    """Pi a: each column without its mean."""
    return a - a.mean(-2, keepdim=True)


def diameter(a: Tensor) -> Tensor:
    """Largest distance of two rows."""
    return (a[..., :, None, :] - a[..., None, :, :]).norm(dim=-1).flatten(-2).amax(-1)


def ideal_output(head: Head, z: Tensor, n_rows: int, n_steps: int = 500) -> tuple[Tensor, float]:
    """Find X* of Eq. (83) by iteration from the mean of the values.

    A solution always exists: the right side maps the convex hull of the values, row by row, into
    itself (Brouwer). The iteration finds it where the right side contracts.
    Returns X* and its residual of Eq. (83).
    """
    x = (z @ head.w_v).mean(-2, keepdim=True).expand(*z.shape[:-2], n_rows, -1)
    for _ in range(n_steps):
        x = head(x, z)
    return x, float((head(x, z) - x).norm())


def judged(w_q, w_k, w_v, x, x_ideal, z, z_ideal) -> dict[str, float]:
    """Compute both norms of the difference and their three bounds, in float64.

    difference, paper, F: Frobenius norm and its bounds.
    row, R: largest norm of a row and its bound.
    a, bound_a: Frobenius norm of term A and its bound.
    norm: ||P||_2.
    """
    points = (p.double() for p in (x, x_ideal, z, z_ideal))
    c = Comparison(Head(w_q.double(), w_k.double(), w_v.double()), *points)
    values = {
        "difference": fro(c.difference), "paper": c.bound_paper(), "F": c.bound_f(),
        "row": row(c.difference), "R": c.bound_r(), "a": fro(c.term_a), "bound_a": c.bound_a(),
        "norm": two(c.head.weights(c.x, c.z)),
    }  # fmt: skip
    return {name: float(value) for name, value in values.items()}
