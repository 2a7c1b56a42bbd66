"""C.4, C.5: descent in the features, where it ends and how fast, and what fails beside it."""

import dataclasses
import math

import pytest
import torch
from torch.autograd.functional import hessian

from theory import descent_rate, gradient_descent, strict_saddles
from theory.gradient_descent import descend, smoothness_of
from theory.strict_saddles import (
    along_theta,
    critical_similarities,
    frames_with,
    least_curvature,
    predicted_curvature,
    slopes,
)
from theory.temporal_loss import gradients, loss_gradient, similarities
from vala_research import InputError
from vala_research.methods.temporal import frame_similarity, temporal_consistency_loss

STATEMENTS = {
    "C.4": lambda: gradient_descent.descent(1, 64, 100),
    "C.4a": lambda: strict_saddles.strict_saddles(1, (3, 4, 5, 6, 7), 2),
    "C.4b": lambda: descent_rate.rate(1, 64, 150, (3, 4)),
    "C.5": lambda: gradient_descent.convexity(1, 16, (3, 5)),
}


@pytest.fixture(scope="module")
def verdicts():
    return {name: check() for name, check in STATEMENTS.items()}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", STATEMENTS)
def test_the_bound_holds_and_is_attained(verdicts, name):
    v = verdicts[name]
    assert v.reproduced, v
    assert v.measured <= v.bound * (1 + 1e-6)
    assert v.tightness > (0.8 if name == "C.4a" else 0.99)


@pytest.mark.parametrize("name", ["C.4", "C.4a"])
def test_the_papers_claim_breaks(verdicts, name):
    counterexample = verdicts[name].counterexample
    assert counterexample.breaks and counterexample.lhs > 1e-6 and counterexample.rhs <= 1e-30


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_smaller_bound_is_caught(verdicts, name):
    v = verdicts[name]
    assert not dataclasses.replace(v, bound=0.9 * v.measured).reproduced


# Descent


@pytest.mark.parametrize("n_frames", [3, 8])
def test_descent_with_the_librarys_gradient(n_frames):
    """The same path as the batched one; from starts of very different norms."""
    x = random(n_frames, 3) * torch.logspace(-0.5, 0.5, n_frames)[:, None]
    values, norms, end = descend(x[None], 1.9, 30)
    eta = 1.9 / smoothness_of(x[None]).item()
    for _ in range(30):
        x = x - eta * loss_gradient(x)
    assert torch.allclose(x, end[0], atol=1e-12)
    assert (values.diff(dim=0) < 0).all() and (norms.diff(dim=0) >= 0).all()
    assert values[-1].item() == pytest.approx(temporal_consistency_loss(x).item(), rel=1e-9)


def test_the_decrease_that_is_promised():
    """Every step falls by eta (1 - eta L_s / 2) |grad|^2; with twice L_s' inverse nothing is."""
    x = random(64, 5, 3)
    for steps in (0.5, 1.0, 1.9):
        eta, g = steps / smoothness_of(x), gradients(x)
        fall = eta * (1 - steps / 2) * g.square().sum((1, 2))
        y = x - eta[:, None, None] * g
        assert (temporal(y) <= temporal(x) - fall + 1e-15).all()


