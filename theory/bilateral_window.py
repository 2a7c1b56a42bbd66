"""A bilateral filter of an image with few sites as matrices: its weights, and its Jacobian.

The same numbers as `vala_research.methods.bilateral`, sigma_intensity 1, in a form that an attack
can differentiate twice. What mirrors onto a site counts with the site: its spatial weights add up.
"""

from itertools import product
from math import exp

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.methods.bilateral import BORDERS, bias_bound, lipschitz_bound


def spatial_weights(
    shape: tuple[int, int], kernel_size: int, sigma_spatial: float, border: str = "truncate"
) -> Float[Tensor, "n n"]:
    """G_yx: the weight in space of site x in the window of site y, sites in rows of an image.

    Raises InputError where `bilateral_filter` would: an even window, sigma_spatial <= 0, a window
    that reflection cannot fill, an unknown border.
    """
    if kernel_size < 1 or kernel_size % 2 != 1:
        raise InputError(f"kernel_size is {kernel_size}: give a positive odd number.")
    if not sigma_spatial > 0:
        raise InputError(f"sigma_spatial is {sigma_spatial}: give a positive number.")
    if border not in BORDERS:
        raise InputError(f"Unknown border {border!r}: choose one of {', '.join(BORDERS)}.")
    rows, columns = (_line(n, kernel_size // 2, sigma_spatial, border) for n in shape)
    return torch.kron(rows, columns)


def _line(n: int, radius: int, sigma: float, border: str) -> Tensor:
    """The weights of an axis; an axis of one site has no neighbours, whatever the border."""
    g = torch.zeros(n, n, dtype=torch.float64)
    if n == 1:
        return g + 1
    if border == "reflect" and radius >= n:
        raise InputError(
            f"A window of {2 * radius + 1} does not fit {n} sites by reflection: give at least "
            f"{radius + 1}, or the border 'truncate'."
        )
    for y, offset in product(range(n), range(-radius, radius + 1)):
        x = y + offset
        if border == "reflect":
            x = abs(x) if x < n else 2 * (n - 1) - x
        if 0 <= x < n:
            g[y, x] += exp(-((offset / sigma) ** 2) / 2)
    return g


def weights(x: Float[Tensor, "*b n"], g: Float[Tensor, "n n"]) -> Float[Tensor, "*b n n"]:
    """W(x), rows that sum to 1: B(x) = W(x) x, and W(guide) x is the filter with a fixed guide."""
    delta = x[..., None, :] - x[..., :, None]  # b y x
    w = g * torch.exp(-(delta**2) / 2)
    return w / w.sum(-1, keepdim=True)


def jacobian(x: Float[Tensor, "*b n"], g: Float[Tensor, "n n"]) -> Float[Tensor, "*b n n"]:
    """dB_y / dx_x = w (1 - delta (delta - s)), s = B(x)_y - x_y; on the diagonal what is missing.

    A constant added to an image is added to its filtered image, and so rows sum to 1.
    """
    delta = x[..., None, :] - x[..., :, None]
    w = weights(x, g)
    shift = (w * delta).sum(-1, keepdim=True)
    off = w * (1 - delta * (delta - shift)) * (1 - torch.eye(len(g), dtype=g.dtype))
    return off + torch.diag_embed(1 - off.sum(-1))


def masses(g: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """S of each window: its spatial weights but that of the site itself, which is 1."""
    return (g - g.diagonal().diag()).sum(1)


def column_bound(g: Float[Tensor, "n n"]) -> float:
    """Largest column sum that W(x) can have, over all images x: theory/README.md, B3.

    max_x 1 / (1 + sum_y g) + sum_y g / (1 + g). Only for the border "truncate", where weights are
    symmetric: raises InputError for others.
    """
    if not torch.equal(g, g.T):
        raise InputError("These windows mirror sites: take spatial weights of border 'truncate'.")
    off = g - g.diagonal().diag()
    return float((1 / (1 + off.sum(0)) + (off / (1 + off)).sum(0)).max())


def euclidean_bound(g: Float[Tensor, "n n"], grid: int = 20001) -> float:
    """sqrt(L_inf L_1): the Lipschitz constant of B in l2 is at most so much.

    L_1 <= 1 + n* + max_x sum_y rho(G_yx), n* = (L_inf - 1) / 2, rho(g) the largest entry that a
    neighbour of weight g can have. rho is a maximum over delta, taken on a grid on [0, 8]; beyond,
    and between the points, it is larger by less than 1e-6, which is added.
    """
    mass = float(masses(g).max())
    sup, shift = lipschitz_bound(mass), bias_bound(mass, 1.0)
    delta = torch.linspace(0, 8, grid, dtype=torch.float64)
    square = delta**2
    most = torch.maximum(1 + delta * shift - square, square + delta * shift - 1)

    def rho(weight: float) -> float:
        q = weight * torch.exp(-square / 2)
        return float((q / (1 + q) * most).max()) + 1e-6

    off = g - g.diagonal().diag()
    known = {v: rho(v) for v in {float(v) for v in off.unique()} if v > 0}
    columns = [sum(known[float(v)] for v in column if v > 0) for column in off.T]
    return (sup * (1 + (sup - 1) / 2 + max(columns))) ** 0.5
