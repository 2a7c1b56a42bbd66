"""Gradient descent on the features never raises the temporal loss: C.4, C.5.

Appendix C.1 of arXiv 2501.04606 (4.4 and 4.5 in arXiv 2504.16016). `strict_saddles` shows where
descent ends, `descent_rate` how fast. L_s = 2 c_T / ((T-1) m^2) is the smoothness of
`temporal_curvature`, with m the least norm of the *first* features.
"""

import math

import torch
from torch import Tensor

from theory.attack import attack
from theory.temporal_curvature import path_constant
from theory.temporal_loss import gradients, loss_gradient, losses
from theory.verdict import Counterexample, Verdict, statement
from vala_research import InputError
from vala_research.methods.temporal import temporal_consistency_loss

FLAT = 1e-8  # below this loss a ratio of differences is rounding


def smoothness_of(x: Tensor) -> Tensor:
    """L_s per clip, b f d -> b."""
    n_frames = x.shape[1]
    return 2 * path_constant(n_frames) / ((n_frames - 1) * x.norm(dim=-1).amin(1).square())


def descend(x: Tensor, steps: float, n_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Run gradient descent on b clips at once, with step size `steps` / L_s of the first frames.

    Returns the losses (n_steps + 1, b), the norms (n_steps + 1, b, f) and the last frames.
    Raises InputError for a step size that is not positive.
    """
    if steps <= 0:
        raise InputError(f"The step is {steps} / L_s: give a positive number, below 2 to descend.")
    eta = (steps / smoothness_of(x))[:, None, None]
    values, norms = [losses(x)], [x.norm(dim=-1)]
    for _ in range(n_steps):
        x = x - eta * gradients(x)
        values.append(losses(x))
        norms.append(x.norm(dim=-1))
    return torch.stack(values), torch.stack(norms), x


def curvature_of_step(x: Tensor, steps: float = 1.9) -> Tensor:
    """(L(F - eta g) - L(F) + eta |g|^2) / (eta^2 |g|^2 / 2) over L_s; at most 1 means descent."""
    smooth, g = smoothness_of(x), gradients(x)
    eta, square = steps / smooth, g.square().sum((1, 2))
    excess = losses(x - eta[:, None, None] * g) - losses(x) + eta * square
    is_flat = losses(x) < FLAT
    return torch.where(is_flat, 0, excess / (0.5 * eta**2 * square * smooth + is_flat))


@statement("C.4")
def descent(seed: int = 0, n_starts: int = 64, n_steps: int = 200) -> Verdict:
    """Theorem C.4, (40), (46) to (52): steps of eta < 2 / L on (20)'s loss lower L_temporal.

    Verdict: holds with a hypothesis: steps are taken on L_temporal itself, as in (48) to (52). (40)
    steps on the total loss (20), and there it fails. (47) needs no convexity, only a Lipschitz
    gradient.

    Corrected: take steps on L, in the features, with 0 < eta < 2 / L_s. Then
    (1) L_{k+1} <= L_k - eta (1 - eta L_s / 2) |grad|^2;
    (2) min_{k<n} |grad|^2 <= L_0 / (n eta (1 - eta L_s / 2));
    (3) norms never decrease, so that no hypothesis on the path is needed;
    (4) norms stay bounded: sum |F_t|^2 <= its start + 2 eta L_0 / (2 - eta L_s);
    (5) the features converge to one critical point.
    At T = 3 the threshold 2 / L_s is exact.

    Proof: theory/README.md, A5.1 and A5.2.

    seed, n_starts, n_steps: settings of the attack on one step at T = 3, and of the descents.
    Returns the largest curvature along a step over L_s, at T = 3.
    """

    def draw(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(n_starts, 3, 3, generator=generator, dtype=torch.float64),)

    # Attack one step; run descents from random starts; test the threshold and the total loss.
    worst = attack(curvature_of_step, draw, seed, n_steps)
    generator = torch.Generator().manual_seed(seed)
    runs = {
        n: descend(torch.randn(64, n, 3, generator=generator, dtype=torch.float64), 1.9, 200)
        for n in (3, 6)
    }
    down, up = (_threshold(steps) for steps in (1.9, 2.1))
    before, after, total_before, total_after = total_loss_step()
    return Verdict(
        statement="C.4", verdict="holds with hypothesis",
        claim="steps of eta < 2 / L on the total loss lower L_temporal at every step",
        corrected="steps on L_temporal in the features do, eta < 2 / L_s, L_s = 2 c_T / ((T-1) "
        "m^2), m of the start; norms never fall",
        measured=worst.value, bound=1.0,
        witness={
            "frames": worst.point[0], "total loss": (total_before, total_after),
            "one step of 1.9 and 2.1 / L_s": (down, up),
        },
        hypotheses={
            "the loss never rises": all((v.diff(dim=0) < 1e-14).all() for v, _, _ in runs.values()),
            "norms never fall": all((n.diff(dim=0) > -1e-12).all() for _, n, _ in runs.values()),
            "norms stay bounded": all(_bounded(v, n) for v, n, _ in runs.values()),
            "1.9 / L_s falls, 2.1 / L_s rises at T = 3": down < 1 < up,
            "the total loss falls meanwhile": total_after < total_before,
        },
        counterexample=Counterexample(
            "T = 3, F = (e, e, e), a step on |F - Y|^2 / 2 + L of eta = .05 < 2 / L: L",
            after, before,
        ),
        least_tightness=0.99,
        n_searched=worst.n_searched + sum(v.numel() for v, _, _ in runs.values()),
    )  # fmt: skip


def _bounded(values: Tensor, norms: Tensor, steps: float = 1.9) -> bool:
    """Whether sum |F_t|^2 stays below its start + 2 eta L_0 / (2 - eta L_s)."""
    smooth = 2 * path_constant(norms.shape[2]) / ((norms.shape[2] - 1) * norms[0].amin(1) ** 2)
    eta = steps / smooth
    allowed = norms[0].square().sum(1) + most_growth(eta, steps, values[0])
    return bool((norms[-1].square().sum(1) <= allowed).all())


def least_decrease(eta: Tensor, steps: float) -> Tensor:
    """eta (1 - eta L_s / 2), steps = eta L_s: a step lowers L by that times |grad|^2; A5.1."""
    return eta * (1 - steps / 2)


def most_growth(eta: Tensor, steps: float, first_loss: Tensor) -> Tensor:
    """2 eta L_0 / (2 - eta L_s), a bound of the growth of sum |F_t|^2 over a descent; A5.2."""
    return 2 * eta * first_loss / (2 - steps)


def _threshold(steps: float) -> float:
    """L after over L before one step of `steps` / L_s from frames near e, n, -e: (1 - steps)^2."""
    x = torch.tensor([[1.0, 0.0], [1e-4, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    after = x - steps / 6 * loss_gradient(x)  # c_3 = 6, T - 1 = 2, and all norms are 1
    return (temporal_consistency_loss(after) / temporal_consistency_loss(x)).item()


def total_loss_step(eta: float = 0.05) -> tuple[float, float, float, float]:
    """Take one step on |F - Y|^2 / 2 + L from equal frames.

    Y pulls one frame aside: its similarity to the others falls, unevenly.
    Returns L before and after, then the total loss before and after.
    """
    x = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    target = torch.tensor([[1.0, 2.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)

    def total(y: Tensor) -> float:
        return (0.5 * (y - target).square().sum() + temporal_consistency_loss(y)).item()

    y = x - eta * (x - target + loss_gradient(x))
    before, after = (temporal_consistency_loss(z).item() for z in (x, y))
    return before, after, total(x), total(y)


@statement("C.5")
def convexity(seed: int = 0, n_starts: int = 32, frames: tuple[int, ...] = (3, 4, 6, 9)) -> Verdict:
    """Lemma C.5, (41) to (45): L = |D s|^2 / (T-1) is convex in the similarities s.

    Verdict: holds, but not strictly: constants are the kernel. D is a first difference, not
    "second-order". The claim is false in F, in which C.4 descends. Its remaining use is A5.3.

    Corrected: as stated, and grad_s L is Lipschitz with exactly (8 / (T-1)) cos^2(pi / (2 (T-1))).

    Proof: the Hessian in s is (2 / (T-1)) D'D; D D' = tridiag(-1, 2, -1) of size T-2 has the
    eigenvalues 4 sin^2(pi j / (2 (T-1))), j = 1, ..., T-2.

    seed, n_starts: settings of the attack on |grad L(s) - grad L(s')| / |s - s'|.
    frames: the numbers of frames attacked.
    Returns the largest ratio of this quotient to the constant, over all T.
    """

    def ratio(v: Tensor) -> Tensor:
        n = v.shape[1] + 1
        change = v.diff(dim=1)
        up, down = torch.nn.functional.pad(change, (1, 0)), torch.nn.functional.pad(change, (0, 1))
        size = 2 / (n - 1) * (up - down).norm(dim=1)
        return size / v.norm(dim=1) / similarity_smoothness(n)

    def draw_chords(n: int):
        return lambda g: (torch.randn(n_starts, n - 1, generator=g, dtype=torch.float64),)

    attacks = {n: attack(ratio, draw_chords(n), seed, 200) for n in frames}
    worst = max(attacks, key=lambda n: attacks[n].value)

    # In F: two clips with zero loss whose midpoint has a positive loss.
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    ends = max(temporal_consistency_loss(x).item() for x in (a, b))
    middle = temporal_consistency_loss((a + b) / 2).item()
    return Verdict(
        statement="C.5", verdict="holds",
        claim="the loss is convex in the similarities",
        corrected="its gradient in s has the exact constant (8 / (T-1)) cos^2(pi / (2 (T-1))); in "
        "F the loss is not convex",
        measured=attacks[worst].value, bound=1.0,
        witness={"n_frames": worst, "chord": attacks[worst].point[0]},
        hypotheses={
            "chords of s lie above the loss": _chords(seed),
            "in F it is not convex: two losses of 0, one of .00147 between": middle > 1e-3 > ends,
        },
        least_tightness=0.999, n_searched=sum(a.n_searched for a in attacks.values()),
    )  # fmt: skip


def similarity_smoothness(n_frames: int) -> float:
    """Lipschitz constant of grad_s L, exactly: (8 / (T-1)) cos^2(pi / (2 (T-1))); A5.6."""
    return 8 / (n_frames - 1) * math.cos(math.pi / (2 * (n_frames - 1))) ** 2


def _chords(seed: int, n_frames: int = 6) -> bool:
    """Whether L is convex along 1000 random chords, and adding a constant leaves it unchanged."""
    s, r = torch.rand(
        2, 1000, n_frames - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )

    def loss(v: Tensor) -> Tensor:
        return v.diff(dim=1).square().sum(1) / (n_frames - 1)

    middle = loss((s + r) / 2) <= (loss(s) + loss(r)) / 2 + 1e-15
    return bool(middle.all() and torch.allclose(loss(s + 0.3), loss(s), atol=1e-14))