def temporal(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([temporal_consistency_loss(clip) for clip in x])


def test_steps_beyond_the_threshold_can_rise(verdicts):
    down, up = verdicts["C.4"].witness["one step of 1.9 and 2.1 / L_s"]
    assert down == pytest.approx(0.81, rel=1e-4) and up == pytest.approx(1.21, rel=1e-4)
    values, _, _ = descend(torch.tensor([[[1.0, 0], [1e-2, 1], [-1, 0]]]).double(), 2.1, 1)
    assert values[1] > values[0]


def test_a_step_on_the_total_loss_can_raise_the_temporal_one():
    before, after, total, total_after = gradient_descent.total_loss_step()
    assert before == 0 and after > 1e-6 and total_after < total
    assert gradient_descent.total_loss_step(0.01)[1] > 0  # however small the step


# Where it ends


def test_all_critical_points_of_three_and_four_frames():
    """By hand: +-1 at the ends; between them a line, or a corner at +-1."""
    three = {tuple(s) for s in critical_similarities(3).tolist()}
    assert three == {(1, -1), (-1, 1)}
    four = {tuple(round(v, 9) + 0.0 for v in s) for s in critical_similarities(4).tolist()}
    corners = {(a, b, c) for a in (1, -1) for b in (1, -1) for c in (1, -1)} - {(1,) * 3, (-1,) * 3}
    assert four == corners | {(1, 0, -1), (-1, 0, 1)}


@pytest.mark.parametrize("n_frames", [3, 4, 6])
def test_critical_points_are_strict_saddles_of_the_library(n_frames):
    """Its own gradient vanishes there, and its own Hessian bends down as predicted."""
    s = critical_similarities(n_frames)
    x = frames_with(s, torch.Generator().manual_seed(3))
    assert torch.allclose(similarities(x), s, atol=1e-12)
    predicted = predicted_curvature(x, s)
    for clip, promised in zip(x[:12], predicted, strict=False):
        assert loss_gradient(clip).abs().max() < 1e-10
        h = hessian(temporal_consistency_loss, clip).reshape(clip.numel(), -1)
        least = torch.linalg.eigvalsh(h)[0].item()
        assert least <= -promised.item() < 0
        assert least == pytest.approx(least_curvature(clip[None]).item(), rel=1e-9)


def test_a_prediction_too_bold_is_seen():
    """Twice the predicted curvature is more than some saddles have."""
    s = critical_similarities(5)
    x = frames_with(s, torch.Generator().manual_seed(4))
    assert (2 * predicted_curvature(x, s) > -least_curvature(x)).any()


def test_other_points_are_not_critical():
    """Half way from a critical point to a minimum the gradient does not vanish."""
    s = 0.5 * critical_similarities(5)
    x = frames_with(s, torch.Generator().manual_seed(0))
    assert (gradients(x).flatten(1).norm(dim=1) > 1e-3).all()


def test_the_slopes_are_those_of_the_loss():
    s = random(5, 6).tanh().requires_grad_()
    w = 0.3
    loss = s.diff(dim=1).square().sum(1) / 6 + w * (1 - s).mean(1)
    (grad,) = torch.autograd.grad(loss.sum(), s)
    assert torch.allclose(grad, slopes(s.detach(), w), atol=1e-14)


def test_descent_leaves_the_highest_point():
    """From next to (e, -e, -e), L = 2: down to 0, as from almost everywhere."""
    x = torch.tensor([[1.0, 0], [-1, 0], [-1, 0]]).double() + 1e-3 * random(3, 2)
    values, _, end = descend(x[None], 0.95, 600)
    assert values[0] > 1.99 and values[-1] < 1e-10
    s = frame_similarity(end[0])
    assert s[0].item() == pytest.approx(s[1].item(), abs=1e-5)


def test_a_false_bottom_in_other_parameters():
    """theta near -.741: a minimum of .334, though features of zero loss are on the same line."""
    theta, value, bend = strict_saddles.parameter_minimum()
    assert (theta, value) == (pytest.approx(-0.741, abs=1e-3), pytest.approx(0.334, abs=1e-3))
    assert bend > 1

    def loss(t: float) -> float:
        return temporal_consistency_loss(along_theta(t)).item()

    assert value < min(loss(theta - 0.05), loss(theta + 0.05))
    assert min(loss(t) for t in torch.linspace(-5, 5, 401).tolist()) < 1e-4
    x = along_theta(theta)
    slow = x - 0.05 * loss_gradient(x)
    assert temporal_consistency_loss(slow) < value - 1e-3  # the features themselves go on


# How fast


@pytest.mark.parametrize("n_frames", [3, 6])
def test_the_rate_near_a_fixed_angle(n_frames):
    """The smallest mu that proof gives is below what every random clip shows, and above 0."""
    x = random(200, n_frames, 3)
    s = similarities(x)
    sine = (1 - s.square()).amin(1).sqrt()
    mu = descent_rate.pl_constant(n_frames, sine, x.norm(dim=-1).amax(1))
    square = gradients(x).square().sum((1, 2))
    assert (mu > 0).all() and (square / 2 >= mu * temporal(x)).all()
    exact = 16 * math.sin(math.pi / 6) ** 2 * math.sin(math.pi / 4) ** 2
    one = torch.ones(())
    assert descent_rate.pl_constant(3, one, one).item() == pytest.approx(exact)


# Convexity


@pytest.mark.parametrize("n_frames", [3, 4, 9])
def test_the_constant_in_the_similarities(n_frames):
    """(8 / (T-1)) cos^2(pi / (2 (T-1))) is the largest eigenvalue of the loss' Hessian in s."""
    n = n_frames - 1

    def loss(s: torch.Tensor) -> torch.Tensor:
        return s.diff().square().sum() / n

    eigenvalues = torch.linalg.eigvalsh(hessian(loss, torch.zeros(n, dtype=torch.float64)))
    exact = 8 / n * math.cos(math.pi / (2 * n)) ** 2
    assert eigenvalues[-1].item() == pytest.approx(exact)
    assert eigenvalues[0].abs() < 1e-12 < eigenvalues[1]  # constants, and they alone
    x = random(n_frames, 4)
    assert loss(frame_similarity(x)).item() == pytest.approx(temporal_consistency_loss(x).item())


def test_the_midpoint_of_two_minima_is_none():
    a = torch.tensor([[1.0, 0], [1, 1], [0, 1]]).double()
    b = torch.tensor([[1.0, 0], [1, 0], [1, 0]]).double()
    values = [temporal_consistency_loss(x).item() for x in (a, b, (a + b) / 2)]
    assert values[:2] == pytest.approx([0, 0], abs=1e-30)
    assert values[2] == pytest.approx(0.00147, abs=1e-5)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: descend(random(1, 3, 2), 0.0, 1), "positive number"),
        (lambda: critical_similarities(2), "choose 3 to 9"),
        (lambda: smoothness_of(random(1, 2, 2)), "at least 3"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()
