"""How much a function stretches small errors: the largest singular value of its Jacobian."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def jacobian_norm(
    run: Callable[[Tensor], Tensor],
    z: Tensor,
    generator: torch.Generator,
    n_iterations: int = 20,
    tolerance: float = 1e-3,
) -> tuple[float, Tensor]:
    """Estimate the largest singular value of the Jacobian of `run` at z, and its unit direction.

    Power iteration on J'J from a random direction, until the value rises by less than `tolerance`
    of itself. It comes from below, so that the true value is a little larger. Attention is
    computed by its formula, which alone has derivatives in both modes.
    """
    v = torch.randn(z.shape, generator=generator, device=generator.device, dtype=z.dtype)
    v, norm = (v / v.norm()).to(z.device), 0.0
    with sdpa_kernel(SDPBackend.MATH):
        for _ in range(n_iterations):
            _, image = torch.func.jvp(run, (z,), (v,))
            before, norm = norm, float(image.detach().norm())
            if norm <= (1 + tolerance) * before:
                break
            _, pull = torch.func.vjp(run, z)
            (v,) = pull(image)
            v = v / v.norm()
    return norm, v
