"""The von Mises-Fisher distribution on the unit sphere: C_d(kappa) exp(kappa mu . u).

Mardia and Jupp 2000, Directional Statistics, 9.3. Bessel functions are computed

    by scipy for orders below 32, and by Hankel's expansion for kappa above 1e8,
    by their uniform expansion (DLMF 10.41.3) for larger orders,
    by their series for small kappa.

The relative error of C_d is below 1e-9 for every d >= 2 and kappa in [0, 1e4]. There are only as
many numbers as anchors. For so few, numpy on the CPU is several times faster than torch, whatever
the device of the tokens. Results on the CPU are float64. Another device may not have float64: there
results have the precision of the argument.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ive
from torch import Tensor

MAX_CONCENTRATION = 1e4
EXPANDED_ORDER = 32  # from this order on the expansion is accurate enough
SMALL = 1e-2  # below this concentration three terms of the series are enough
LARGE = 1e8  # above this one, two terms of Hankel's expansion; scipy's function ends near 1e9


def _expansion(order: float, kappa: np.ndarray) -> np.ndarray:
    """log I_order(kappa) - order log kappa, for a large order; DLMF 10.41.3 with four terms."""
    z = kappa / order
    root = np.sqrt(1 + z * z)
    t = 1 / root
    s, p = t * t, t / order

    # The polynomials U_k(t) of the expansion, divided by t^k.
    u1 = (3 - 5 * s) / 24
    u2 = (81 + s * (-462 + s * 385)) / 1152
    u3 = (30375 + s * (-369603 + s * (765765 - s * 425425))) / 414720
    u4 = 4465125 + s * (-94121676 + s * (349922430 + s * (-446185740 + s * 185910725)))
    series = p * (u1 + p * (u2 + p * (u3 + p * (u4 / 39813120))))

    # order eta of the expansion less order log kappa, then the factor in front of the sum.
    main = order * (root - np.log1p(root) - math.log(order))
    return main - 0.5 * (math.log(2 * math.pi * order) + np.log(root)) + np.log1p(series)


def _scaled(order: float, x: np.ndarray) -> np.ndarray:
    """exp(-x) I_order(x) for an order below EXPANDED_ORDER; DLMF 10.40.1 for large x."""
    mu, far = 4 * order**2, 8 * np.maximum(x, LARGE)
    series = 1 - (mu - 1) / far * (1 - (mu - 9) / (2 * far))
    near = ive(order, np.minimum(x, LARGE))
    return np.where(x > LARGE, series / np.sqrt(far * math.pi / 4), near)


def _bessel(d: int, kappa: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log I_nu(kappa) - nu log kappa and A_d(kappa) = I_{nu+1} / I_nu, nu = d/2 - 1."""
    nu = d / 2 - 1
    if nu >= EXPANDED_ORDER:
        value = _expansion(nu, kappa)
        return value, kappa * np.exp(_expansion(nu + 1, kappa) - value)

    # Scaled Bessel functions of scipy, which do not overflow. Small kappa are clamped meanwhile.
    is_small, x = kappa < SMALL, np.maximum(kappa, SMALL)
    scaled, square = _scaled(nu, x), np.minimum(kappa, SMALL) ** 2
    value = np.log(scaled) + x - nu * np.log(x)

    # The series at small kappa, where the quotients above lose digits.
    series = square / (2 * d) * (1 + square / (4 * (d + 2)))
    limit = np.log1p(series) - nu * math.log(2) - math.lgamma(nu + 1)
    quotient = _scaled(nu + 1, x) / scaled
    ratio = np.where(is_small, kappa / d * (1 - square / (d * (d + 2))), quotient)
    return np.where(is_small, limit, value), ratio


def _numbers(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def _beside(like: Tensor, x: np.ndarray) -> Tensor:
    """The numbers on the device of `like`; float64 on the CPU, its precision on other devices."""
    x = torch.from_numpy(x)
    return x if like.is_cpu else x.to(like.dtype).to(like.device)


def normaliser_and_length(
    d: int, kappa: Float[Tensor, " k"]
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """log C_d(kappa) and A_d(kappa), at the cost of either alone."""
    value, length = _bessel(d, _numbers(kappa))
    return _beside(kappa, -0.5 * d * math.log(2 * math.pi) - value), _beside(kappa, length)


def log_normaliser(d: int, kappa: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """log C_d(kappa); kappa = 0 is the uniform distribution."""
    return normaliser_and_length(d, kappa)[0]


def log_uniform(d: int) -> float:
    """log C_d(0): the density of the uniform distribution on the sphere in d dimensions."""
    return math.lgamma(d / 2) - math.log(2) - 0.5 * d * math.log(math.pi)


def mean_length(d: int, kappa: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """A_d(kappa) = I_{d/2} / I_{d/2-1}: expected length of the mean of unit vectors, in [0, 1)."""
    return normaliser_and_length(d, kappa)[1]


def concentration(
    d: int,
    length: Float[Tensor, " k"],
    start: Float[Tensor, " k"] | None = None,
    n_newton: int = 5,
) -> Float[Tensor, " k"]:
    """Solve A_d(kappa) = `length` for kappa <= 1e4: the maximum of log C_d(kappa) + kappa length.

    Newton's method in 1 / kappa, in which A_d is nearly linear at high concentrations. A shrinking
    bracket safeguards it, since A_d increases. It stops when a step is below 1e-5 of kappa; the
    next step would be about the square of that.
    start: first kappa; None takes Banerjee et al. 2005, Eq. (4.4).
    n_newton: most iterations.
    """
    wanted = np.clip(_numbers(length), 0, 1)
    low, high = np.zeros_like(wanted), np.full_like(wanted, MAX_CONCENTRATION)
    if start is None:
        kappa = wanted * (d - wanted**2) / np.maximum(1 - wanted**2, 1e-12)
    else:
        kappa = _numbers(start)
    kappa = np.minimum(kappa, MAX_CONCENTRATION)

    for _ in range(n_newton):
        # Tighten the bracket by the sign of A_d(kappa) - length.
        a, positive = _bessel(d, kappa)[1], np.maximum(kappa, 1e-300)
        low, high = np.where(a < wanted, kappa, low), np.where(a > wanted, kappa, high)

        # Newton step in 1 / kappa, with A_d' = 1 - A_d^2 - (d - 1) A_d / kappa; else bisect.
        slope = np.where(kappa > 0, 1 - a**2 - (d - 1) * a / positive, 1 / d)
        new = kappa / (1 + (a - wanted) / (np.maximum(slope, 1e-12) * positive))
        new = np.where((new >= low) & (new <= high), new, (low + high) / 2)
        is_settled = (np.abs(new - kappa) <= 1e-5 * new).all()
        kappa = new
        if is_settled:
            break
    return _beside(length, kappa)
