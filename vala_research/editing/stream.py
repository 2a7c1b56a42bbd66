"""A stream is one denoiser at work on one clip: an edit runs one, a fusion several side by side."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research.diffusion.attention import Policy
from vala_research.diffusion.bilateral_inversion import BilateralInversion, inversion_patches
from vala_research.diffusion.fixed_point import ExactSettings
from vala_research.diffusion.injection import Injection, attention_patches
from vala_research.diffusion.inversion import Inversion, invert
from vala_research.diffusion.null_text import NullTextSettings, frozen, optimise_null_text
from vala_research.diffusion.patching import Patch
from vala_research.diffusion.schedule import Schedule, Step
from vala_research.editing.source import AdaptedBackbone


@dataclass(frozen=True)
class InversionSettings:
    """A method and what each method reads."""

    method: str = "ddim"
    exact: ExactSettings = ExactSettings()
    null_text: NullTextSettings = NullTextSettings()
    bilateral: BilateralInversion = BilateralInversion()


@dataclass
class Stream:
    """A network with its prompts, guidance and attention, and the latent it has come to.

    text: of the negative prompt, the prompt and the source prompt. schedule: the levels of the
    edit, with the prediction type of this network. z: the edit's latent; source: the clip's own,
    while its features are injected.
    """

    backbone: AdaptedBackbone
    schedule: Schedule
    text: Float[Tensor, "g n d"]
    guidance_scale: float
    attention: str | Policy
    injection: Injection = field(default_factory=lambda: Injection(0, 0))
    inverted: Inversion | None = None
    z: Tensor | None = None
    source: Tensor | None = None

    def start(self, inverted: Inversion) -> None:
        """Begin sampling from the noisiest latent of an inversion."""
        self.inverted = inverted
        self.z = self.source = inverted.latents

    def step(self, i: int, step: Step) -> None:
        """One sampling step of the edit, and of the source while its features are injected."""
        known = self.inverted
        if known.null_text is not None:
            null = known.null_text.embeddings[i : i + 1].to(self.text)
            self.text = torch.cat([null, self.text[1:]])
        if known.trajectory:
            self.source = known.trajectory[i].to(self.z)
        self.z, self.source = self._steps(i, step)

    def _steps(self, i: int, step: Step) -> tuple[Tensor, Tensor]:
        """Branches g: negative and prompt (one of them at guidance 0 or 1), then the source."""
        z, source, schedule, backbone = self.z, self.source, self.schedule, self.backbone
        n_attention, n_feature = self.injection.n_steps(len(schedule))
        is_injecting = i < max(n_attention, n_feature)
        edits = {0: [0], 1: [1]}.get(self.guidance_scale, [0, 1])
        branches = [*edits, 2] if is_injecting else edits
        x = torch.stack([source if g == 2 else z for g in branches])  # g f c h w
        patches = attention_patches(
            backbone.unet, self.attention, len(x), backbone.frames_seen(x),
            injects_attention=i < n_attention, injects_feature=i < n_feature,
        )  # fmt: skip
        prediction = backbone(x, step.t, self.text[branches], patches)
        guided = prediction[0]
        if len(edits) == 2:
            guided = guided + self.guidance_scale * (prediction[1] - guided)
        if is_injecting:
            source = schedule.denoise(source, prediction[-1], step)
        return schedule.denoise(z, guided, step), source

    def predict(
        self, z: Float[Tensor, "f c h w"], t: int, text: Float[Tensor, "n d"],
        more: tuple[Patch, ...] = (),
    ) -> Float[Tensor, "f c h w"]:  # fmt: skip
        """The network's prediction of one branch."""
        unet, x = self.backbone.unet, z[None]
        patches = attention_patches(unet, self.attention, 1, self.backbone.frames_seen(x))
        return self.backbone(x, t, text[None], [*patches, *more])[0]

    def invert(
        self, z_0: Float[Tensor, "f c h w"], settings: InversionSettings,
        keep_trajectory: bool = True, progress: Callable[[Iterable], Iterable] = iter,
    ) -> Inversion:  # fmt: skip
        """The inversion of a clip's latents under the source prompt."""
        unet, schedule, method = self.backbone.unet, self.schedule, settings.method
        # A network in half precision cannot answer more precisely than its own rounding.
        floor = torch.finfo(unet.dtype).eps
        exact = replace(settings.exact, tolerance=max(settings.exact.tolerance, floor))
        patches = partial(inversion_patches, unet, method, settings.bilateral, schedule)
        # At guidance 1 the unconditional branch is not asked: there is nothing to mend.
        is_null_text = method == "null_text" and self.guidance_scale != 1
        found = invert(
            lambda z, t: self.predict(z, t, self.text[2], patches(t)), z_0, schedule, method, exact,
            keep_trajectory or is_null_text, progress, settings.bilateral,
        )  # fmt: skip
        if is_null_text:
            with frozen(unet):
                null_text = optimise_null_text(
                    self.predict, found.trajectory, schedule, self.text[0], self.text[2],
                    self.guidance_scale, settings.null_text, progress,
                )  # fmt: skip
            n = found.n_evaluations + null_text.n_evaluations
            found = replace(
                found, null_text=null_text, n_evaluations=n, n_backward=null_text.n_backward
            )
        anchors: Any = getattr(self.attention, "anchors", None)
        activation = self.backbone.activation
        return replace(found, attention=self.attention, anchors=anchors, activation=activation)
