"""Bound a filter of three taps by interval arithmetic, without samples and without theorems.

The two neighbours of a site differ from it by (d1, d2). Boxes cover the plane of all (d1, d2); some
are unbounded. On each box the quantity is enclosed with outward rounding. A box that does not show
the claim is halved. This is independent of the proofs in theory/README.md.
"""

from dataclasses import dataclass
from functools import cache
from math import inf, isfinite

from mpmath import iv, mpf

from vala_research import InputError

Range = tuple[float, float]


@dataclass(frozen=True)
class Certificate:
    """|B(x) - x| <= `bias` sigma for every image, and B is `lipschitz`-Lipschitz in l_inf.

    n_boxes: number of boxes evaluated.
    """

    bias: float
    lipschitz: float
    n_boxes: int


def certify(
    bias: float,
    lipschitz: float,
    sigma_spatial: float = 1.0,
    corner: float = 6.0,
    most_boxes: int = 200_000,
) -> Certificate:
    """Show that |shift| <= bias and that absolute row sums of the Jacobian are <= lipschitz.

    sigma_intensity is 1; it scales bias alone. d1 >= 0 suffices: (d1, d2) -> (-d1, -d2) flips the
    sign of the shift and keeps the row sum. Windows at a border are covered, truncated or mirrored:
    an absent neighbour is infinitely far off in value.

    corner: side of the square outside of which boxes are unbounded.
    Raises InputError when the claim is not shown within most_boxes. A false claim is never shown.
    """
    if not sigma_spatial > 0:
        raise InputError(f"sigma_spatial is {sigma_spatial}: give a positive number.")

    # Cover the half plane d1 >= 0. Halve a box along its longer side until each shows the claim.
    left = [(a, b) for a in ((0.0, corner), (corner, inf))
            for b in ((-corner, corner), (corner, inf), (-inf, -corner))]  # fmt: skip

    # Enclose a box; halve its longer side where the enclosure does not show the claim.
    g, n_boxes = iv.exp(-((1 / iv.mpf(sigma_spatial)) ** 2) / 2), 0
    while left:
        d1, d2 = left.pop()
        n_boxes += 1
        shift, row_sum = enclosures(d1, d2, g)
        if -bias <= shift.a and shift.b <= bias and row_sum.b <= lipschitz:
            continue
        if n_boxes >= most_boxes:
            raise InputError(f"Not shown within {most_boxes} boxes: bias {bias}, L {lipschitz}.")
        if _width(d1) >= _width(d2):
            left += [(half, d2) for half in _halves(d1)]
        else:
            left += [(d1, half) for half in _halves(d2)]
    return Certificate(bias, lipschitz, n_boxes)


def enclosures(d1: Range, d2: Range, g: iv.mpf) -> tuple[iv.mpf, iv.mpf]:
    """Enclose the shift and the absolute row sum 1 + 2 nu for all differences in the box.

    shift = g (q1 + q2) / D, nu = g sum (p - shift q)_+ / D, D = 1 + g (e1 + e2), with
    e = exp(-d^2 / 2), q = d e, p = (d^2 - 1) e.
    """
    (e1, q1, p1), (e2, q2, p2) = moments(*d1), moments(*d2)
    total = 1 + g * (e1 + e2)
    shift = g * (q1 + q2) / total
    nu = g * (_positive(p1 - shift * q1) + _positive(p2 - shift * q2)) / total
    return shift, 1 + 2 * nu


@cache
def moments(low: float, high: float) -> tuple[iv.mpf, iv.mpf, iv.mpf]:
    """Enclose e, d e and (d^2 - 1) e for d in [low, high], by the ends and the extrema within.

    e has its extremum at 0, d e at -1 and 1, (d^2 - 1) e at 0 and the square roots of 3.
    """
    ends = [_at(d) for d in (low, high)]
    e, q, p = ([end[i] for end in ends] for i in range(3))
    if low <= 0 <= high:
        e.append(iv.mpf(1))
        p.append(iv.mpf(-1))
    for sign in (-1, 1):
        if low <= sign <= high:
            q.append(sign * iv.exp(iv.mpf(-1) / 2))
        root = sign * iv.sqrt(3)
        if low <= root.b and root.a <= high:
            p.append(2 * iv.exp(iv.mpf(-3) / 2))
    return _hull(e), _hull(q), _hull(p)


def _at(d: float) -> tuple[iv.mpf, iv.mpf, iv.mpf]:
    """e, d e and (d^2 - 1) e at d; all 0 at infinity."""
    if not isfinite(d):
        return (iv.mpf(0),) * 3
    x = iv.mpf(d)
    e = iv.exp(-(x**2) / 2)
    return e, x * e, (x**2 - 1) * e


def _hull(parts: list[iv.mpf]) -> iv.mpf:
    return iv.mpf([min(x.a for x in parts), max(x.b for x in parts)])


def _positive(x: iv.mpf) -> iv.mpf:
    return iv.mpf([max(x.a, mpf(0)), max(x.b, mpf(0))])


def _width(d: Range) -> float:
    return d[1] - d[0] if isfinite(d[1] - d[0]) else 0.0


def _halves(d: Range) -> tuple[Range, Range]:
    middle = (d[0] + d[1]) / 2
    return (d[0], middle), (middle, d[1])
