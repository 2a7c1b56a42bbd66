"""Schedulers of other solvers and other models: which can be read, and what of them is not used."""

import warnings
from typing import Any

from vala_research import InputError

SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler that holds no noise levels of a diffusion model. Raises InputError."""
    config, name = getattr(scheduler, "config", {}), type(scheduler).__name__
    is_flow = "FlowMatch" in name or config.get("use_flow_sigmas") or (
        config.get("prediction_type") in ("flow_prediction", "raw_velocity")
    )  # fmt: skip
    is_edm = name.startswith(("EDM", "CosineDPM")) or config.get("timestep_type") == "continuous"
    if is_flow or is_edm:
        kind = "flow-matching" if is_flow else "EDM"
        raise InputError(
            f"The scheduler is {name}, of {kind} models: give a Stable Diffusion 1.x/2.x "
            "checkpoint with its own scheduler, such as DDIMScheduler."
        )
    if not hasattr(scheduler, "alphas_cumprod"):
        raise InputError(
            f"The scheduler is {name}, which has no alphas_cumprod: give one of Stable Diffusion "
            "1.x/2.x, such as DDIMScheduler."
        )


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
    is_usual = name == "DDIMScheduler" or (name == "PNDMScheduler" and scheduler is first)
    if is_usual and not sigmas:
        return
    unused = " and ".join(["its solver", *sigmas]) + (" are" if sigmas else " is")
    warnings.warn(
        f"The scheduler is {name}: deterministic DDIM over this scheduler's levels is run, and "
        f"{unused} not used.",
        stacklevel=6,  # the caller of the pipeline
    )
