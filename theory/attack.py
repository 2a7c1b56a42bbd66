"""The worst case is searched for: random starts, then gradient ascent, in float64.

An attack can only refute a bound, never prove it; what is proved stands in theory/README.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Points = tuple[Tensor, ...]  # each b *shape: b points searched side by side


@dataclass(frozen=True)
class Attack:
    """value: the largest found; point: where, without the axis b; n_searched: points evaluated."""

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
    """Maximise `ratio(*points) -> b` over what `draw(generator)` starts from.

    Adam, each of the b points by itself, the rate falling to zero; the best point of the whole
    path is kept, so a step too far loses nothing. Raises FloatingPointError, naming the seed and
    the step, where the ratio becomes NaN or infinite.
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
        value, index = values.detach().max(0)
        if value > best:
            best, best_point = float(value), tuple(p[index].detach().clone() for p in points)
        if step == n_steps:
            break
        optimizer.zero_grad()
        (-values.sum()).backward()
        optimizer.step()
        decay.step()
    return Attack(best, best_point, n_searched)
