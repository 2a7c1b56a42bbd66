"""Growth of errors along a rectified flow, for any levels: theory/README.md, D1 to D3.

Levels s_0 < ... < s_n in [0, 1], clean first; h_t = s_t - s_{t-1}. L is the Lipschitz constant of
the velocity v.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError


def check_flow(levels: Float[Tensor, "*b n"], lipschitz: float = 0.0) -> None:
    """Refuse levels outside [0, 1] or falling, and a Lipschitz constant below 0."""
    if levels.shape[-1] < 2 or not ((levels >= 0) & (levels <= 1)).all():
        raise InputError("Levels of a flow are 2 or more numbers in [0, 1]: give those.")
    if not (levels.diff(dim=-1) >= 0).all():
        raise InputError("The levels of the flow fall: give them from clean to noisy.")
    if not 0 <= lipschitz < float("inf"):
        raise InputError(f"The Lipschitz constant is {lipschitz}: give a finite number from 0 on.")


def euler_factors(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b t"]:
    """1 + h_t L, of the steps t = 1..n, either way."""
    check_flow(levels, lipschitz)
    return 1 + levels.diff(dim=-1) * lipschitz


def log_euler_bound(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b"]:
    """L (s_n - s_0), a bound of sum ln(1 + h_t L) for any number of steps: D1."""
    return lipschitz * (levels[..., -1] - levels[..., 0])


def contraction(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b"]:
    """Largest q_t = h_t L, the rate at which the fixed-point iteration of a step converges: D2."""
    return (euler_factors(levels, lipschitz) - 1).amax(-1)


def preimage_factors(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b t"]:
    """1 / (1 - h_t L), of exact inversion steps, where every h_t L < 1."""
    return 1 / (2 - euler_factors(levels, lipschitz))


def log_preimage_bound(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b"]:
    """L (s_n - s_0) / (1 - q), q the largest h_t L: a bound of -sum ln(1 - h_t L): D2."""
    return log_euler_bound(levels, lipschitz) / (1 - contraction(levels, lipschitz))


def before(levels: Float[Tensor, "*b n"], lipschitz: float) -> Float[Tensor, "*b t"]:
    """Product of the factors of the steps below t, for t = 1..n: how far sampling carries on."""
    factors = euler_factors(levels, lipschitz)
    return factors.cumprod(-1) / factors


def missed(levels: Float[Tensor, "*b n"], lipschitz: float, speed: float) -> Float[Tensor, "*b"]:
    """sum_t h_t^2 L V prod_{r < t} (1 + h_r L): how far plain inversion's round trip misses: D2.

    speed: V, a bound of |v| along the inversion.
    """
    h = levels.diff(dim=-1)
    return (h**2 * lipschitz * speed * before(levels, lipschitz)).sum(-1)


def missed_bound(
    levels: Float[Tensor, "*b n"], lipschitz: float, speed: float
) -> Float[Tensor, "*b"]:
    """h V (exp(L (s_n - s_0)) - 1), h the longest step: of first order in the steps."""
    return levels.diff(dim=-1).amax(-1) * speed * log_euler_bound(levels, lipschitz).expm1()


def shifted(levels: Float[Tensor, "*b n"], lipschitz: float, shift: float) -> Float[Tensor, "*b"]:
    """shift sum_t prod_{r >= t} (1 + h_r L): where a filter before each step leads at most: D3.

    shift: b(S) sigma sqrt(N), how far the filter moves the latents.
    """
    factors = euler_factors(levels, lipschitz)
    return shift * factors.flip(-1).cumprod(-1).sum(-1)


def shifted_bound(
    levels: Float[Tensor, "*b n"], lipschitz: float, shift: float
) -> Float[Tensor, "*b"]:
    """shift sum_t exp(L (s_n - s_{t-1})): it grows with the number of steps."""
    return shift * (lipschitz * (levels[..., -1:] - levels[..., :-1])).exp().sum(-1)


def flows(logits: Float[Tensor, "b t"]) -> Float[Tensor, "b n"]:
    """Any levels of t steps from 0 to 1, as a softmax of logits."""
    s = logits.softmax(-1).cumsum(-1)
    return torch.cat([torch.zeros_like(s[:, :1]), s.clamp(max=1)], -1)


def random_flows(seed: int, n: int = 20_000) -> list[tuple[Float[Tensor, "b n"], float]]:
    """Draw n flows of 2 to 100 steps from 0 to 1, each 1000 of them with one L in [0, 3]."""
    generator, each = torch.Generator().manual_seed(seed), n // 20
    drawn = []
    for i in range(20):
        lipschitz = float(3 * torch.rand(1, generator=generator))
        logits = 3 * torch.randn(each, 2 + i * i // 4, generator=generator, dtype=torch.float64)
        drawn.append((flows(logits), lipschitz))
    return drawn


def largest_excess(value: Callable, bound: Callable, seed: int) -> tuple[float, int]:
    """Largest value / bound - 1 over random flows, and the number of flows."""
    drawn = random_flows(seed)
    above = [float((value(s, c) / bound(s, c) - 1).max()) for s, c in drawn]
    return max(above), sum(len(s) for s, _ in drawn)
