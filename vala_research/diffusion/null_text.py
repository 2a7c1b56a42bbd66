"""Guidance leaves the path that was inverted; another empty prompt at each step leads back to it.

Mokady et al. 2022, Null-text inversion (arXiv 2211.09794), section 3.2, algorithm 1. DDIM
inversion at guidance 1 gives the pivot trajectory; then, step by step, only the embedding of the
unconditional branch is optimised, so that the guided step lands on the next point of it. Edits keep
the embeddings and change the prompt.
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

PredictText = Callable[[Tensor, int, Tensor], Tensor]  # (z: f c h w, t, text: n d) -> prediction


@dataclass(frozen=True)
class NullTextSettings:
    """How long each step's embedding is optimised.

    n_iterations: Adam updates a step at most; learning_rate: of the first step, falling in a line
    to half of it at the last (the paper's 1e-2 (1 - i/100) of 50 steps); early_stop: mean squared
    distance to the trajectory at which a step is done. Differs from the released code: that raises
    early_stop by 2e-5 a step.
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

    guidance_scale: the one it was made for; at others the trajectory is followed less well.
    distances: mean squared distance to the trajectory after each step. n_evaluations and
    n_backward: forward and backward passes of all frames (one branch each); a backward pass costs
    about as much as two forward ones, a little less as no weight has a gradient.
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
    """Embeddings with which guided sampling under `text` follows the trajectory.

    trajectory: z at every level, noisiest first (n_steps + 1). null: the embedding to start from;
    each step starts from the one before it. Gradients reach the embedding alone. Memory: the graph
    of one forward pass of all frames, chunked or not.
    """
    z, null = trajectory[0], null.float()
    embeddings, distances, n_evaluations, n_backward = [], [], 0, 0
    for i, step in enumerate(progress(list(schedule))):
        with torch.no_grad():
            conditional = predict(z, step.t, text)
        null = null.detach().clone().requires_grad_()
        rate = settings.learning_rate * (1 - i / (2 * len(schedule)))
        adam = torch.optim.Adam([null], lr=rate)
        for j in range(settings.n_iterations + 1):
            with torch.set_grad_enabled(j < settings.n_iterations):
                unconditional = predict(z, step.t, null)
                guided = unconditional + guidance_scale * (conditional - unconditional)
                landed = schedule.denoise(z, guided, step)
                distance = F.mse_loss(landed, trajectory[i + 1])
            if j == settings.n_iterations or distance < settings.early_stop:
                break
            (null.grad,) = torch.autograd.grad(distance, null)
            adam.step()
        z = landed.detach()
        embeddings.append(null.detach())
        distances.append(float(distance.detach()))
        n_evaluations, n_backward = n_evaluations + j + 2, n_backward + j
    return NullText(
        torch.stack(embeddings), guidance_scale, tuple(distances), n_evaluations, n_backward
    )


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside, so that none of their inputs is kept for one."""
    trained = [p for p in network.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)
