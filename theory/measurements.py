"""Rows of numbers that the notebooks plot, one function per notebook.

The package may not import the theory. A notebook hands these rows to its experiment, which adds
what it measures on networks. The column `part` says which panel a row belongs to.
"""

from collections.abc import Sequence
from math import nan

import torch

from theory.descent_rate import promised_losses
from theory.gradient_descent import descend, total_loss_step
from theory.strict_saddles import along_theta, parameter_minimum
from theory.temporal_curvature import (
    chord_on_the_sphere,
    curvature_attack,
    curvature_of,
    path_constant,
    sign_pattern,
)
from theory.temporal_loss import gradient_points
from vala_research.methods.temporal import temporal_consistency_loss


def smoothness(
    attacked: Sequence[int], known: Sequence[int], norms: Sequence[float], seed: int = 0
) -> list[dict]:
    """Constants of the temporal loss: C.2, C.3 and C.1.

    attacked: numbers of frames whose curvature is attacked. known: those at which the worst
        pattern is measured. norms: of every frame, in the measurement of 16 / M. seed: of points
        and attacks.
    Returns parts "gradient" (s, product = |grad| |F|), "lipschitz" (M; ratio, measured; paper;
    ours) and "curvature" (n_frames; attacked, nan where not; constant, c_T; pattern, measured).
    """
    points = [gradient_points(d, seed, 300) for d in (2, 3, 10)]
    rows = [
        {"part": "gradient", "s": float(s), "product": float(product)}
        for pair in points
        for s, product in zip(*pair, strict=True)
    ]
    rows += [
        {"part": "lipschitz", "M": m, "ratio": chord_on_the_sphere(m)[0], "paper": 16 / m,
         "ours": 6 / m**2}
        for m in norms
    ]  # fmt: skip

    # The attack is slow, so that fewer numbers of frames have it.
    largest = {n: curvature_attack(n, seed, 32, 300)[0] for n in attacked}
    rows += [
        {"part": "curvature", "n_frames": n, "attacked": largest.get(n, nan),
         "constant": path_constant(n), "pattern": curvature_of(sign_pattern(n)) * (n - 1) / 2}
        for n in known
    ]  # fmt: skip
    return rows


def descent(steps: Sequence[float], n_free: int) -> list[dict]:
    """Descent on the temporal loss of three frames, a chord, a line of adapters: C.4 and C.5.

    steps: step sizes in units of 1 / L_s. n_free: number of steps of each size.
    Returns parts "descent" (steps, step, loss), "promised" (of A5.4, for the sizes below 2 but the
    first), "chord" (u, loss), "line" (theta, loss, minimum: whether it is the false bottom) and
    "total" (before, after: L over one step on the total loss; total_before, total_after).
    """
    start = torch.tensor([[[1.0, 0.0], [0.03, 1.0], [-1.0, 0.0]]], dtype=torch.float64)
    paths = {size: descend(start, size, n_free)[0][:, 0].tolist() for size in steps}
    below = [size for size in steps if size < 2]
    promised = {size: promised_losses(start, size, n_free) for size in below[1:]}
    rows = [
        {"part": part, "steps": size, "step": k, "loss": loss}
        for part, runs in (("descent", paths), ("promised", promised))
        for size, run in runs.items()
        for k, loss in enumerate(run)
    ]

    # Both ends of the chord have equal similarities, its middle has not.
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    rows += [
        {"part": "chord", "u": u, "loss": temporal_consistency_loss((1 - u) * a + u * b).item()}
        for u in torch.linspace(0, 1, 101).tolist()
    ]

    bottom, _, _ = parameter_minimum()
    rows += [
        {"part": "line", "theta": theta, "minimum": theta == bottom,
         "loss": temporal_consistency_loss(along_theta(theta)).item()}
        for theta in sorted([*torch.linspace(-4, 4, 401).tolist(), bottom])
    ]  # fmt: skip
    names = ("before", "after", "total_before", "total_after")
    return [*rows, {"part": "total"} | dict(zip(names, total_loss_step(), strict=True))]
