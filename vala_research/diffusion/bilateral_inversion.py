"""Bilateral inversion: DDIM inversion from a latent that is smoothed before every step.

GE-Adapter (arXiv 2501.04606) 3.2. Sampling does not restore what a step smooths away. The filter
moves a latent by up to `bias_bound(neighbour_mass(...), sigma)` per step, and the reconstruction
gets worse by it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError, chosen_from
from vala_research.diffusion.backbone import UNet
from vala_research.diffusion.ddpm_update import ddpm_update, update_levels
from vala_research.diffusion.patching import Patch
from vala_research.diffusion.records import decoder_self_attentions, n_tokens, record_of
from vala_research.diffusion.schedule import Predict, Schedule
from vala_research.methods.bilateral import BilateralSettings, check_reflection

PLACES = ("latent", "frames")
STEP_RULES = ("ddim", "paper_eq12")


@dataclass(frozen=True)
class BilateralInversion(BilateralSettings):
    """Settings of bilateral inversion: those of the filter, and the two below.

    place: "latent" filters spatially, in the latents that each step starts from. (The first step
        starts from the clean latents; a schedule of 0 there leaves them.) "frames" filters along
        frames, in the outputs of the first two self-attentions of the last decoder block.
    step_rule: "ddim", or "paper_eq12", which only denoises: see `bilateral_sample`.
    Differs from paper: Eq. (12) inverts by a denoising step with noise, which leads away from the
    noise that is sought. Here the filter is the paper's, and the step is that of DDIM inversion.
    """

    place: str = "latent"
    step_rule: str = "ddim"

    def __post_init__(self):
        super().__post_init__()
        chosen_from("place of the filter", self.place, PLACES)
        chosen_from("step rule", self.step_rule, STEP_RULES)

    def filtered(
        self, z: Float[Tensor, "f c h w"], fraction: float = 0.0
    ) -> Float[Tensor, "f c h w"]:
        """The latents from which a step starts; fraction: of the steps, 0 the first one."""
        return self(z, fraction) if self.place == "latent" else z

    def check(self, schedule: Schedule, shape: tuple[int, ...] | None = None) -> None:
        """Check all steps before the work: their sigmas, and that the window fits latents f c h w.

        Raises InputError, also for the step rule that cannot invert.
        """
        if self.step_rule != "ddim":
            raise InputError(
                f"The step rule {self.step_rule!r} denoises and inverts nothing: use 'ddim', or "
                "`bilateral_sample` for the denoising direction."
            )
        for fraction in fractions(schedule).values():
            self.factor(fraction)
        if shape is not None:
            n, what = (min(shape[2:]), "sites") if self.place == "latent" else (shape[0], "frames")
            check_reflection("the clip's latents", what, n, self.kernel_size, self.border)


# The variant of the released code: window 5, both sigmas 1, in the units of the features.
RELEASED = BilateralInversion(unit="absolute", place="frames")


def fractions(schedule: Schedule) -> dict[float, float]:
    """Timestep -> fraction of the steps of an inversion, 0 at its first and 1 at its last one."""
    last = max(1, len(schedule) - 1)
    return {t: i / last for i, t in enumerate(reversed(schedule.timesteps))}


def frame_filter(
    unet: UNet, settings: BilateralInversion, fraction: float = 0.0,
    size: tuple[int, int] | None = None,
) -> Patch:  # fmt: skip
    """The patch that filters along frames: outputs f n c of self-attention, in one branch.

    It changes the first two transformers of the last decoder block with attention: in Stable
    Diffusion 1.5 up_blocks[3].attentions {0, 1}. Raises InputError where a UNet has none.
    In a transformer of videos it changes the first two of the second half of the blocks, along the
    latent frames. size: height and width of the latents, which such a transformer needs.
    """
    decoder = decoder_self_attentions(unet)
    if record_of(unet).joins_frames:
        tokens = n_tokens(unet, *size)

        def in_rows(_name: str, _module: nn.Module, forward: Callable) -> Callable:
            def filtered(*args: Any, **kwargs: Any) -> Tensor:
                out = forward(*args, **kwargs)[0].unflatten(0, (-1, tokens))
                return settings.along_frames(out, fraction).flatten(0, 1)[None]

            return filtered

        return Patch(lambda name, _: name in decoder[:2], forward=in_rows)
    if not decoder:
        raise InputError(
            f"{type(unet).__name__} has no self-attention in its decoder: filter the 'latent'."
        )
    places = [n.split(".")[1:4] for n in decoder]  # block, "attentions", transformer
    last = max(int(block) for block, *_ in places)
    sites = {
        n for n, (b, _, i) in zip(decoder, places, strict=True) if int(b) == last and int(i) < 2
    }

    def wrap(_name: str, _module: nn.Module, forward: Callable) -> Callable:
        def filtered(*args: Any, **kwargs: Any) -> Tensor:
            return settings.along_frames(forward(*args, **kwargs), fraction)

        return filtered

    return Patch(lambda name, _: name in sites, forward=wrap)


def inversion_patches(
    unet: UNet, settings: object, schedule: Schedule, size: tuple[int, int], t: float
) -> tuple[Patch, ...]:
    """The patches by which an inversion with these settings changes its step at t.

    size: height and width of the latents.
    """
    if not isinstance(settings, BilateralInversion) or settings.place != "frames":
        return ()
    return (frame_filter(unet, settings, fractions(schedule)[t], size),)


def bilateral_path(
    predict: Predict,
    z: Float[Tensor, "f c h w"],
    schedule: Schedule,
    settings: BilateralInversion | None,
    step_rule: str = "ddim",
    has_noise: bool = True,
    generator: torch.Generator | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Iterator[Float[Tensor, "f c h w"]]:
    """Denoise from filtered latents; yield the latents after every step. Eq. (12), GE-Adapter 3.2.

    settings: of the filter before every step, None for none. Its schedule runs along sampling here:
        0 is the first step. With the place "frames" filtering is left to `predict`.
    step_rule: "ddim", or "paper_eq12", the mean of DDPM; has_noise: with noise from the generator.
    """
    levels = update_levels(schedule) if step_rule == "paper_eq12" else [None] * len(schedule)
    last = max(1, len(schedule) - 1)
    for i, (step, level) in enumerate(progress(list(zip(schedule, levels, strict=True)))):
        z = z if settings is None else settings.filtered(z, i / last)
        prediction = predict(z, step.t)
        if level is None:
            z = schedule.denoise(z, prediction, step)
        else:
            _, eps = schedule.split(z, prediction, step.noisy)
            alpha, alpha_bar, noise_level = level
            z = ddpm_update(z, eps, alpha, alpha_bar, noise_level * has_noise, generator)
        yield z


def bilateral_sample(
    predict: Predict,
    z: Float[Tensor, "f c h w"],
    schedule: Schedule,
    settings: BilateralInversion,
    generator: torch.Generator | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Float[Tensor, "f c h w"]:
    """Return the final latents of `bilateral_path` by the settings' step rule.

    With noise in every step the path strays: theory/README.md, B4, bounds how far.
    """
    rule = settings.step_rule
    for latents in bilateral_path(
        predict, z, schedule, settings, rule, generator=generator, progress=progress
    ):
        z = latents
    return z
