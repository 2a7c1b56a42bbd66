"""Frames at which the bounds of the temporal loss are attained: C.1 to C.3.

Each check evaluates bounds at known points, within milliseconds. Attacks search; these points show
a constant that is too large as well as one that is too small.
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.autograd.functional import hessian

from theory.certificates import (
    between_nodes,
    curvature_supremum,
    gradient_supremum,
    hessian_blocks,
    lemma_margin,
    lemma_polynomial,
    three_frames,
)
from theory.gradient_descent import smoothness_of
from theory.temporal_curvature import (
    chord_constant,
    curvature_along,
    curvature_of,
    largest_chord,
    path_constant,
    sign_pattern,
)
from theory.temporal_loss import (
    gradient_points,
    gradients,
    loss_gradient,
    losses,
    similarities,
    slope_of_similarity,
    whole_gradient_bound,
)
from theory.verdict import attains, known_points
from vala_research.methods.temporal import frame_similarity, temporal_consistency_loss

STEEPEST_4 = (-0.73745, 0.60817)  # s_1 and s_2 where frame 2 of 4 has its largest gradient


def turning(angles: Tensor | list[float], norm: float = 1.0) -> Tensor:
    """Frames in a plane at these angles, f 2."""
    a = torch.as_tensor(angles, dtype=torch.float64)
    return norm * torch.stack([a.cos(), a.sin()], 1)


def steepest(n_frames: int) -> tuple[Tensor, int]:
    """Frames of norm 2 at which one frame's gradient is largest, and that frame; A4."""
    x = (math.sqrt(73) - 1) / 12  # of (3x + 1) sqrt(1 - x^2)
    s = {3: (math.sqrt(0.5), -math.sqrt(0.5)), 4: STEEPEST_4}.get(n_frames, (x, -x))
    before, after = math.acos(s[0]), -math.acos(s[1])
    angles = [before, 0.0, after]
    if n_frames > 3:
        angles += [after if s[1] < 0 else after + math.pi]
    if n_frames > 4:
        angles = [before + math.pi, *angles]
    return turning(angles, 2.0), angles.index(0.0)


@cache
def measured_curvature(n_frames: int, scale: float = 1.0) -> float:
    """Norm of the Hessian of the library's loss at the worst pattern."""
    return curvature_of(scale * sign_pattern(n_frames))


@cache
def library_hessian(is_unit: bool) -> tuple[Tensor, Tensor]:
    """Four frames, and the Hessian of the library's loss with w = 0.7. Unit frames are padded."""
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if is_unit:
        x = torch.nn.functional.pad(x / x.norm(dim=1, keepdim=True), (0, 1))
    return x, hessian(lambda y: temporal_consistency_loss(y, flicker_weight=0.7), x)


@known_points("C.2")
def similarity() -> dict[str, bool]:
    """The gradient's norm, and the vectorised forms against the code that runs."""
    s, size = gradient_points(3, 0, 60)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = torch.stack([losses(x), similarities(x).sum(1), gradients(x).norm(dim=(1, 2))])
    theirs = [torch.stack([f(clip) for clip in x]) for f in (
        temporal_consistency_loss, lambda c: frame_similarity(c).sum(), lambda c:
        loss_gradient(c).norm())]  # fmt: skip
    return {
        "known points: the norm of the gradient": torch.allclose(slope_of_similarity(s), size),
        "the vectorised loss is the library's": torch.allclose(ours, torch.stack(theirs)),
    }


@known_points("C.1")
def curvature() -> dict[str, bool]:
    """c_T, and the smoothness of clips of any norm, at the worst pattern."""
    patterns = {n: measured_curvature(n) * (n - 1) / 2 for n in (3, 4, 6)}
    scaled = ((3, 0.5), (4, 2.0))
    limits = [smoothness_of(scale * sign_pattern(n)[None]) for n, scale in scaled]
    return {
        "known points: c_T": attains(
            list(patterns.values()), [path_constant(n) for n in patterns], 1 - 1e-9
        ),
        "known points: L_s": attains([measured_curvature(*y) for y in scaled], limits, 1 - 1e-9),
    }


@known_points("C.1")
def forms() -> dict[str, bool]:
    """Two forms of the Hessian against the library's."""
    (x, own), (unit, whole) = (library_hessian(is_unit) for is_unit in (False, True))
    motion = torch.linspace(-1, 2, 12, dtype=torch.float64)
    along = motion @ own.reshape(12, 12) @ motion
    inside, across = hessian_blocks(unit[None, :, :3], 0.7)
    return {
        "the form along a motion is the library's": torch.allclose(
            curvature_along(x[None], motion.view(1, 4, 3), 0.7), along
        ),
        "the blocks are the library's": torch.allclose(
            inside[0], whole[:, :3, :, :3].reshape(12, 12)
        )
        and torch.allclose(across[0], whole[:, 3, :, 3]),
    }


