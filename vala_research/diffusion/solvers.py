"""Schedulers of other solvers and other models: which can be read, and what of them is not used."""

import warnings
from typing import Any

import numpy as np

from vala_research import InputError

SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is that of a rectified flow. UniPC has alphas_cumprod even then."""
    config, name = getattr(scheduler, "config", {}), type(scheduler).__name__
    return (
        "FlowMatch" in name or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") in ("flow_prediction", "raw_velocity")
    )  # fmt: skip


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler that holds no noise levels of a known path. Raises InputError."""
    config, name = getattr(scheduler, "config", {}), type(scheduler).__name__
    if is_flow(scheduler):
        _check_flow(config, name)
        return
    if name.startswith(("EDM", "CosineDPM")) or config.get("timestep_type") == "continuous":
        raise InputError(
            f"The scheduler is {name}, of EDM models: give a checkpoint of Stable Diffusion, or of "
            "a rectified flow, with its own scheduler, such as DDIMScheduler."
        )
    if not hasattr(scheduler, "alphas_cumprod"):
        raise InputError(
            f"The scheduler is {name}, which has no alphas_cumprod: give one of Stable Diffusion, "
            "such as DDIMScheduler, or of a rectified flow."
        )


def n_timesteps_of(scheduler: Any) -> int:
    """T: the timesteps that a network with this scheduler was trained with."""
    return scheduler.config.num_train_timesteps


def _check_flow(config: dict[str, Any], name: str) -> None:
    """Refuse schedulers of a flow whose levels are not s, from 1 to 0, one per step."""
    is_euler = name == "FlowMatchEulerDiscreteScheduler"
    kind = config.get("prediction_type")
    if not is_euler and not (config.get("use_flow_sigmas") and kind == "flow_prediction"):
        raise InputError(
            f"The scheduler is {name}, prediction type {kind!r}, of a flow-matching model: give a "
            "FlowMatchEulerDiscreteScheduler, or a UniPCMultistepScheduler with use_flow_sigmas "
            "and prediction_type 'flow_prediction'."
        )
    for option, reason in (
        ("invert_sigmas", "counts its levels from the data, as Mochi does"),
        ("stochastic_sampling", "draws noise at every step, which no inversion can undo"),
    ):
        if config.get(option):
            raise InputError(f"The scheduler {name} {reason} ({option}): set {option} to False.")


def flow_levels(
    scheduler: Any, n_steps: int, n_tokens: int | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The scheduler's own levels s, one more than steps, and the timesteps that go with them.

    With a dynamic shift, the shift mu grows linearly with the tokens, and levels are spaced as
    diffusers' pipelines of LTX and Flux space them. Raises InputError without n_tokens.
    """
    config = scheduler.config
    own = type(scheduler).from_config(config)  # nothing is left in the pipeline's scheduler
    if config.get("use_dynamic_shifting"):
        if n_tokens is None:
            raise InputError(
                "The scheduler shifts its levels by the number of tokens (use_dynamic_shifting): "
                "give n_tokens."
            )
        ends = config.base_image_seq_len, config.max_image_seq_len
        slope = (config.max_shift - config.base_shift) / (ends[1] - ends[0])
        mu = config.base_shift + slope * (n_tokens - ends[0])
        own.set_timesteps(sigmas=np.linspace(1.0, 1 / n_steps, n_steps), mu=mu)
    else:
        own.set_timesteps(n_steps)
    levels = tuple(own.sigmas.double().tolist())
    timesteps = tuple(own.timesteps.tolist())
    if len(levels) != n_steps + 1 or len(set(timesteps)) != n_steps:
        raise InputError(
            f"The scheduler {type(scheduler).__name__} makes {len(set(timesteps))} different "
            f"levels for {n_steps} steps: use fewer steps."
        )
    return levels, timesteps


def final_is_data(config: dict[str, Any]) -> bool:
    """Whether the level after the last step is the data (alpha_bar = 1), or the first level."""
    sigma = config.get("final_sigmas_type", "zero")
    return config.get("set_alpha_to_one", sigma == "zero")


def spacing_of(config: dict[str, Any]) -> tuple[str, bool]:
    """The spacing of the timesteps, and whether one more is spaced and the last one left out.

    Multi-step solvers, such as DPM-Solver, space one more.
    """
    is_multi_step = "solver_order" in config
    return config.get("timestep_spacing", "linspace" if is_multi_step else "leading"), is_multi_step


def warn_of_solver(scheduler: Any, first: Any) -> None:
    """Warn that a scheduler's own solver is not run.

    first: the scheduler that the pipeline was made with. PNDM is what Stable Diffusion 1.5 ships,
    so it is no news there.
    """
    name, config = type(scheduler).__name__, scheduler.config
    sigmas = [key for key in SIGMAS if config.get(key)]
    is_usual = name in ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler") or (
        name in ("PNDMScheduler", "UniPCMultistepScheduler") and scheduler is first
        and (name == "PNDMScheduler" or is_flow(scheduler))
    )  # fmt: skip
    if is_usual and not sigmas:
        return
    unused = " and ".join(["its solver", *sigmas]) + (" are" if sigmas else " is")
    warnings.warn(
        f"The scheduler is {name}: deterministic DDIM over this scheduler's levels is run, and "
        f"{unused} not used.",
        stacklevel=6,  # the caller of the pipeline
    )
