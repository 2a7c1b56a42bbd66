"""A loss that is convex in the similarities has no false minimum in the features: where C.4 ends.

The similarities of neighbours are free: turning all later frames together changes only one of them.
So F -> q(s(F)) with a convex q is q(cos) in as many free angles. A local minimum over F is a local
minimum of q over the cube |s_t| <= 1, hence global. This holds for L and for L + w mean(1 - s);
A5.3.
"""

from itertools import product

import torch
from torch import Tensor

from theory.certificates import hessian_blocks
from theory.gradient_descent import descend
from theory.temporal_loss import gradients
from theory.verdict import Counterexample, Verdict, statement
from vala_research import InputError
from vala_research.methods.temporal import temporal_consistency_loss

ONE = 1 - 1e-9  # a similarity beyond this counts as +-1


def slopes(s: Tensor, flicker_weight: float = 0.0) -> Tensor:
    """dL/ds of L + w mean(1 - s), ... n -> ... n with n = T - 1."""
    change = s.diff(dim=-1)
    pad = torch.nn.functional.pad
    return (2 * (pad(change, (1, 0)) - pad(change, (0, 1))) - flicker_weight) / s.shape[-1]


def critical_similarities(n_frames: int, flicker_weight: float = 0.0) -> Tensor:
    """Enumerate the critical points of q(s(F)) but minima, by their similarities: k (T - 1).

    At a critical point each s_t is +-1 or has slope 0. All 3^(T-1) choices are solved. Solutions
    inside the cube remain, except the global minima.
    """
    if not 3 <= n_frames <= 9:
        raise InputError(f"All critical points of {n_frames} frames: choose 3 to 9.")
    n = n_frames - 1
    hessian = slopes(torch.eye(n, dtype=torch.float64)).mT
    critical = []
    for choice in product((-1, 0, 1), repeat=n):
        s = torch.tensor(choice, dtype=torch.float64)
        is_free = s == 0
        if is_free.all():
            continue  # all equal, L = 0; or w > 0, and slopes that sum to -w cannot all vanish

        # Solve for the free similarities, at which the slope is 0.
        if is_free.any():
            fixed = slopes(s, flicker_weight)[is_free]
            s[is_free] = torch.linalg.solve(hessian[is_free][:, is_free], -fixed)

        # Keep solutions inside the cube, except global minima.
        is_inside = bool((s[is_free].abs() < ONE).all())
        value = s.diff().square().sum() + flicker_weight * (1 - s).sum()
        if is_inside and value > 1e-12:
            critical.append(s)
    return torch.stack(critical)


def frames_with(s: Tensor, generator: torch.Generator, d: int = 4) -> Tensor:
    """Draw frames with these similarities, k (T - 1) -> k T d, and norms from 1/3 to 3."""
    u = [torch.nn.functional.normalize(_normal(generator, len(s), d), dim=-1)]

    # Each frame: the given cosine along the last one, and a random direction across it.
    for cosine in s.T[:, :, None]:
        across = _normal(generator, len(s), d)
        across = across - (across * u[-1]).sum(-1, keepdim=True) * u[-1]
        across = torch.nn.functional.normalize(across, dim=-1)
        u.append(cosine * u[-1] + (1 - cosine**2).clamp_min(0).sqrt() * across)
    norms = 3 ** (2 * torch.rand(len(s), len(u), 1, generator=generator).double() - 1)
    return torch.stack(u, 1) * norms


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def predicted_curvature(x: Tensor, s: Tensor, flicker_weight: float = 0.0) -> Tensor:
    """Lower bound of -lambda_min at critical points but minima, by A5.3: k; larger than 0.

    The largest slope at an s_t = +-1 by which the loss falls towards the inside of the cube,
    divided by the squared norms of the frames on the lighter side of t, which turn together.
    """
    slope = slopes(s, flicker_weight)
    is_wrong = (s.abs() > ONE) & (slope * s > 0)
    squares = x.square().sum(-1)
    before = squares.cumsum(1)[:, :-1]
    lighter = torch.minimum(before, squares.sum(1, keepdim=True) - before)
    return torch.where(is_wrong, slope.abs() / lighter, 0).amax(1)


def least_curvature(x: Tensor, flicker_weight: float = 0.0) -> Tensor:
    """lambda_min of the Hessian of L + w mean(1 - s) at frames x, k T d -> k."""
    r = x.norm(dim=-1)
    n_frames, d = x.shape[1:]
    inside, across = hessian_blocks(x / r[..., None], flicker_weight)
    wide = r.repeat_interleave(d, 1)
    inside = inside / (wide[:, :, None] * wide[:, None])
    across = across / (r[:, :, None] * r[:, None])
    return torch.minimum(*(torch.linalg.eigvalsh(b)[:, 0] for b in (inside, across)))


