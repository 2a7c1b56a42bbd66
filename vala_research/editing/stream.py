"""A stream is one denoiser at work on one clip: an edit runs one, a fusion several side by side."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research.diffusion.attending import Attending, get_policy, inverting, needs_source
from vala_research.diffusion.backbone import device_of
from vala_research.diffusion.bilateral_inversion import inversion_patches
from vala_research.diffusion.fixed_point import ExactSettings
from vala_research.diffusion.guidance import check_guidance, rescaled_guidance
from vala_research.diffusion.injection import Injection, check_transformer, n_source_steps
from vala_research.diffusion.inversion import Inversion, InversionSettings, invert
from vala_research.diffusion.motion import STILL
from vala_research.diffusion.null_text import NullTextSettings, frozen, optimise_null_text
from vala_research.diffusion.patching import Patch
from vala_research.diffusion.records import is_transformer
from vala_research.diffusion.schedule import Schedule, Step
from vala_research.diffusion.vae import group_of, per_group
from vala_research.diffusion.word_maps import SharedWords
from vala_research.editing import checks
from vala_research.editing.adapting import activation_of
from vala_research.editing.clip import KnownClip
from vala_research.editing.control import controls_of
from vala_research.editing.resolve import resolved
from vala_research.editing.source import (
    Source,
    SourceBackbone,
    confirm_finite,
    own_scales,
    own_schedule,
    windows_of,
)
from vala_research.editing.stretches import predicted
from vala_research.editing.words import edited_words, encoded_words, shared_words


@dataclass
class Stream:
    """A network with its prompts, guidance and attention, and the latent it has come to.

    schedule: the levels of the edit, with the prediction type of this network.
    text: embeddings of the negative prompt, the prompt and the source prompt.
    inverted: where sampling starts. z: the edit's latent. source: the clip's own latent, while its
    features are injected. guidance_rescale: see `rescaled_guidance`. words: those to inject.
    edited: places of the words in which source prompt and prompt differ, where they are asked for.
    """

    backbone: SourceBackbone
    schedule: Schedule
    text: Float[Tensor, "g n d"]
    guidance_scale: float
    attention: Attending
    injection: Injection = Injection(0, 0)
    guidance_rescale: float = 0.0
    inverted: Inversion | None = None
    words: SharedWords | None = None
    edited: tuple[list[int], list[int]] | None = None
    z: Tensor | None = None
    source: Tensor | None = None

    @property
    def n_injected(self) -> int:
        """Steps at which the edit sees the source: while it is injected, or at all steps."""
        return n_source_steps(self.attention, self.injection, len(self.schedule))

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
        """Branches g: negative (at guidance above 1) and prompt, then the source."""
        z, source, schedule = self.z, self.source, self.schedule
        layout, shape, words, values = (i < n for n in self.injection.n_steps(len(schedule)))
        sees_source = layout or shape or words or values or needs_source(self.attention)
        edits = [0, 1] if self.guidance_scale > 1 else [1]
        branches = [*edits, 2] if sees_source else edits
        x = torch.stack([source if g == 2 else z for g in branches])  # g f c h w
        prediction = predicted(
            self.backbone, self.attention, x, step.t, self.text[branches],
            shown=[int(g == 1) for g in branches],
            injects_attention=layout, injects_feature=shape, words=self.words if words else None,
            injects_values=values,
        )  # fmt: skip
        guided = prediction[0]
        if len(edits) == 2:
            guided = guided + self.guidance_scale * (prediction[1] - guided)
            guided = rescaled_guidance(guided, prediction[1], self.guidance_rescale)
        if sees_source:
            source = schedule.denoise(source, prediction[-1], step)
        return schedule.denoise(z, guided, step), source

    def predict(
        self, z: Float[Tensor, "f c h w"], t: float, text: Float[Tensor, "n d"],
        more: tuple[Patch, ...] = (),
    ) -> Float[Tensor, "f c h w"]:  # fmt: skip
        """The network's prediction of one branch."""
        return predicted(self.backbone, self.attention, z[None], t, text[None], more)[0]

    def invert(
        self,
        z_0: Float[Tensor, "f c h w"],
        inversion: InversionSettings,
        keep_trajectory: bool = True,
        progress: Callable[[Iterable], Iterable] = iter,
    ) -> Inversion:
        """The inversion of a clip's latents under the source prompt."""
        in_inversion = [c for c in self.backbone.controls if c.settings.in_inversion]
        alone = replace(
            self, backbone=replace(self.backbone, controls=in_inversion),
            attention=inverting(self.attention),
        )  # fmt: skip
        unet, schedule = self.backbone.unet, self.schedule
        if isinstance(inversion, ExactSettings):
            # A network in half precision cannot answer more precisely than its own rounding.
            floor = torch.finfo(unet.dtype).eps
            inversion = replace(inversion, tolerance=max(inversion.tolerance, floor))
        # Without guidance the unconditional branch is not asked: there is nothing to mend.
        mends_guidance = isinstance(inversion, NullTextSettings) and self.guidance_scale > 1

        def confirmed(steps: Iterable) -> Iterable:
            for step in progress(steps):
                yield step
                confirm_finite([self.backbone])

        # The exact solve runs on the CPU: then each prediction is fetched, and nothing else.
        start = z_0.cpu() if isinstance(inversion, ExactSettings) else z_0
        patches = partial(inversion_patches, unet, inversion, schedule, tuple(z_0.shape[-2:]))
        inverted = invert(
            lambda z, t: alone.predict(z, t, self.text[2], patches(t)), start, schedule,
            inversion, keep_trajectory or mends_guidance, confirmed,
        ).to(z_0.device)  # fmt: skip
        if mends_guidance:
            inverted = self._with_null_text(inverted, inversion, confirmed)
        return replace(
            inverted,
            attention=self.attention,
            anchors=getattr(self.attention, "anchors", None),
            activation=self.backbone.activation,
        )

    def _with_null_text(
        self, inverted: Inversion, settings: NullTextSettings, progress: Callable
    ) -> Inversion:
        """The inversion with the unconditional embeddings that undo what guidance breaks."""
        with frozen(self.backbone.unet):
            null_text = optimise_null_text(
                self.predict, inverted.trajectory, self.schedule, self.text[0], self.text[2],
                self.guidance_scale, settings, progress,
            )  # fmt: skip
        return replace(
            inverted,
            null_text=null_text,
            n_evaluations=inverted.n_evaluations + null_text.n_evaluations,
            n_backward=null_text.n_backward,
        )


