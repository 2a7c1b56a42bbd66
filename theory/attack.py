"""Search for the worst case: random starts, then gradient ascent, in float64.

An attack can refute a bound, but never prove it. The proofs are in theory/README.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Points = tuple[Tensor, ...]  # each b *shape: b points searched side by side


@dataclass(frozen=True)
class Attack:
    """The worst case of a search.

    value: largest value. point: its position, without the axis b. n_searched: points evaluated.
    """

    value: float
    point: Points
    n_searched: int


def attack(
    ratio: Callable[..., Tensor],
    draw: Callable[[torch.Generator], Points],
    seed: int = 0,
    n_steps: int = 200,
    lr: float = 0.05,
) -> Attack:
    """Maximise `ratio(*points) -> b` from the points that `draw(generator)` returns.

    Adam moves each of the b points independently, and its rate falls to zero. The best point of
    the whole path is kept, so that a step too far loses nothing.
    lr: first rate of Adam.
    Raises FloatingPointError, with the seed and the step, where the ratio is NaN or infinite.
    """
    points = [
        p.detach().double().requires_grad_() for p in draw(torch.Generator().manual_seed(seed))
    ]
    optimizer = torch.optim.Adam(points, lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(n_steps, 1))

    best, best_point, n_searched = -float("inf"), tuple(p[0] for p in points), 0
    for step in range(n_steps + 1):
        values = ratio(*points)
        if not torch.isfinite(values).all():
            raise FloatingPointError(f"The attack met NaN or infinity: seed {seed}, step {step}.")
        n_searched += len(values)

        # Keep the best point so far.
        value, index = values.detach().max(0)
        if value > best:
            best, best_point = float(value), tuple(p[index].detach().clone() for p in points)
        if step == n_steps:
            break

        # Ascend; the sum separates into one term per point.
        optimizer.zero_grad()
        (-values.sum()).backward()
        optimizer.step()
        decay.step()
    return Attack(best, best_point, n_searched)


def normal(scale: float, *shape: int) -> Callable[[torch.Generator], tuple[Tensor]]:
    """Draw random starts of an attack, of this scale and shape."""
    return lambda generator: (scale * torch.randn(*shape, generator=generator),)
