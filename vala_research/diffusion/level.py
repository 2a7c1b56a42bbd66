"""A noise level z = a x0 + b n, on any path, and what each type of prediction says there.

Two paths are in use. Variance-preserving diffusion has a = sqrt(alpha_bar), b = sqrt(1 - alpha_bar)
(Song et al. 2021); rectified flow has a = 1 - s, b = s (Liu et al. 2023, arXiv 2209.03003). Levels
of equal a / b differ by the scale of z alone, so a network of one path can be asked on the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, hypot, log, sqrt

# What is predicted, p x0 + q n, at a level with hypot(a, b) = 1.
PREDICTION_TYPES = {
    "epsilon": lambda a, b: (0.0, 1.0),
    "v_prediction": lambda a, b: (-b, a),  # Salimans and Ho 2022
    "sample": lambda a, b: (1.0, 0.0),
    "flow_prediction": lambda a, b: (-1.0, 1.0),  # the velocity n - x0
}


@dataclass(frozen=True)
class Level:
    """One noise level z = a x0 + b n."""

    a: float
    b: float

    @classmethod
    def preserving(cls, alpha_bar: float) -> Level:
        """The level of variance-preserving diffusion with this share of signal power."""
        return cls(sqrt(alpha_bar), sqrt(1 - alpha_bar))

    @classmethod
    def flow(cls, s: float) -> Level:
        """The level s of a rectified flow: 1 is noise, 0 is data."""
        return cls(1 - s, s)

    @property
    def alpha_bar(self) -> float:
        """The share of signal power, a^2 / (a^2 + b^2)."""
        return self.a**2 / (self.a**2 + self.b**2)

    @property
    def s(self) -> float:
        """The level of a rectified flow with equal a / b."""
        return self.b / (self.a + self.b)

    @property
    def angle(self) -> float:
        """From 0, the data, to pi / 2, the noise."""
        return atan2(self.b, self.a)

    @property
    def log_snr(self) -> float:
        """log(a^2 / b^2), finite even where no signal is left."""
        return log(max(self.alpha_bar, 1e-8) / (1 - self.alpha_bar))

    def predicted(self, prediction_type: str) -> tuple[float, float]:
        """p and q of the prediction p x0 + q n at this level."""
        size = hypot(self.a, self.b)
        return PREDICTION_TYPES[prediction_type](self.a / size, self.b / size)
