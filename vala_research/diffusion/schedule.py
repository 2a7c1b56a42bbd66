"""Deterministic sampling: one affine map between two noise levels, written once, run both ways.

A step keeps the network's x0 and noise, and moves from z = a x0 + b n to a' x0 + b' n. On the path
of diffusion that is DDIM (Song et al. 2021, Eq. (12) with sigma = 0), on that of a rectified flow
Euler's method. `alpha_bar_t` is the cumulative product of a diffusion schedule.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, number_in
from vala_research.diffusion.level import PREDICTION_TYPES, Level
from vala_research.diffusion.solvers import (
    check_scheduler,
    final_is_data,
    flow_levels,
    is_flow,
    spacing_of,
)
from vala_research.diffusion.spacing import inference_timesteps, whole_steps

Predict = Callable[[Tensor, float], Tensor]  # (z_t, t) -> the prediction of the network


def ddim_step(
    z: Float[Tensor, "*shape"],
    eps: Float[Tensor, "*shape"],
    alpha_bar_from: float,
    alpha_bar_to: float,
) -> Float[Tensor, "*shape"]:
    """Move `z` along the noise direction `eps` from one noise level to another, either way.

    x0 = (z - sqrt(1-a) eps) / sqrt(a), z' = sqrt(b) x0 + sqrt(1-b) eps,
    a = alpha_bar_from > 0, b = alpha_bar_to. With the same eps, step b -> a undoes step a -> b.
    """
    a, b = float(alpha_bar_from), float(alpha_bar_to)
    scale = sqrt(b / a)
    return scale * z + (sqrt(1 - b) - scale * sqrt(1 - a)) * eps


def is_within(t: float, interval: Sequence[float], n_timesteps: int) -> bool:
    """Whether timestep t lies in an interval of fractions of T, both ends included."""
    low, high = interval
    return low * n_timesteps <= t <= high * n_timesteps


@dataclass(frozen=True)
class Step:
    """One sampling step t -> s, where s is the less noisy level; inversion takes it s -> t.

    t, s: what the network is told of these levels. It is evaluated at `t` in both directions, since
    the last level (s = -1) has no timestep. Both directions therefore solve the same equation.
    """

    t: float
    s: float
    noisy: Level
    clean: Level

    @property
    def alpha_bar_t(self) -> float:
        """Share of signal power at t."""
        return self.noisy.alpha_bar

    @property
    def alpha_bar_s(self) -> float:
        """Share of signal power at s."""
        return self.clean.alpha_bar


@dataclass(frozen=True)
class Schedule:
    """The noise levels, and the timesteps that both sampling and inversion visit.

    alpha_bar: the T training levels of a diffusion model, decreasing; empty for a rectified flow.
    final_alpha_bar: level after the last step: 1, or alpha_bar[0] for a checkpoint with
        `set_alpha_to_one: false`.
    timesteps: decreasing, noisiest first.
    flow: levels s of a rectified flow, one per timestep and the final one; empty for diffusion.
    """

    alpha_bar: tuple[float, ...]
    final_alpha_bar: float
    prediction_type: str
    timesteps: tuple[float, ...]
    flow: tuple[float, ...] = ()

    def __post_init__(self):
        if self.prediction_type not in PREDICTION_TYPES:
            raise InputError(
                f"The scheduler's prediction type {self.prediction_type!r} is not supported: "
                f"use a checkpoint that predicts one of {', '.join(PREDICTION_TYPES)}."
            )
        if not all(0 <= s <= 1 for s in self.flow):
            raise InputError(
                f"The scheduler's levels run from {max(self.flow):g} to {min(self.flow):g}: a "
                "rectified flow has levels from 1, noise, to 0, data."
            )

    @classmethod
    def from_scheduler(
        cls, scheduler: Any, num_inference_steps: int, n_tokens: int | None = None
    ) -> "Schedule":
        """Read a diffusers scheduler of Stable Diffusion (DDIM, PNDM, Euler, DPM-Solver, ...), of
        CogVideoX, or of a rectified flow (FlowMatchEuler, UniPC with flow sigmas).

        The levels, their spacing and the final level are the scheduler's own, also where it was
        made with defaults. x0 is not clipped, since no inversion could undo that.
        n_tokens: that the network sees, by which a flow's dynamic shift goes.
        Differs from diffusers: a step always ends where the next step begins. diffusers steps by
        T // n, which misses that level for `linspace` spacing, and for `trailing` spacing when n
        does not divide T.
        """
        check_scheduler(scheduler)
        config = scheduler.config
        if is_flow(scheduler):
            whole_steps(num_inference_steps, config.num_train_timesteps)
            levels, timesteps = flow_levels(scheduler, num_inference_steps, n_tokens)
            return cls((), 1.0, "flow_prediction", timesteps, levels)
        alpha_bar = tuple(scheduler.alphas_cumprod.cpu().double().tolist())
        spacing, takes_one_more = spacing_of(config)
        timesteps = inference_timesteps(
            len(alpha_bar), num_inference_steps, spacing, config.get("steps_offset", 0),
            takes_one_more,
        )  # fmt: skip

        # Without signal eps is z_t itself, whatever the network has seen: x0 = (z_t - eps) / 0.
        kind, least = config.get("prediction_type", "epsilon"), alpha_bar[timesteps[0]]
        is_rescaled = config.get("rescale_betas_zero_snr", False)
        if kind == "epsilon" and (least < 1e-12 or is_rescaled and least < 1e-6):
            raise InputError(
                f"The scheduler's level at t={timesteps[0]} holds no signal "
                f"(rescale_betas_zero_snr={is_rescaled}), and a prediction of type 'epsilon' says "
                "nothing there: set rescale_betas_zero_snr to False, or prediction_type to what "
                "the network was trained for."
            )
        final = 1.0 if final_is_data(config) else alpha_bar[0]
        return cls(alpha_bar, final, kind, timesteps)

    def last_part(self, strength: float) -> "Schedule":
        """The last share of the steps, as `strength` of diffusers' image-to-image pipelines."""
        number_in("strength", strength, 0, 1)
        n_kept = int(len(self) * strength)
        if n_kept == 0:
            raise InputError(
                f"strength is {strength}: no one of {len(self)} steps is left, give at least "
                f"{1 / len(self):g}."
            )
        first = len(self) - n_kept
        return replace(self, timesteps=self.timesteps[first:], flow=self.flow[first:])

    @property
    def n_timesteps(self) -> int:
        """T: the timesteps of a diffusion model, or what a flow model calls its noisiest level."""
        return len(self.alpha_bar) or 1000

    def __len__(self) -> int:
        return len(self.timesteps)

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps in sampling order; `reversed(list(schedule))` is inversion's order."""
        if self.flow:
            levels = [Level.flow(s) for s in self.flow]
        else:
            visited = [self.alpha_bar[t] for t in self.timesteps]
            levels = [Level.preserving(x) for x in (*visited, self.final_alpha_bar)]
        ends = (*self.timesteps[1:], -1)
        for t, s, noisy, clean in zip(self.timesteps, ends, levels[:-1], levels[1:], strict=True):
            yield Step(t, s, noisy, clean)

    def split(
        self, z: Float[Tensor, "*shape"], prediction: Float[Tensor, "*shape"], level: Level
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """Split a prediction p x0 + q n at `z` = a x0 + b n into (x0, n)."""
        if self.prediction_type == "epsilon":
            return (z - level.b * prediction) / level.a, prediction
        if self.prediction_type == "sample":
            return prediction, (z - level.a * prediction) / level.b
        (a, b), (p, q) = (level.a, level.b), level.predicted(self.prediction_type)
        scale = 1 / (a * q - b * p)
        return scale * q * z - scale * b * prediction, scale * a * prediction - scale * p * z

    def denoise(
        self, z: Float[Tensor, "*shape"], prediction: Float[Tensor, "*shape"], step: Step
    ) -> Float[Tensor, "*shape"]:
        """Take one sampling step t -> s. A level without signal (zero SNR, flows) is allowed."""
        if self.prediction_type == "flow_prediction":
            a, b = carried(self.prediction_type, step)
            return a * z + b * prediction
        x0, noise = self.split(z, prediction, step.noisy)
        return step.clean.a * x0 + step.clean.b * noise

    def renoise(
        self,
        z_s: Float[Tensor, "*shape"],
        z_t: Float[Tensor, "*shape"],
        prediction: Float[Tensor, "*shape"],
        step: Step,
    ) -> Float[Tensor, "*shape"]:
        """Take one inversion step s -> t, with a prediction made at (z_t, t) for a guess z_t.

        The step z_s = A z_t + B prediction is solved for z_t. The network's own output is held, not
        its eps: where no signal is left (alpha_bar_t = 0), eps is z_t itself, and holding it would
        call every guess exact. A guess z_t that this map returns unchanged is the exact preimage of
        z_s under `denoise`.
        """
        if self.prediction_type == "epsilon":
            scale = step.noisy.a / step.clean.a
            return scale * z_s + (step.noisy.b - scale * step.clean.b) * prediction
        a, b = carried(self.prediction_type, step)

        # A step onto the data forgets z_t (A is small), and dividing by A would amplify errors of
        # the prediction. The guess is then moved by what its own step misses.
        is_near_data = self.prediction_type == "sample" and step.alpha_bar_t > 0.5
        if is_near_data or a < 0.5:
            return z_t + (z_s - self.denoise(z_t, prediction, step))
        return (z_s - b * prediction) / a


def carried(prediction_type: str, step: Step) -> tuple[float, float]:
    """A and B of the sampling step z_s = A z_t + B prediction.

    With z_t = a x0 + b n, z_s = a' x0 + b' n and the prediction p x0 + q n, Cramer's rule gives
    A = (a' q - b' p) / (a q - b p) and B = (a b' - b a') / (a q - b p). For a flow A = 1 and
    B = s' - s; for "v_prediction" A = cos(d), B = -sin(d), d the angle between the levels.
    """
    (a, b), (a_s, b_s) = (step.noisy.a, step.noisy.b), (step.clean.a, step.clean.b)
    p, q = step.noisy.predicted(prediction_type)
    determinant = a * q - b * p
    return (a_s * q - b_s * p) / determinant, (a * b_s - b * a_s) / determinant


def sample(
    predict: Predict,
    z: Float[Tensor, "*shape"],
    schedule: Schedule,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Float[Tensor, "*shape"]:
    """Denoise from the noisiest level to the final one: DDIM sampling with eta = 0.

    progress: wraps the loop over steps, for example in a progress bar.
    """
    for step in progress(list(schedule)):
        z = schedule.denoise(z, predict(z, step.t), step)
    return z
