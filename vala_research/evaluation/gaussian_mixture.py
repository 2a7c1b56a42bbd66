"""A denoiser whose score and Lipschitz constant are known: images from two Gaussians.

z_t is a mixture of N(+-sqrt(a) m, v I), v = a s^2 + 1 - a, where a = alpha_bar_t.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError


@dataclass(frozen=True)
class GaussianMixture:
    """Clean images are +m or -m, equally often, with a deviation of s at each site.

    Called like a network, `(z, t) -> eps`, it is the best predictor:
    eps = sqrt(1 - a) / v (z - sqrt(a) tanh(sqrt(a) <m, z> / v) m).
    mean: m. deviation: s > 0. alpha_bar: signal level of every timestep.
    """

    mean: Float[Tensor, "c h w"]
    deviation: float
    alpha_bar: tuple[float, ...]

    def __post_init__(self):
        if not self.deviation > 0:
            raise InputError(f"The deviation is {self.deviation}: give a positive number.")

    def __call__(self, z: Float[Tensor, "f c h w"], t: int) -> Float[Tensor, "f c h w"]:
        a, v = self.alpha_bar[t], self.variance(t)
        m = self.mean.to(z)
        side = (sqrt(a) / v * (z * m).sum((1, 2, 3), keepdim=True)).tanh()
        return sqrt(1 - a) / v * (z - sqrt(a) * side * m)

    @classmethod
    def of_a_blob(cls, alpha_bar: tuple[float, ...], size: int = 8) -> "GaussianMixture":
        """Images of a bright or a dark blob of norm 1.5, three deviations from the middle."""
        x = torch.linspace(-1, 1, size, dtype=torch.float64)
        blob = torch.exp(-3 * (x[:, None] ** 2 + x**2))[None]
        return cls(1.5 * blob / blob.norm(), 0.5, alpha_bar)

    def undecided(self, generator: torch.Generator) -> Float[Tensor, "1 c h w"]:
        """Draw noise at the border of both kinds of images, where a small step decides."""
        z = torch.randn(1, *self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return z - (z * self.mean).sum() / self.mean.square().sum() * self.mean

    def variance(self, t: int) -> float:
        """v, the variance of a site around either mean."""
        a = self.alpha_bar[t]
        return a * self.deviation**2 + 1 - a

    def lipschitz(self, t: int) -> float:
        """Compute the exact Lipschitz constant of the prediction at t, over all images.

        The Jacobian is sqrt(1 - a) / v (I - a / v (1 - tanh^2) m m'), tanh^2 in [0, 1): its norm
        has its supremum at either end.
        """
        a, v = self.alpha_bar[t], self.variance(t)
        along = 1 - a / v * float(self.mean.double().square().sum())
        return sqrt(1 - a) / v * max(1.0, abs(along))

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """Draw clean images."""
        shape = (n, *self.mean.shape)
        noise = torch.randn(shape, generator=generator, dtype=self.mean.dtype)
        sign = torch.randint(0, 2, (n, 1, 1, 1), generator=generator) * 2 - 1
        return sign * self.mean + self.deviation * noise