@known_points("C.1")
def certificates() -> dict[str, bool]:
    """The certificate of T = 3 on a coarse grid, and the polynomial of lemma A3.3."""
    found, bound = curvature_supremum(12)
    a, b, c = torch.tensor([0.4, 2.0]).double(), torch.tensor([1.5, 0.3]).double(), 0.9
    frames = three_frames(a, b, c)
    inner = frames @ frames.mT
    across = a.cos() * b.cos() + a.sin() * b.sin() * math.cos(c)
    missed = math.cos(math.pi / 4)  # largest of cos 3x between 12 nodes, of a maximum of 1

    # h times 1 - s is the determinant of A3 at r = (1 + s) / 2.
    pairs = [(4.0, 0.3), (64 / 7, 0.8), (6.0, 0.0)]
    left = [
        p * (1 - r * s) - (p - 2) * r**2 * (1 - s**2) + s * (1 - s**2) * r**3
        for p, s in pairs
        for r in [(1 + s) / 2]
    ]
    right = [(1 - s) * lemma_polynomial(p, 1 + s) for p, s in pairs]
    return {
        "three frames stand at their angles": torch.allclose(inner[:, 0, 2], across)
        and torch.allclose(inner[:, 1], torch.stack([a.cos(), 0 * a + 1, b.cos()], 1))
        and torch.allclose(inner.diagonal(dim1=1, dim2=2), torch.ones(2, 3).double()),
        "coarse grid: T = 3 has curvature 6": abs(found - 6) < 1e-9
        and abs(bound / found - 8) < 1e-9,
        "between nodes: cos 3x attains its bound": attains(
            [1.0, 1.0], [missed * between_nodes(12, (3,)), 0.75 * between_nodes(12, (2, 2))]
        ),
        "lemma A3.3 is about h": max(abs(a - b) for a, b in zip(left, right, strict=True)) < 1e-12,
        "lemma A3.3: 16 boxes certify .794 of 1.43": abs(lemma_margin(16) - 0.7942) < 1e-3,
    }


@known_points("C.3a")
def gradient() -> dict[str, bool]:
    """k_T at the steepest frames, and the bound of all frames' gradients at both ends of T."""
    ratios, limits = [], []
    for n in (3, 4, 5, 6):
        x, frame = steepest(n)
        if n == 6:
            x = torch.cat([x, x[-1:]])
        ratios.append(gradients(x[None])[0, frame].norm() * 2 * (n - 1))
        limits.append(gradient_supremum(n, 240)[1])

    # Turns of 90 degrees, slightly uneven: long clips attain 64, clips of three frames 3/8 of it.
    n = 40
    shape = torch.sin(math.pi * (torch.arange(n - 1) + 0.5) / (n - 1))
    turns = math.pi / 2 + 1e-3 * shape * (-1.0) ** torch.arange(n - 1)
    long = turning([0.0, *turns.cumsum(0).tolist()], 0.5)[None]
    short = 2 * torch.tensor([[[1.0, 0.0], [1e-4, 1.0], [-1.0, 0.0]]], dtype=torch.float64)
    whole = [gradients(y).square().sum() for y in (long, short)]
    coarse = gradient_supremum(3, 24)  # 45 degrees are a node
    return {
        "coarse grid: T = 3 has gradient 4": abs(coarse[0] - 4) < 1e-12
        and abs(coarse[1] / coarse[0] * math.cos(math.pi / 12) ** 2 - 1) < 1e-12,
        "known points: k_T": attains(ratios, limits, 0.999),
        "known points: 64": attains(whole[0], whole_gradient_bound(long), 0.98),
        "known points: 64, T = 3": attains(whole[1], 3 / 8 * whole_gradient_bound(short)),
    }


@known_points("C.3b")
def chords() -> dict[str, bool]:
    """The way around a ball against the chord through it, times the curvature."""
    around = turning(torch.linspace(0, math.pi, 1001, dtype=torch.float64))
    detour = around.diff(dim=0).norm(dim=1).sum() / (around[-1] - around[0]).norm()
    curves = [float(detour) * measured_curvature(n) for n in (3, 5)]
    largest = max(float(detour) * measured_curvature(n) for n in (3, 4, 5, 6))
    return {
        "known points: around the ball": attains(curves, [chord_constant(n) for n in (3, 5)]),
        "known points: the longest clip counts least": attains(largest, largest_chord()),
    }
