"""Clips at which the bounds of descent, of saddles and of the repaired loss are attained.

C.4, C.5 and steady flicker. As `points_loss`: no search, some milliseconds.
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.autograd.functional import hessian

from theory.descent_rate import pl_constant, step_factor
from theory.gradient_descent import (
    curvature_of_step,
    descend,
    least_decrease,
    most_growth,
    similarity_smoothness,
    smoothness_of,
)
from theory.points_loss import measured_curvature, steepest, turning
from theory.steady_flicker import (
    repaired_gradient_bound,
    repaired_gradients,
    repaired_losses,
    repaired_smoothness,
)
from theory.strict_saddles import least_curvature, predicted_curvature, slopes
from theory.temporal_loss import gradients, losses, similarities
from theory.verdict import attains, known_points
from vala_research.methods.temporal import temporal_consistency_loss


def crossing(scale: float = 1.0) -> Tensor:
    """Frames next to (e, n, -e): there L is a parabola of curvature L_s; 1 f d."""
    x = torch.tensor([[[1.0, 0.0], [1e-3, 1.0], [-1.0, 0.0]]], dtype=torch.float64)
    return scale * x


def swinging(angle: float, n_frames: int, scale: float = 1.0) -> Tensor:
    """Frames that turn by an angle and back: all similarities are equal; f 2."""
    return turning([angle * (t % 2) for t in range(n_frames)], scale)


@known_points("C.4")
def descent() -> dict[str, bool]:
    """Decrease per step, and growth of the norms over a whole descent."""
    ratios, limits = [], []
    for scale, steps in ((0.5, 0.5), (2.0, 1.5)):
        x = crossing(scale)
        eta = steps / smoothness_of(x)
        values, norms, _ = descend(x, steps, 12)
        ratios += [values[0] - values[1], norms[-1].square().sum() - norms[0].square().sum()]
        square = gradients(x).square().sum()
        limits += [least_decrease(eta, steps) * square, most_growth(eta, steps, values[0])]

    # On a parabola both are equalities, to within its error of 1e-6.
    return {
        "known points: decrease and growth": all(
            abs(float(a / b) - 1) < 1e-4 for a, b in zip(ratios, limits, strict=True)
        ),
        "known points: curvature of a step": attains(curvature_of_step(crossing()), 1.0, 0.9999),
    }


@known_points("C.5")
def convexity() -> dict[str, bool]:
    """The smoothness in the similarities is the largest eigenvalue of 2 D'D / (T-1)."""
    largest = []
    for n in (3, 4, 9):
        d = torch.eye(n - 1, dtype=torch.float64).diff(dim=0)
        largest.append(torch.linalg.eigvalsh(2 / (n - 1) * d.T @ d)[-1])
    limits = [similarity_smoothness(n) for n in (3, 4, 9)]
    return {"known points: constant in s": attains(largest, limits, 1 - 1e-9)}


@known_points("C.4b")
def rate() -> dict[str, bool]:
    """mu: each of its two factors is attained at every T, their product at T = 3.

    Swinging frames have the least eigenvalue of J J'; the changes of the similarities have that of
    D D'.
    """
    products, constants = [], []
    for n, angle, scale in ((3, 1.0, 1.0), (4, 0.5, 2.0), (6, 1.2, 0.5)):
        x = swinging(angle, n, scale)
        d = torch.eye(n - 1, dtype=torch.float64).diff(dim=0)
        least = [torch.linalg.eigvalsh(m @ m.T)[0] for m in (d, _jacobian_of_similarities(x))]
        products.append(2 / (n - 1) * least[0] * least[1])
        sine, norm = (torch.tensor(v, dtype=torch.float64) for v in (math.sin(angle), scale))
        constants.append(pl_constant(n, sine, norm))

    # At T = 3: the rate of a short step, next to frames that swing.
    x, steps = turning([0.0, 1.0, 1e-4], 2.0)[None], 1e-3
    eta = steps / smoothness_of(x)
    after = losses(x - eta * gradients(x)) / losses(x)
    return {
        "known points: mu": attains(products, constants, 1 - 1e-9),
        "known points: the rate at T = 3": attains(
            1 - step_factor(x, eta, steps), 1 - after, 0.998
        ),
    }


def _jacobian_of_similarities(x: Tensor) -> Tensor:
    """ds/dF at frames x, (T - 1) by (T d)."""
    jacobian = torch.autograd.functional.jacobian(lambda y: similarities(y[None])[0], x)
    return jacobian.flatten(1)


