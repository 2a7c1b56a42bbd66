"""Weights and Jacobian of a bilateral filter as matrices, for an image with few sites.

The numbers equal those of `vala_research.methods.bilateral` at sigma_intensity 1. An attack can
differentiate this form twice. Spatial weights of mirrored sites are added to those of the site.
"""

from collections.abc import Callable
from itertools import product
from math import exp

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.methods.bilateral import (
    bias_bound,
    check_reflection,
    check_window,
    lipschitz_bound,
)


def spatial_weights(
    shape: tuple[int, int], kernel_size: int, sigma_spatial: float, border: str = "truncate"
) -> Float[Tensor, "n n"]:
    """Spatial weights G_yx of site x in the window of site y; sites are ordered by rows.

    Raises InputError where `bilateral_filter` would: an even window, sigma_spatial <= 0, a window
    that reflection cannot fill, an unknown border.
    """
    check_window(kernel_size, sigma_spatial, 1.0, border)
    rows, columns = (_line(n, kernel_size, sigma_spatial, border) for n in shape)
    return torch.kron(rows, columns)


def _line(n: int, kernel_size: int, sigma: float, border: str) -> Tensor:
    """Spatial weights along one axis. An axis of one site has no neighbours, at any border."""
    g, radius = torch.zeros(n, n, dtype=torch.float64), kernel_size // 2
    if n == 1:
        return g + 1
    check_reflection("the image", "sites", n, kernel_size, border)
    for y, offset in product(range(n), range(-radius, radius + 1)):
        x = y + offset
        if border == "reflect":
            x = abs(x) if x < n else 2 * (n - 1) - x
        if 0 <= x < n:
            g[y, x] += exp(-((offset / sigma) ** 2) / 2)
    return g


def weights(x: Float[Tensor, "*b n"], g: Float[Tensor, "n n"]) -> Float[Tensor, "*b n n"]:
    """W(x) with rows that sum to 1: B(x) = W(x) x; W(guide) x is the filter with a fixed guide."""
    delta = x[..., None, :] - x[..., :, None]  # b y x
    w = g * torch.exp(-(delta**2) / 2)
    return w / w.sum(-1, keepdim=True)


def jacobian(x: Float[Tensor, "*b n"], g: Float[Tensor, "n n"]) -> Float[Tensor, "*b n n"]:
    """Jacobian dB_y / dx_x = w (1 - delta (delta - s)) off the diagonal, s = B(x)_y - x_y.

    Rows sum to 1, since a constant added to an image is added to its filtered image. The diagonal
    follows from that.
    """
    delta = x[..., None, :] - x[..., :, None]
    w = weights(x, g)
    shift = (w * delta).sum(-1, keepdim=True)
    moved = w * (1 - delta * (delta - shift))
    return moved + torch.diag_embed(1 - moved.sum(-1))


def spectral_norm(matrix_of: Callable[..., Tensor], g: Tensor, x: Tensor) -> Tensor:
    """Largest singular value of `weights` or `jacobian` at x."""
    return torch.linalg.matrix_norm(matrix_of(x, g), ord=2)


def masses(g: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """S of each window: sum of its spatial weights without the site itself, whose weight is 1."""
    return (g - g.diagonal().diag()).sum(1)


def image_bias(n_sites: int, p: float, bias: float) -> float:
    """N^(1/p) b(S) sigma, a bound of ||B(x) - x||_p; bias = b(S) sigma: theory/README.md, B1."""
    return n_sites ** (1 / p) * bias


def column_bound(g: Float[Tensor, "n n"]) -> float:
    """Largest column sum of W(x) over all images x: theory/README.md, B3.

    max_x 1 / (1 + sum_y g) + sum_y g / (1 + g). It needs symmetric weights, hence the border
    "truncate". Raises InputError for others.
    """
    if not torch.equal(g, g.T):
        raise InputError("These windows mirror sites: take spatial weights of border 'truncate'.")
    off = g - g.diagonal().diag()
    return float((1 / (1 + off.sum(0)) + (off / (1 + off)).sum(0)).max())


def euclidean_bound(g: Float[Tensor, "n n"], grid: int = 20001) -> float:
    """Bound of the Lipschitz constant of B in l2: sqrt(L_inf L_1).

    L_1 <= 1 + n* + max_x sum_y rho(G_yx), n* = (L_inf - 1) / 2. rho(g) is the largest entry of a
    neighbour of weight g: a maximum over delta, taken on a grid on [0, 8]. Beyond the grid and
    between its points rho is larger by less than 1e-6, which is added.
    """
    # The factor of the weight in an entry, over delta, for either sign.
    mass = float(masses(g).max())
    sup, shift = lipschitz_bound(mass), bias_bound(mass, 1.0)
    delta = torch.linspace(0, 8, grid, dtype=torch.float64)
    square = delta**2
    most = torch.maximum(1 + delta * shift - square, square + delta * shift - 1)

    def rho(weight: float) -> float:
        q = weight * torch.exp(-square / 2)
        return float((q / (1 + q) * most).max()) + 1e-6

    # Sum rho over each column; equal weights are computed once.
    off = g - g.diagonal().diag()
    known = {v: rho(v) for v in {float(v) for v in off.unique()} if v > 0}
    columns = [sum(known[float(v)] for v in column if v > 0) for column in off.T]
    return (sup * (1 + (sup - 1) / 2 + max(columns))) ** 0.5