@statement("C.4a")
def strict_saddles(
    seed: int = 0, frames: tuple[int, ...] = (3, 4, 5, 6, 7), n_repeats: int = 4
) -> Verdict:
    """Theorem C.4: gradient descent with eta < 2 / L converges to a local minimum.

    Verdict: false: (e, -e, -e) is critical, and L = 2 is its largest value at T = 3.

    Corrected, in the features with HWC >= 2: every local minimum of L is global (L = 0), and every
    other critical point has lambda_min <= -|dL/ds_k| / (squared norms of the frames on one side of
    k) < 0 for some k with s_k = +-1. So with eta < 1 / L_s almost every start ends at L = 0. This
    fails in parameters of the features: F = A + theta B has a local minimum with L = .334.

    Proof: theory/README.md, A5.3 and A5.5. All critical similarities are enumerated for each T.
    Directions and norms of frames with these similarities are drawn.

    seed, n_repeats: seed and number of draws per critical point. frames: the numbers of frames.
    Returns the largest predicted over measured negative curvature.
    """
    # Compare predicted and measured curvature at every critical point, for each number of frames.
    generator = torch.Generator().manual_seed(seed)
    ratios, residual, witness, count = [], 0.0, None, 0
    for n in frames:
        s = critical_similarities(n).repeat(n_repeats, 1)
        x = frames_with(s, generator)
        residual = max(residual, gradients(x).norm(dim=-1).max().item())
        ratio = predicted_curvature(x, s) / -least_curvature(x)
        if not ratios or ratio.max() > max(r.max() for r in ratios):
            witness = x[ratio.argmax()]
        ratios.append(ratio)
        count += len(x)

    # Ends of random descents, the false minimum in theta, and the counterexample (e, -e, -e).
    reached = {n: descent_ends(n, seed) for n in (3, 4, 5)}
    theta, value, bend = parameter_minimum()
    corner = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)
    return Verdict(
        statement="C.4a", verdict="false",
        claim="with eta < 2 / L gradient descent converges to a local minimum",
        corrected="in the features every critical point with L > 0 has lambda_min <= -|dL/ds_k| / "
        "sum_{j > k} |F_j|^2 < 0, so almost every start ends at L = 0; not so in other parameters",
        measured=torch.cat(ratios).max().item(), bound=1.0,
        witness={
            "frames": witness, "theta": (theta, value, bend),
            "share of starts at L < 1e-6": reached,
        },
        hypotheses={
            "all points are critical": residual < 1e-9,
            "all predicted curvatures are negative": bool((torch.cat(ratios) > 0).all()),
            "random starts end at L = 0": min(reached.values()) == 1.0,
            "in theta there is a false bottom": value > 0.3 and bend > 0.1,
        },
        counterexample=Counterexample(
            "F = (e, -e, -e), critical: -lambda_min of the Hessian",
            -least_curvature(corner).item(), 0.0,
        ),
        least_tightness=0.8, n_searched=count,
    )  # fmt: skip


def descent_ends(n_frames: int, seed: int, n_starts: int = 64, n_steps: int = 1500) -> float:
    """Share of random starts of norm 1 whose loss falls below 1e-6 by steps of .95 / L_s."""
    x = _normal(torch.Generator().manual_seed(seed), n_starts, n_frames, 4)
    values, _, _ = descend(x / x.norm(dim=-1, keepdim=True), 0.95, n_steps)
    return (values[-1] < 1e-6).double().mean().item()


def along_theta(theta: float | Tensor) -> Tensor:
    """Features A + theta B, moved by one entry of a low-rank adapter; T = 3, d = 2."""
    a = torch.tensor([[1.0, 0.0], [1.0, -1.0], [-2.0, -2.0]], dtype=torch.float64)
    b = torch.tensor([[2.0, 2.0], [-1.0, 0.0], [-1.0, -2.0]], dtype=torch.float64)
    return a + theta * b


def parameter_minimum(start: float = -0.741) -> tuple[float, float, float]:
    """Find the local minimum over theta next to `start` by Newton: (theta, L, d2L/dtheta2)."""
    theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    for _ in range(20):
        loss = temporal_consistency_loss(along_theta(theta))
        (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
        (bend,) = torch.autograd.grad(slope, theta)
        theta = (theta - slope.detach() / bend).detach().requires_grad_()
    return theta.item(), loss.item(), bend.item()