@known_points("C.4a", "flicker")
def saddles() -> dict[str, bool]:
    """A last frame, or a first one, that is short: its turn is the direction of least curvature."""
    w = 0.7
    s = torch.tensor([[-1.0, 1.0, 1.0, -1.0]] * 2, dtype=torch.float64)
    frames = turning([0.0, math.pi, math.pi, math.pi, 0.0]).repeat(2, 1, 1)
    frames[0, -1] *= 1e-3
    frames[1, 0] *= 1e-3
    plain, repaired = (
        [predicted_curvature(frames, s, v), -least_curvature(frames, v)] for v in (0.0, w)
    )

    # Slopes against autograd, the least curvature against the library's Hessian.
    free = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    q = free.diff().square().sum() / 3 + w * (1 - free).mean()
    (slope,) = torch.autograd.grad(q, free)
    known = [_least_curvature_of_the_library(which) for which in (0, 1)]
    return {
        "known points: curvature of saddles": attains(plain[0].tolist(), plain[1].tolist()),
        "known points: the same, repaired": attains(repaired[0].tolist(), repaired[1].tolist()),
        "slopes are derivatives": torch.allclose(slopes(free.detach(), w), slope),
        "the least curvature is the library's": all(
            abs(least_curvature(x[None], w).item() - least) < 1e-9 for x, least in known
        ),
    }


@cache
def _least_curvature_of_the_library(which: int) -> tuple[Tensor, float]:
    """Three frames of several norms, and the least eigenvalue of the library's Hessian, w = 0.7.

    It is least within the space of the frames (0), or across it (1).
    """
    frames = [[[1.0, 0.2], [-3.0, 0.5], [0.4, 0.6]], [[-2.0, 0.0], [1.0, 2.0], [1.0, 1.0]]][which]
    x = torch.tensor(frames, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (0, 1))
    h = hessian(lambda y: temporal_consistency_loss(y, flicker_weight=0.7), padded)
    return x, torch.linalg.eigvalsh(h.reshape(9, 9))[0].item()


@cache
def _curvature_of_equal_frames(n_frames: int) -> float:
    """Curvature of the library's L + w mean(1 - s) at equal frames, w = 1: there L has none."""
    x = turning([0.0] * n_frames)
    h = hessian(lambda y: temporal_consistency_loss(y, flicker_weight=1.0), x)
    return torch.linalg.eigvalsh(h.reshape(x.numel(), -1)).abs().max().item()


@known_points("flicker")
def repaired() -> dict[str, bool]:
    """Both summands of (3) and of (4), each at its own worst frames; w = 50 shows the second."""
    w, x = 50.0, swinging(math.pi / 2, 3, 2.0)
    sums = [measured_curvature(n) + w * _curvature_of_equal_frames(n) for n in (3, 6)]
    (grad, _), (slope, uneven) = (_gradient_of_the_library(y, w) for y in (x, crossing()[0] + 0.5))
    y = crossing() + 0.5
    ours = repaired_losses(y, w) + repaired_gradients(y, w).norm()
    first = gradients(steepest(3)[0][None])[0, 1].norm() * 2 * 2

    # The middle of three frames at right angles: its gradient of mean(1 - s) is 2 / (T-1).
    middle = grad[1].norm() * 2 * 2
    second = (repaired_gradient_bound(3, w, 200) - repaired_gradient_bound(3, 0.0, 200)) / w
    return {
        "known points: (3), each summand": attains(
            sums, [repaired_smoothness(n, w) for n in (3, 6)], 1 - 1e-9
        ),
        "known points: (4) at w = 50": attains(middle, repaired_gradient_bound(3, w, 200), 0.95),
        "known points: (4), the second summand": attains(middle / w, second),
        "known points: (4), the first summand": attains(
            first, repaired_gradient_bound(3, 0.0, 200)
        ),
        "the vectorised repaired loss is the library's": torch.allclose(
            ours, uneven + slope.norm()
        ),
    }


def _gradient_of_the_library(x: Tensor, flicker_weight: float) -> tuple[Tensor, Tensor]:
    """Gradient and value of the library's loss at frames x."""
    y = x.clone().requires_grad_()
    loss = temporal_consistency_loss(y, flicker_weight=flicker_weight)
    return torch.autograd.grad(loss, y)[0], loss.detach()
