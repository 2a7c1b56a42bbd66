"""The parts of an edit: invert, reconstruct, encode, decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research.diffusion import codec
from vala_research.diffusion.attending import Attending, inverting
from vala_research.diffusion.attention import Keyframes
from vala_research.diffusion.bilateral_inversion import BilateralInversion
from vala_research.diffusion.guidance import check_guidance
from vala_research.diffusion.inversion import Inversion, InversionSettings, get_inversion
from vala_research.diffusion.patching import one_call_at_a_time
from vala_research.diffusion.records import n_tokens_of
from vala_research.diffusion.schedule import Schedule, Step
from vala_research.diffusion.solvers import warn_of_solver
from vala_research.diffusion.vae import n_latent_frames
from vala_research.diffusion.video import as_frames
from vala_research.editing import checks
from vala_research.editing.clip import KnownClip, clip_attention
from vala_research.editing.defaults import inverting_by
from vala_research.editing.fusion import Fusion, mix
from vala_research.editing.ip_adapter import picture_embeds
from vala_research.editing.resolve import first_known
from vala_research.editing.source import Source, confirm_finite
from vala_research.editing.stream import Stream, streams_of
from vala_research.editing.words import encode_prompt
from vala_research.methods.anchors import AnchorSettings


class EditParts:
    """What a pipeline with vae, text_encoder, tokenizer, unet and scheduler can do to a clip."""

    @torch.no_grad()
    @one_call_at_a_time
    def invert(
        self,
        video: Any,
        source_prompt: str = "",
        num_inference_steps: int | None = None,
        inversion: str | InversionSettings | None = None,
        attention: Attending = "extended",
        frames_per_chunk: int | None = None,
        return_inversion: bool = False,
        negative_prompt: str | None = None,
        guidance_scale: float | None = None,
        adapter_interval: Sequence[float] | None = None,
        adapter_scale: float | None = None,
        generator: torch.Generator | None = None,
        strength: float | None = None,
    ) -> Float[Tensor, "f c h w"] | Inversion:
        """Invert a clip, without editing it. The arguments are those of an edit.

        attention: the default depends on nothing but the latents, unlike an edit's, so they alone
            are enough to reconstruct the clip.
        negative_prompt, guidance_scale: those of the edit to come; only "null_text" reads them.
        strength: of the edit to come.
        Returns the latents at the noisiest level, from which `reconstruct` returns to the clip at
        guidance 1; or with return_inversion the whole `Inversion`: trajectory, residuals,
        evaluations, attention, anchors, null text. Bare latents of "null_text" are those of "ddim".
        """
        usual = inverting_by(self.edit_defaults)
        num_inference_steps, guidance_scale, inversion, strength = usual.filled(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            inversion=inversion, strength=strength,
        )  # fmt: skip
        check_guidance(guidance_scale)
        clip = self._known_clip(video, None)
        schedule = self._schedule(num_inference_steps, Source(), inversion, strength, clip.shape)
        call = Source(
            prompt=source_prompt, source_prompt=source_prompt, negative_prompt=negative_prompt,
            guidance_scale=guidance_scale, attention=attention, adapter_interval=adapter_interval,
            adapter_scale=adapter_scale, controls=self.controls,
            pictures=picture_embeds(self, None, None, clip.shape[0], guidance_scale),
        )  # fmt: skip
        (stream,) = streams = streams_of(
            [Source()], call, self, schedule, clip, frames_per_chunk=frames_per_chunk
        )
        z_0 = self._clean_latents(clip, streams, frames_per_chunk)
        stream.attention = clip_attention(stream.attention, clip, z_0, generator)
        clip = replace(clip, frames=None)  # nothing below needs the pictures
        inverted = stream.invert(
            z_0, get_inversion(inversion), return_inversion, self.progress_bar
        )
        inverted = replace(inverted, n_pixel_frames=clip.n_pixel_frames)
        self.maybe_free_model_hooks()
        return inverted if return_inversion else inverted.latents

    @torch.no_grad()
    @one_call_at_a_time
    def reconstruct(
        self,
        latents: Tensor | Inversion,
        source_prompt: str = "",
        num_inference_steps: int | None = None,
        attention: Attending | None = None,
        frames_per_chunk: int | None = None,
        adapter_interval: Sequence[float] | None = None,
        adapter_scale: float | None = None,
        strength: float | None = None,
    ) -> Float[Tensor, "f c h w"]:
        """Sample and decode: the way back of `invert`. Returns frames in [0, 1].

        It samples at guidance 1, or with the null text of the `Inversion` at the scale that it was
        made for.
        attention, adapter_interval, adapter_scale: None is that of the `Inversion`. For bare
            latents it is the default of `invert`.
        """
        num_inference_steps, strength = self.edit_defaults.filled(
            num_inference_steps=num_inference_steps, strength=strength
        )
        clip = self._known_clip(None, latents)
        inverted = clip.latents
        schedule = self._schedule(num_inference_steps, Source(), "ddim", strength, clip.shape)
        checks.check_steps(inverted, schedule)
        scale = 1.0 if inverted.null_text is None else inverted.null_text.guidance_scale
        call = Source(
            prompt=source_prompt, source_prompt=source_prompt, negative_prompt=source_prompt,
            guidance_scale=scale, attention=inverting(first_known(attention, inverted.attention)),
            adapter_interval=adapter_interval, adapter_scale=adapter_scale,
            controls=[c for c in self.controls if c.settings.in_inversion],
            pictures=picture_embeds(self, None, None, clip.shape[0], scale),
        )  # fmt: skip
        (stream,) = streams = streams_of(
            [Source()], call, self, schedule, clip, frames_per_chunk=frames_per_chunk
        )
        stream.attention = clip_attention(stream.attention, clip, None)
        stream.start(inverted)
        self._sample(streams, schedule, [None] * len(schedule), scale)
        frames = self.decode(stream.z, frames_per_chunk, clip.n_pixel_frames)
        self.maybe_free_model_hooks()
        return frames

    # Parts of an edit, for notebooks and measurements.

    @torch.no_grad()
    def encode(
        self, video: Any, frames_per_chunk: int | None = None, complete: bool = True
    ) -> Float[Tensor, "g c h w"]:
        """Scaled latents of a clip: the mode of the VAE's posterior, float32 or more.

        complete: as in `vae.completed`.
        """
        frames = as_frames(video)
        codec.check_size(frames, self.vae)
        return self._encode(frames, frames_per_chunk, complete)

    def _encode(
        self, frames: Float[Tensor, "f 3 y x"], frames_per_chunk: int | None, complete: bool = True
    ) -> Float[Tensor, "g c h w"]:
        where = self._execution_device, self._solver_dtype
        return codec.encode_frames(self.vae, frames, frames_per_chunk, *where, complete)

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "g c h w"], frames_per_chunk: int | None = None,
        n_pixel_frames: int | None = None,
    ) -> Float[Tensor, "f 3 y x"]:  # fmt: skip
        """Frames in [0, 1] of scaled latents; n_pixel_frames: the first so many, None is all."""
        latents = self._check_latents(latents)
        return codec.decode_latents(self.vae, latents, frames_per_chunk)[:n_pixel_frames]

    encode_prompt = encode_prompt

    def _sample(
        self,
        streams: Sequence[Stream],
        schedule: Schedule,
        weights: Sequence[Sequence[float] | None],
        guidance_scale: float,
        fusion: Fusion | None = None,
        on_step_end: Callable[[Stream, int, Step], None] | None = None,
    ) -> None:
        """Walk all streams from the noisiest level to the final one, mixing them where weights say.

        guidance_scale: of the call, which on_step_end may change in the pipeline.
        on_step_end: called with stream 0, which it may change.
        """
        self._interrupt, lead, self._num_timesteps = False, streams[0], len(schedule)
        self._guidance_scale = guidance_scale
        guided_by_call = [s for s in streams if s.guidance_scale == guidance_scale]
        with self.progress_bar(total=len(schedule)) as bar:
            for i, step in enumerate(schedule):
                if self._interrupt:
                    break
                for stream in streams:
                    stream.step(i, step)
                mix(streams, weights[i], fusion)
                confirm_finite([stream.backbone for stream in streams])
                if on_step_end is not None:
                    on_step_end(lead, i, step)
                    for stream in guided_by_call:
                        stream.guidance_scale = self._guidance_scale
                    for stream in streams if weights[i] is not None else ():
                        stream.z = lead.z
                bar.update()

    # Checks and conversions.

    @property
    def _solver_dtype(self) -> torch.dtype:
        """The solver works in float32, or in float64 when the network does."""
        return torch.promote_types(torch.float32, self.unet.dtype)

    def _known_clip(self, video: Any, latents: Tensor | Inversion | None) -> KnownClip:
        """The clip of a call, converted and checked; bare latents are an `Inversion` of nothing."""
        frames = as_frames(video) if video is not None or latents is None else None
        if latents is not None:
            known = latents if isinstance(latents, Inversion) else Inversion(latents)
            known = replace(known, latents=self._check_latents(known.latents))
            return KnownClip(frames, known, tuple(known.latents.shape), known.n_pixel_frames)
        codec.check_size(frames, self.vae)
        n_frames, height, width = len(frames), *frames.shape[-2:]
        k, n_channels = self.vae_scale_factor, self.unet.config.in_channels
        shape = n_latent_frames(self.vae, n_frames), n_channels, height // k, width // k
        return KnownClip(frames, None, shape, n_frames)

    def _clean_latents(
        self, clip: KnownClip, streams: Sequence[Stream], frames_per_chunk: int | None
    ) -> Float[Tensor, "f c h w"] | None:
        """The clip's clean latents, where it is to be inverted or searched for an attention."""
        seeks = any(isinstance(s.attention, AnchorSettings | Keyframes) for s in streams)
        if clip.latents is None or (seeks and clip.frames is not None):
            return self._encode(clip.frames, frames_per_chunk)
        return None

    def _schedule(
        self, num_inference_steps: int, source: Source, inversion: str | InversionSettings,
        strength: float, shape: Sequence[int],
    ) -> Schedule:  # fmt: skip
        """The levels of an edit of latents f c h w: those of source 0, fit for the inversion."""
        scheduler = first_known(source.scheduler, self.scheduler)
        tokens = n_tokens_of(first_known(source.unet, self.unet), shape)
        levels = Schedule.from_scheduler(scheduler, num_inference_steps, tokens)
        schedule = levels.last_part(strength)
        warn_of_solver(scheduler, self._first_scheduler)
        if isinstance(settings := get_inversion(inversion), BilateralInversion):
            settings.check(schedule)
        return schedule

    def _check_latents(self, latents: Tensor) -> Float[Tensor, "f c h w"]:
        """Latents of one clip, on the device and in the precision of the solver."""
        z = checks.check_latents(latents, self.unet.config.in_channels)
        return z.to(self._execution_device, self._solver_dtype)
