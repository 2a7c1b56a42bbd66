"""A velocity whose Lipschitz constant is known: images from two Gaussians, on straight paths.

z_s = (1 - s) z_0 + s n is a mixture of N(+-(1 - s) m, w I), w = (1 - s)^2 d^2 + s^2.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class GaussianFlow:
    """The mixture of `GaussianMixture` as a flow. Called like a network, `(z, 1000 s) -> v`.

    v = (z - x0) / s, x0 = (1 - s) d^2 / w z + s^2 / w tanh((1 - s) <m, z> / w) m.
    mean: m. deviation: d > 0.
    """

    mean: Float[Tensor, "c h w"]
    deviation: float

    def __call__(self, z: Float[Tensor, "f c h w"], t: float) -> Float[Tensor, "f c h w"]:
        s, m = t / 1000, self.mean.to(z)
        w = self.variance(s)
        side = ((1 - s) / w * (z * m).sum((1, 2, 3), keepdim=True)).tanh()
        x0 = (1 - s) * self.deviation**2 / w * z + s**2 / w * side * m
        return (z - x0) / s

    def variance(self, s: float) -> float:
        """w, the variance of a site around either mean."""
        return (1 - s) ** 2 * self.deviation**2 + s**2

    def lipschitz(self, t: float) -> float:
        """Compute the exact Lipschitz constant of the velocity at t, over all images.

        The Jacobian is c I - (1 - s) s / w^2 (1 - tanh^2) m m', c = (1 - (1 - s) d^2 / w) / s: its
        norm has its supremum at either end of tanh^2 in [0, 1).
        """
        s = t / 1000
        w = self.variance(s)
        across = (1 - (1 - s) * self.deviation**2 / w) / s
        along = across - (1 - s) * s / w**2 * float(self.mean.double().square().sum())
        return max(abs(across), abs(along))
