"""Optimise the empty prompt of each step, so that guided sampling follows the inverted trajectory.

Mokady et al. 2022, Null-text inversion (arXiv 2211.09794), section 3.2, algorithm 1. DDIM inversion
at guidance 1 gives the pivot trajectory, which guidance then leaves. Step by step, only the
embedding of the unconditional branch is optimised, so that the guided step lands on the
trajectory's next point. Edits keep the embeddings and change the prompt.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError
from vala_research.diffusion.schedule import Schedule

PredictText = Callable[[Tensor, float, Tensor], Tensor]  # (z: f c h w, t, text: n d) -> prediction


@dataclass(frozen=True)
class NullTextSettings:
    """How long each step's embedding is optimised.

    n_iterations: most Adam updates per step.
    learning_rate: at the first step; it falls linearly to half at the last step (the paper's
        1e-2 (1 - i/100) for 50 steps).
    early_stop: a step ends at this mean squared distance to the trajectory.

    Differs from the released code: there early_stop rises by 2e-5 per step.
    """

    n_iterations: int = 10
    learning_rate: float = 1e-2
    early_stop: float = 1e-5

    def __post_init__(self):
        if self.n_iterations < 0 or not self.learning_rate > 0:
            raise InputError(
                f"The null-text settings are {self.n_iterations} iterations at learning rate "
                f"{self.learning_rate}: give 0 or more iterations and a positive rate."
            )


@dataclass(frozen=True)
class NullText:
    """The unconditional embedding of every step, in sampling order, shared by all frames.

    guidance_scale: the scale of the optimisation. At others sampling follows the trajectory less
        well.
    distances: mean squared distance to the trajectory after each step.
    n_evaluations, n_backward: forward and backward passes of all frames, one branch each. A
        backward pass costs a little less than two forward passes, since no weight has a gradient.
    """

    embeddings: Float[Tensor, "t n d"]
    guidance_scale: float
    distances: tuple[float, ...] = ()
    n_evaluations: int = 0
    n_backward: int = 0


def optimise_null_text(
    predict: PredictText,
    trajectory: Sequence[Tensor],
    schedule: Schedule,
    null: Float[Tensor, "n d"],
    text: Float[Tensor, "n d"],
    guidance_scale: float,
    settings: NullTextSettings = NullTextSettings(),
    progress: Callable[[Iterable], Iterable] = iter,
) -> NullText:
    """Find embeddings with which guided sampling under `text` follows the trajectory.

    trajectory: z at every level, noisiest first (n_steps + 1).
    null: embedding to start from; each later step starts from the embedding of the step before.
    Gradients reach the embedding alone. Memory: the graph of one forward pass of all frames,
    chunked or not.
    """
    z, null = trajectory[0], null.float()
    embeddings, distances, n_evaluations, n_backward = [], [], 0, 0
    for i, step in enumerate(progress(list(schedule))):
        # The conditional branch does not depend on the embedding: one pass per step.
        with torch.no_grad():
            conditional = predict(z, step.t, text)

        def landing(null: Tensor, z=z, step=step, conditional=conditional) -> Tensor:
            unconditional = predict(z, step.t, null)
            guided = unconditional + guidance_scale * (conditional - unconditional)
            return schedule.denoise(z, guided, step)

        # The next step starts where this one lands, not on the trajectory.
        rate = settings.learning_rate * (1 - i / (2 * len(schedule)))
        z, null, distance, j = _optimised(null, landing, trajectory[i + 1], rate, settings)
        embeddings.append(null)
        distances.append(distance)
        n_evaluations, n_backward = n_evaluations + j + 2, n_backward + j
    return NullText(
        torch.stack(embeddings), guidance_scale, tuple(distances), n_evaluations, n_backward
    )


def _optimised(
    null: Tensor, landing: Callable, target: Tensor, rate: float, settings: NullTextSettings
) -> tuple[Tensor, Tensor, float, int]:
    """Update one step's embedding until `landing(null)` is near the target, or iterations end.

    Returns the landing point, the embedding, the mean squared distance, the number of updates.
    """
    null = null.detach().clone().requires_grad_()
    adam = torch.optim.Adam([null], lr=rate)
    for j in range(settings.n_iterations + 1):
        with torch.set_grad_enabled(j < settings.n_iterations):
            landed = landing(null)
            distance = F.mse_loss(landed, target)
        reached = float(distance.detach())  # the one wait of an update
        if j == settings.n_iterations or reached < settings.early_stop:
            break
        (null.grad,) = torch.autograd.grad(distance, null)
        adam.step()
    return landed.detach(), null.detach(), reached, j


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Freeze all parameters inside the context: no activation is kept for their gradients."""
    trained = [p for p in network.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
