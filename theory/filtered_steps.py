"""One filtered step: its largest error, where the paper's bounds fail, readings; C.6 to C.9."""

from math import sqrt

import torch
from torch import Tensor

from theory.attack import Attack, attack
from theory.error_factors import (
    mean_norm,
    rms_step_bound,
    step_bound,
    update_factor,
    update_mean,
)
from theory.verdict import Counterexample
from vala_research.methods.bilateral import (
    BilateralSettings,
    bias_bound,
    bilateral_filter_frames,
    neighbour_mass,
)

MASS = neighbour_mass(3, 1.0, n_axes=1)  # three taps
BIAS = bias_bound(MASS, 1.0)  # both sigmas 1
ALPHA, ALPHA_BAR, ALPHA_NEXT = 0.9, 0.5, 0.92  # of the one step that is attacked


def largest_step(has_random_noise: bool, seed: int, n: int, n_starts: int, n_steps: int) -> Attack:
    """Attack the update's error over its bound, over images, errors, networks and noise.

    Networks are linear, of norm 1. The initial error has the norm of the largest bias: neither
    hides the other. With has_random_noise the noise is averaged, otherwise its norm is sqrt(n).
    """
    size, level, c = BIAS * sqrt(n), sqrt(1 - ALPHA_NEXT), update_factor(ALPHA, ALPHA_BAR)

    def ratio(x: Tensor, v: Tensor, m: Tensor, z: Tensor) -> Tensor:
        xbar = x - size * v / v.norm(dim=1, keepdim=True)
        m = m / torch.linalg.matrix_norm(m, ord=2)[:, None, None]
        filtered = bilateral_filter_frames(x.T, 3, 1.0, 1.0).T  # sites are frames here
        after, ideal = (update_mean(y, (m @ y[..., None])[..., 0], ALPHA, ALPHA_BAR)
                        for y in (filtered, xbar))  # fmt: skip
        carried = after - ideal

        # Add the noise: its variance in the mean, or a noise of norm sqrt(n) in the worst case.
        if has_random_noise:
            square = carried.square().sum(1) + level**2 * n
            return square.sqrt() / rms_step_bound(c, size, size, level * sqrt(n))
        noise = level * sqrt(n) * z / z.norm(dim=1, keepdim=True)
        return (carried + noise).norm(dim=1) / step_bound(c, size, size, level * sqrt(n))

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        shapes = [(n_starts, n)] * 2 + [(n_starts, n, n), (n_starts, n)]
        return tuple(torch.randn(s, generator=generator) for s in shapes)

    return attack(ratio, draw, seed, n_steps)


def one_filtered_step(right: str = "C 0") -> Counterexample:
    """No error, no noise, no network: the filter alone moves the path. Against C.6, C.8 and (74).

    right: the right-hand side of the claim at this point, which is 0.
    """
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    filtered = bilateral_filter_frames(x, 3, 1.0, 1.0, "truncate")
    after, ideal = (update_mean(y, torch.zeros(2).double(), 0.99, 0.5) for y in (filtered, x))
    point = f"eps = 0, z = 0, x = xbar = (0, 1), sigmas 1, alpha = 0.99; right-hand side {right}"
    return Counterexample(point, float((after - ideal).norm()), 0.0)


def two_noisy_steps(dimension: int = 4, alpha: float = 0.5) -> Counterexample:
    """Against (80): two steps, delta = 0, eps = -x, no filter. The last stretches earlier noise.

    x_1 - xbar_1 = sqrt(1 - alpha_1) z, and the last step adds no noise: alpha_0 = 1. (74) holds.
    """
    c_1, z = update_factor(alpha, alpha), mean_norm(dimension)
    point = f"n = 2, delta = 0, d = {dimension}, alpha_1 = {alpha}, alpha_0 = 1, eps = -x"
    return Counterexample(point, c_1 * sqrt(1 - alpha) * z, sqrt(1 - alpha) * sqrt(dimension))


def literal_reading(n: int = 6) -> tuple[float, float, float]:
    """Read x'_{t-1} = B(x_{t-1}), (54), at eps = z = 0, alpha = 1, on the image that alternates.

    Returns the error of the filtered output, the corrected bound of C.8 for (53)'s output, and the
    bound with the second filter's b(S) sigma sqrt(N); all over sqrt(N).
    """
    u = (BIAS + sqrt(BIAS**2 + 4)) / 2  # b = u - 1 / u
    x = u * (torch.arange(n, dtype=torch.float64) % 2)
    twice = x
    for _ in range(2):
        twice = bilateral_filter_frames(twice, 3, 1.0, 1.0)
    return float((twice - x).norm()) / sqrt(n), BIAS, 2 * BIAS


def first_moment_ratio(seed: int = 0, n: int = 6, n_draws: int = 20_000) -> float:
    """Simulate E|e_{t-1}| over C_t (E|e_t| + b(S) sigma sqrt(N)) + sqrt(1 - alpha_{t-1}) E|z|.

    eps = -x, L_eps = 1; e and z are normal. The ideal image alternates, and the error points along
    its shift, so that nothing is wasted but the noise's direction.
    """
    generator = torch.Generator().manual_seed(seed)
    xbar = 1.25 * (torch.arange(n, dtype=torch.float64) % 2)
    shift = bilateral_filter_frames(xbar, 3, 1.0, 1.0) - xbar
    size = torch.randn(n_draws, 1, generator=generator, dtype=torch.float64).abs()
    z = torch.randn(n_draws, n, generator=generator, dtype=torch.float64)
    e = 0.1 * size * shift / shift.norm()

    x = bilateral_filter_frames((xbar + e).T, 3, 1.0, 1.0).T
    after = update_mean(x, -x, ALPHA, ALPHA_BAR) + sqrt(1 - ALPHA_NEXT) * z
    error = (after - update_mean(xbar, -xbar, ALPHA, ALPHA_BAR)).norm(dim=1).mean()
    carried = e.norm(dim=1).mean() + BIAS * sqrt(n)
    noise = sqrt(1 - ALPHA_NEXT) * mean_norm(n)
    return float(error / (update_factor(ALPHA, ALPHA_BAR) * carried + noise))


def default_filter_step(c: float = 1.0, seed: int = 0, n: int = 8) -> tuple[float, float]:
    """One step with the library's default filter, sigma = c std(x): error and its bound; B4.

    C_t (|e| + b(S) c |x - mean|), as sqrt(N) std(x) = |x - mean|. eps = -x.
    """
    x = torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    settings = BilateralSettings(kernel_size=3, sigma_spatial=1.0, sigma_intensity=c, unit="std")
    filtered = settings.along_frames(x)
    e = 0.01 * (x - filtered)
    xbar = x + e
    after, ideal = (update_mean(y, -y, ALPHA, ALPHA_BAR) for y in (filtered, xbar))
    allowed = e.norm() + bias_bound(MASS, 1.0) * c * (x - x.mean()).norm()
    return float((after - ideal).norm()), update_factor(ALPHA, ALPHA_BAR) * float(allowed)
