"""Rows of numbers that the notebooks plot, one function per notebook.

The package may not import the theory. A notebook hands these rows to its experiment, which adds
what it measures on networks. The column `part` says which panel a row belongs to.
"""

from collections.abc import Sequence
from math import nan

from theory.temporal_curvature import (
    chord_on_the_sphere,
    curvature_attack,
    curvature_of,
    path_constant,
    sign_pattern,
)
from theory.temporal_loss import gradient_points


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