def streams_of(
    sources: Sequence[Source],
    call: Source,
    pipe: Any,
    schedule: Schedule,
    clip: KnownClip,
    injection: Injection = Injection(0, 0),
    frames_per_chunk: int | None = None,
    finds_words: bool = False,
) -> list[Stream]:
    """One stream per source, each checked before any network runs.

    call: what the edit says for sources that leave it open. schedule: the levels of the edit.
    Source 0 continues the adapter of an inversion that the call is given. finds_words: look up the
    words in which the prompts differ.
    """
    streams = []
    for index, given in enumerate(sources):
        source = resolved(given, call, pipe)
        check_guidance(source.guidance_scale)
        editor = get_policy(source.attention)
        if is_transformer(source.unet):
            check_transformer(source.unet, injection.feature > 0, injection.words or None, editor)
        is_own = source.unet is pipe.unet
        name = "The pipeline's UNet" if is_own else f"Source {index} ({type(source.unet).__name__})"
        checks.check_source(source, name, pipe.vae, clip.shape)
        if source.latents is not None:
            checks.check_steps(source.latents, schedule)
        if pipe.adapter is not None and not is_own:
            checks.warn_without_adapter(source, name)

        # The source's own words and levels, on its own device.
        device = pipe._execution_device if is_own else device_of(source.unet)
        text = encoded_words(source, pipe).to(device)
        own = own_schedule(schedule, source.scheduler)
        inverted = source.latents or (clip.latents if index == 0 else None)
        backbone = SourceBackbone(
            source.unet,
            frames_per_chunk,
            timesteps=dict(zip(schedule.timesteps, own.timesteps, strict=True)),
            scales=own_scales(schedule, own),
            as_flow=own if schedule.flow and not own.flow else None,
            windows=windows_of(clip.shape[0], source.window, source.overlap),
            device=device,
            activation=activation_of(source, pipe, own, clip.frames, inverted),
            controls=controls_of(source, pipe, clip, device),
            n_timesteps=own.n_timesteps,
            vae_factor=pipe.vae_scale_factor,
            time_factor=group_of(pipe.vae) // per_group(pipe.vae),
            cross_attention_kwargs=source.cross_attention_kwargs,
            pictures=source.pictures,
            always=(STILL,) if is_own and is_too_short(pipe, clip) else (),
        )
        kind = schedule.prediction_type if backbone.as_flow else own.prediction_type
        levels = replace(schedule, prediction_type=kind)
        streams.append(
            Stream(
                backbone, levels, text, source.guidance_scale, source.attention, injection,
                source.guidance_rescale or 0.0, source.latents,
                shared_words(source, injection.weights)
                if injection.n_steps(len(schedule))[2] else None,
                edited_words(source) if finds_words else None,
            )
        )  # fmt: skip
    return streams


def is_too_short(pipe: Any, clip: KnownClip) -> bool:
    """Whether a clip has fewer frames than the pipeline's motion modules learnt from."""
    return pipe.image_unet is not None and clip.shape[0] < pipe.edit_defaults.motion_from
