"""Inversion: find the noise from which deterministic sampling returns to the given latents.

* `ddim` (Song et al. 2021, section 4.3) walks the step backwards with the noise predicted at its
  start. It takes one network evaluation per step; its error is of first order in the step size.
* `exact` solves the implicit equation `z_s = A z_t + B f(z_t, t)` of the network's output f, so
  that sampling from z_t lands on z_s (Pan et al. 2023, Effective real image editing with
  accelerated iterative diffusion inversion). For f = eps, fixed-point iteration contracts when
  `(lambda_t - lambda_s) sqrt(alpha_bar_t) L_eps < 1`, where `lambda = sqrt(1/alpha_bar - 1)` and
  L_eps is the network's Lipschitz constant. Anderson acceleration (Walker and Ni 2011) speeds it
  up, and often converges where it does not contract.
  It is cheap because the start extrapolates the output of the solved steps, and because the stop
  predicts the residual of the next iterate instead of measuring it.
* `bilateral` is `ddim` from smoothed latents, see `bilateral_inversion`.
* `null_text` is `ddim`; see `null_text`.
* `noise` and `motion_field` do not invert: an edit starts from noise, see `noise_start`.
* `flow_edit` and `flow_align` do not invert: an edit moves the clip itself, see `difference`.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.bilateral_inversion import BilateralInversion, fractions
from vala_research.diffusion.difference import DifferenceEdit, check_inverts
from vala_research.diffusion.fixed_point import ExactSettings, Solution, fixed_point
from vala_research.diffusion.noise_start import NoiseStart
from vala_research.diffusion.null_text import NullText, NullTextSettings
from vala_research.diffusion.schedule import Predict, Schedule, Step, carried, ddim_step
from vala_research.methods.anchors import Anchors


@dataclass(frozen=True)
class DdimSettings:
    """Plain DDIM inversion: nothing to set."""


InversionSettings = (
    DdimSettings | ExactSettings | NullTextSettings | BilateralInversion | NoiseStart
    | DifferenceEdit
)  # fmt: skip
METHODS: dict[str, InversionSettings] = {
    "ddim": DdimSettings(),
    "exact": ExactSettings(),
    "bilateral": BilateralInversion(),
    "null_text": NullTextSettings(),
    "noise": NoiseStart(),
    "motion_field": NoiseStart(motion=(12 / 512, 12 / 512), share=0.06),
    "flow_edit": DifferenceEdit(),
    "flow_align": DifferenceEdit(n_max=1.0, zeta=0.01),
}


@dataclass(frozen=True)
class Inversion:
    """The result of an inversion.

    latents: z at the noisiest level.
    trajectory: z at every level in sampling order, from the noisiest to the clean latents
        (n_steps + 1 entries; empty when not kept).
    n_evaluations: network calls, each on all frames. n_backward: backward passes of null text.
    residuals: of the implicit step, measured or predicted, one per step in sampling order (exact
        inversion only).
    attention: the policy of the inversion. anchors: those of the policy, if it has any.
    null_text: the unconditional embeddings, where they were optimised.
    activation: where an adapter acted. n_pixel_frames: of the clip, where a temporal VAE made fewer
    latent frames of them.
    """

    latents: Float[Tensor, "*shape"]
    trajectory: tuple[Tensor, ...] = ()
    n_evaluations: int = 0
    residuals: tuple[float, ...] = ()
    attention: Any = "extended"
    anchors: Anchors | None = None
    null_text: NullText | None = None
    n_backward: int = 0
    activation: Any = None
    n_pixel_frames: int | None = None

    def to(self, device: torch.device) -> "Inversion":
        """The inversion with its latents on this device."""
        moved = tuple(z.to(device) for z in self.trajectory)
        return replace(self, latents=self.latents.to(device), trajectory=moved)


NO_SIGNAL = 1e-6  # alpha_bar at zero terminal SNR: 0, or 2^-24 in some schedulers
Past = deque[tuple[float, Tensor]]  # place and output of the last steps, oldest first


def get_inversion(inversion: object) -> InversionSettings:
    """The settings of an inversion method by its name, or the settings themselves.

    Raises InputError, which lists the valid names.
    """
    if isinstance(inversion, InversionSettings):
        return inversion
    if not isinstance(inversion, str) or inversion not in METHODS:
        raise InputError(
            f"Unknown inversion {inversion!r}: choose one of {', '.join(METHODS)}, or give the "
            "settings of one."
        )
    return METHODS[inversion]


def invert(
    predict: Predict,
    z_0: Float[Tensor, "*shape"],
    schedule: Schedule,
    inversion: str | InversionSettings = "ddim",
    keep_trajectory: bool = True,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Inversion:
    """Invert clean latents to the noisiest level of the schedule, at guidance 1.

    predict: `(z_t, t) ->` the network's prediction, in the precision of the solver (fp32, or fp64
        for fp64 latents). With a filter along frames, filtering is left to it.
    inversion: a name or settings. "null_text" is "ddim" here: `optimise_null_text` mends the
        trajectory afterwards.
    progress: wraps the loop over steps, such as a progress bar.
    Raises InputError for an unknown method, and for a filter that does not fit z_0.
    """
    settings = get_inversion(inversion)
    check_inverts(settings)
    if isinstance(settings, BilateralInversion):
        settings.check(schedule, tuple(z_0.shape))
    solve = STEPS[type(settings)]

    # The exact solve asks for many single numbers and needs float64: it runs on the CPU, and each
    # prediction is fetched once.
    if isinstance(settings, ExactSettings) and not z_0.is_cpu:
        device = z_0.device
        return invert(
            lambda z, t: predict(z.to(device), t).cpu(), z_0.cpu(), schedule, settings,
            keep_trajectory, progress,
        ).to(device)  # fmt: skip

    # Walk from the clean latents to the noisiest level; the last steps help to guess the next.
    past: Past = deque(maxlen=3)
    z = z_0 if z_0.dtype == torch.float64 else z_0.float()
    trajectory, residuals, n_evaluations = deque([z]), deque(), 0
    for step in progress(list(reversed(list(schedule)))):
        solution = solve(predict, z, schedule, step, settings, past)
        output = direction(z, solution.z, step, schedule.prediction_type)
        past.append((place(schedule.prediction_type, step), output))
        z = solution.z
        n_evaluations += solution.n_evaluations
        if keep_trajectory:
            trajectory.appendleft(z)
        if isinstance(settings, ExactSettings):
            residuals.appendleft(solution.residual)

    # Only an exact inversion has residuals, and a tolerance to miss.
    missed = [r for r in residuals if r > settings.tolerance]
    if missed:
        warnings.warn(
            f"Exact inversion missed its tolerance of {settings.tolerance:.0e} in {len(missed)} of "
            f"{len(schedule)} steps (worst residual {max(missed):.1e}): use more steps, or "
            "more iterations.",
            stacklevel=2,
        )
    kept = tuple(trajectory) if keep_trajectory else ()
    return Inversion(z, kept, n_evaluations, tuple(residuals))


def ddim(
    predict: Predict, z_s: Tensor, schedule: Schedule, step: Step,
    settings: DdimSettings | NullTextSettings, past: Past,
) -> Solution:  # fmt: skip
    """Plain DDIM inversion: along the eps that is predicted at z_s; for a flow, the velocity."""
    prediction = predict(z_s, step.t)
    is_flow = schedule.prediction_type == "flow_prediction"
    if is_flow or step.alpha_bar_t < NO_SIGNAL:  # eps is z_s itself there, and says nothing
        return Solution(schedule.renoise(z_s, z_s, prediction, step), n_evaluations=1)
    _, eps = schedule.split(z_s, prediction, step.noisy)
    return Solution(ddim_step(z_s, eps, step.alpha_bar_s, step.alpha_bar_t), n_evaluations=1)


def bilateral(
    predict: Predict, z_s: Tensor, schedule: Schedule, step: Step,
    settings: BilateralInversion, past: Past,
) -> Solution:  # fmt: skip
    """Plain DDIM inversion from the filtered z_s."""
    z_s = settings.filtered(z_s, fractions(schedule)[step.t])
    return ddim(predict, z_s, schedule, step, DdimSettings(), past)


def exact(
    predict: Predict, z_s: Tensor, schedule: Schedule, step: Step,
    settings: ExactSettings, past: Past,
) -> Solution:  # fmt: skip
    """The z_t whose sampling step is z_s, to the tolerance."""
    return fixed_point(
        lambda z: schedule.renoise(z_s, z, predict(z, step.t), step),
        extrapolated(z_s, step, past, schedule.prediction_type),
        settings,
    )


STEPS: dict[type, Callable[..., Solution]] = {
    DdimSettings: ddim, ExactSettings: exact, BilateralInversion: bilateral, NullTextSettings: ddim,
}  # fmt: skip


def extrapolated(z_s: Tensor, step: Step, past: Past, prediction_type: str = "epsilon") -> Tensor:
    """A guess of z_t: the network's output is nearly linear along a trajectory (Lu et al. 2022).

    The step next to the data is unlike the others. So a line needs three known steps and uses the
    last two. Before that the output is taken as constant, and the first guess is z_s.
    """
    a, b = carried(prediction_type, step)
    if not past or a < 0.1:
        return z_s
    x, output = past[-1]
    if len(past) == 3:
        before, output_before = past[-2]
        slope = (output - output_before) / (x - before)
        output = output + (place(prediction_type, step) - x) * slope
    return (z_s - b * output) / a


def direction(z_s: Tensor, z_t: Tensor, step: Step, prediction_type: str = "epsilon") -> Tensor:
    """The network's output with which DDIM leads from z_t to z_s."""
    a, b = carried(prediction_type, step)
    return (z_s - a * z_t) / b


def place(prediction_type: str, step: Step) -> float:
    """Where a step lies on the axis along which the network's output is nearly linear.

    The log-SNR for eps. It has no end where no signal is left, so else the angle of the level, or
    the level itself for a flow.
    """
    if prediction_type == "epsilon":
        return step.noisy.log_snr
    return step.noisy.s if prediction_type == "flow_prediction" else step.noisy.angle
