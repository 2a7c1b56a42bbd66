"""How the timesteps of a diffusion model are spaced."""

import torch

from vala_research import InputError


def inference_timesteps(
    n_train: int, n_steps: int, spacing: str, offset: int, takes_one_more: bool = False
) -> tuple[int, ...]:
    """Space `n_steps` timesteps, noisiest first; Lin et al. 2024 (arXiv 2305.08891), Table 2.

    takes_one_more: space one more, and leave out the least noisy one.
    """
    whole_steps(n_steps, n_train)

    # Spacing as the scheduler says.
    if takes_one_more and n_steps < n_train and spacing in ("leading", "linspace"):
        return inference_timesteps(n_train, n_steps + 1, spacing, offset)[:-1]
    if spacing == "leading":
        timesteps = [i * (n_train // n_steps) + offset for i in reversed(range(n_steps))]
    elif spacing == "trailing":
        timesteps = [round(n_train - i * n_train / n_steps) - 1 for i in range(n_steps)]
    elif spacing == "linspace":
        grid = torch.linspace(0, n_train - 1, n_steps, dtype=torch.float64)
        timesteps = grid.round().long().flip(0).tolist()
    else:
        raise InputError(
            f"The scheduler's timestep_spacing {spacing!r} is not supported: "
            "use one of leading, trailing, linspace."
        )

    # steps_offset can shift a step out of the trained ones.
    if timesteps[0] >= n_train or offset < 0:
        raise InputError(
            f"num_inference_steps is {n_steps}: with the scheduler's steps_offset of {offset}, the "
            f"first step lies outside the {n_train} trained steps; choose {n_train // 2} or fewer."
        )
    return tuple(timesteps)


def whole_steps(n_steps: int, n_train: int) -> None:
    """Refuse a number of steps that is none, or more than the model was trained with."""
    if not isinstance(n_steps, int) or isinstance(n_steps, bool) or not 1 <= n_steps <= n_train:
        raise InputError(
            f"num_inference_steps is {n_steps!r}: choose a whole number from 1 to {n_train}, "
            "the number of steps this model was trained with."
        )
