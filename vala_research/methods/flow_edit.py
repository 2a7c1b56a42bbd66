"""FlowEdit and FlowAlign: edit by the difference of two clean estimates, without an inversion.

Kulikov et al. 2025, FlowEdit (arXiv 2412.08629), and Kim et al. 2026, FlowAlign (arXiv 2505.23145),
for networks of any kind. A level is z = a x0 + b n. For rectified flow (a, b) = (1 - s, s); for
variance-preserving diffusion (sqrt(alpha_bar), sqrt(1 - alpha_bar)), which the change of variables
z / (a + b), s = b / (a + b) turns into a flow. So one algorithm serves both.

The state is the edit's clean clip. D = state - clip is its difference so far. Per level:

    z_src = a clip + b n,   z_tar = z_src + (a + b) D
    D <- r D + (1 - r) (x0(z_tar) - x0(z_src)),   r = s' / s
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def flow_level(a: float, b: float) -> float:
    """The flow's level s of a state a x0 + b n: 1 is noise, 0 is data."""
    return b / (a + b)


def paired_states(
    clip: Float[Tensor, "*shape"],
    difference: Float[Tensor, "*shape"],
    noise: Float[Tensor, "*shape"],
    a: float,
    b: float,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return the noisy clip and the noisy edit, under one noise: z_src and z_tar."""
    source = a * clip + b * noise
    return source, source + (a + b) * difference


def moved_difference(
    difference: Float[Tensor, "*shape"],
    clean_difference: Float[Tensor, "*shape"],
    s_from: float,
    s_to: float,
    zeta: float = 0.0,
) -> Float[Tensor, "*shape"]:
    """Take one step of the edit, from the flow's level s_from > 0 down to s_to.

    clean_difference: x0(z_tar) - x0(z_src), the mean over draws of noise.
    zeta: FlowAlign's pull back to the clip, zeta (x0(z_src) - x0(z_tar)).

    At s_to = 0 without zeta the result is the clean difference itself. For a flow network this is
    z_e + (s_to - s_from) (v(z_tar) - v(z_src)), as FlowEdit writes it.
    """
    r = s_to / s_from
    return r * difference + (1 - r - zeta) * clean_difference
