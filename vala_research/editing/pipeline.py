"""An edit inverts under one prompt and samples under another, all frames in lock-step.

The composition of the parts: schedule x inversion x attention policy x injection x guidance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from vala_research.adapter.activation import AdapterMixin
from vala_research.diffusion.attending import Attending, get_policy
from vala_research.diffusion.difference import DifferenceEdit
from vala_research.diffusion.injection import Injection
from vala_research.diffusion.inversion import Inversion, InversionSettings, get_inversion
from vala_research.diffusion.patching import one_call_at_a_time
from vala_research.diffusion.vae import latent_mask
from vala_research.diffusion.variants import half_first
from vala_research.diffusion.video import once
from vala_research.editing import checks
from vala_research.editing.call import CallState, as_batch, call_back, check_guiding, restarted
from vala_research.editing.clip import clip_attention
from vala_research.editing.construction import StableDiffusionParts
from vala_research.editing.control import ControlMixin
from vala_research.editing.difference import differences
from vala_research.editing.estimate import estimate_edit
from vala_research.editing.extras import BARE
from vala_research.editing.fusion import Fusion, begin
from vala_research.editing.hosts import defaults_of, warn_without_control
from vala_research.editing.ip_adapter import PictureMixin, picture_embeds
from vala_research.editing.loaders import LoraMixin, TextualInversionMixin
from vala_research.editing.memory_plan import fit_memory
from vala_research.editing.motion import MotionMixin
from vala_research.editing.parts import EditParts
from vala_research.editing.single_file import SingleFileMixin
from vala_research.editing.source import Source
from vala_research.editing.stream import streams_of
from vala_research.editing.words import words_of


@dataclass
class VideoEditOutput(BaseOutput):
    """frames: a batch of clips: PIL lists, or an array in [0, 1], or latents b f c h w."""

    frames: Any


class VideoEditPipeline(
    EditParts, CallState, AdapterMixin, LoraMixin, TextualInversionMixin, PictureMixin,
    ControlMixin, MotionMixin, SingleFileMixin, StableDiffusionMixin, StableDiffusionParts,
):  # fmt: skip
    """Edits a clip with a model of Stable Diffusion 1.x, 2.x or XL, or a video transformer.

    The scheduler gives its noise levels and timesteps; the steps are deterministic: DDIM, or
    Euler's method for a rectified flow.
    """

    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    @torch.no_grad()
    @one_call_at_a_time
    def __call__(
        self,
        video: Any = None,
        prompt: str | list[str] | None = None,
        source_prompt: str | list[str] = "",
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        inversion: str | InversionSettings | None = None,
        attention: Attending | None = None,
        injection: float | Injection | None = None,
        fusion: Fusion | None = None,
        host: str | None = None,
        frames_per_chunk: int | None = None,
        adapter_interval: Sequence[float] | None = None,
        adapter_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | Inversion | None = None,
        strength: float | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        source_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guidance_rescale: float = 0.0,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> VideoEditOutput | tuple:
        """Edit a clip: invert it under one prompt, sample it under another.

        Where None is given for num_inference_steps, guidance_scale, inversion, attention, injection
        or strength, the checkpoint's own value is used, `pipe.edit_defaults`. For Stable Diffusion
        these are 50, 7.5, "ddim", "anchors", 0 and 1. A host has values of its own.

        video: f c h w tensor or f h w c array, in [0, 1] or uint8; a list of PIL images; or a Clip.
            Or a batch of one, such as the `.frames` of an edit, or a list that repeats the clip
            once per prompt. None when `latents` are given.
        prompt: describes the edited clip. A list asks for one edit per prompt, of a clip that is
            inverted once. source_prompt: describes the clip as it is.
        negative_prompt: the branch that guidance moves away from. None is the empty prompt, classic
            classifier-free guidance. The source prompt here is negative-prompt inversion (Miyake et
            al. 2023, arXiv 2305.16807): guidance then holds only the difference of the prompts, and
            prompt == source_prompt reconstructs at any scale.
        guidance_scale: eps = eps_neg + guidance_scale (eps_prompt - eps_neg); 1 or less turns it
            off.
        inversion: "ddim"; "exact" (slower, reconstructs to rounding error); "null_text" (slowest,
            mends what guidance breaks of "ddim"); "bilateral" (smooths the latents at every step,
            so it reconstructs less); none: "noise", "flow_edit", "flow_align"; or settings.
        attention: "own", "first", "sparse_causal", "extended", "anchors", or an editor's, such as
            "token_flow"; a policy; `Anchors`; or how to find them on this clip: `AnchorSettings`,
            `Keyframes`. The inversion uses the
            same one, since sampling undoes only the process that was inverted. With `latents`,
            "anchors" is the attention of their inversion ("extended" if it is unknown).
        injection: first fraction of the steps in which the source's attention maps and features
            replace the edit's (0 none, 1 always). An `Injection` sets the two apart, and adds
            prompt-to-prompt, as in `Injection(attention=0, feature=0, words=0.4)`.
        fusion: several models that denoise together instead of this one. The arguments here are
            for what its sources leave open.
        host: an editor of another paper, by its name in `HOSTS`, such as "token_flow".
        frames_per_chunk: bounds the memory, not the result. None chooses from the resolution.
        adapter_interval, adapter_scale: where the adapter of `load_adapter` acts, as fractions of
            the T diffusion steps, and how strongly. None is its own; scale 0 turns it off. The
            inversion uses the same values.
        generator: of what is drawn: sources that start from noise, random key frames. Deterministic
            DDIM from the mode of the VAE draws nothing. A list holds one per prompt; what is drawn
            serves all edits, and comes from the first.
        latents: f c h w at the noisiest level, or an `Inversion`, to skip inverting.
        strength: last share of the steps that inversion and edit walk: less changes less.
        prompt_embeds, negative_prompt_embeds, source_prompt_embeds: prompts x tokens x width, in
            place of the prompts.
        clip_skip: leaves so many last layers of the text encoder out, in all prompts.
        cross_attention_kwargs: `{"scale": 0.5}` scales a LoRA, its part in the text encoder too, in
            inversion and edit.
        guidance_rescale: share of Lin et al. 2024 (arXiv 2305.08891, 3.4), see `rescaled_guidance`.
        ip_adapter_image, ip_adapter_image_embeds: what the edit, and not the inversion, sees by
            IP-Adapters, see `picture_embeds`.
        output_type: "pil", "np", "pt" or "latent".
        callback_on_step_end: `(pipe, i, t, tensors) -> dict`, whose tensors replace the given ones.
            It may set `pipe._interrupt = True` to stop, and `pipe._guidance_scale`.
        Returns `.frames`, a batch of one clip per prompt. Raises InputError, and
            FloatingPointError for NaN.
        """
        # Refuse bad arguments before any network runs. Latents were inverted already.
        if latents is not None and inversion is None:
            inversion = "ddim"
        num_inference_steps, guidance_scale, inversion, attention, injection, strength = (
            defaults_of(self.edit_defaults, host).filled(
                num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
                inversion=inversion, attention=attention, injection=injection, strength=strength,
            )
        )  # fmt: skip
        tensor_inputs = getattr(
            callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs
        )
        words = words_of(
            prompt, source_prompt, negative_prompt, prompt_embeds, negative_prompt_embeds,
            source_prompt_embeds,
        )  # fmt: skip
        checks.check_call(
            guidance_scale, output_type, generator, tensor_inputs, self._callback_tensor_inputs,
            len(words),
        )  # fmt: skip
        check_guiding(guidance_rescale, cross_attention_kwargs)
        sources = [Source()] if fusion is None else fusion.sources
        clip = self._known_clip(once(video, len(words)), latents)
        schedule = self._schedule(
            num_inference_steps, sources[0], inversion, strength, clip.shape
        )
        weights = [None] * len(schedule) if fusion is None else fusion.weights(len(schedule))
        if all(w is None for w in weights):
            sources = sources[:1]  # nothing is ever fused
        get_policy(attention)
        warn_without_control(host, self.controls)
        if clip.latents is not None:
            checks.check_steps(clip.latents, schedule)

        # One stream per source; the streams of one clip share its anchors and key frames.
        call = Source(
            guidance_scale=guidance_scale, guidance_rescale=guidance_rescale, attention=attention,
            adapter_interval=adapter_interval, adapter_scale=adapter_scale, clip_skip=clip_skip,
            controls=self.controls,
            cross_attention_kwargs=cross_attention_kwargs,
            pictures=picture_embeds(
                self, ip_adapter_image, ip_adapter_image_embeds, clip.shape[0], guidance_scale
            ),
        )  # fmt: skip
        calls = [replace(call, **edit) for edit in words]
        injection = Injection.of(injection)
        settings = get_inversion(inversion)
        finds_words = isinstance(settings, DifferenceEdit) and settings.finds_words
        if isinstance(settings, DifferenceEdit):
            mask = latent_mask(self.vae, settings.mask, clip.n_pixel_frames)
            settings = replace(settings, mask=mask)
        streams = streams_of(
            sources, calls[0], self, schedule, clip, injection, frames_per_chunk, finds_words
        )
        z_0 = self._clean_latents(clip, streams, frames_per_chunk)
        for stream in streams:
            stream.attention = clip_attention(stream.attention, clip, z_0, generator)
        clip = replace(clip, frames=None)  # nothing below needs the pictures

        # Invert once, sample per prompt, decode.
        if isinstance(settings, DifferenceEdit):
            streams = differences(streams, settings, z_0, clip.latents, generator)
        else:
            begin(streams, fusion, z_0, clip.latents, settings, generator, self.progress_bar)
        on_step_end = None
        if callback_on_step_end is not None:
            on_step_end = partial(call_back, self, callback_on_step_end, tensor_inputs)
        edited = []
        for i, call in enumerate(calls):
            running = restarted(streams, sources, call if i else None, self)
            self._sample(running, schedule, weights, guidance_scale, fusion, on_step_end)
            edited.append(running[0].z)
        frames = as_batch(self, edited, output_type, frames_per_chunk, clip.n_pixel_frames)
        self.maybe_free_model_hooks()
        return VideoEditOutput(frames=frames) if return_dict else (frames,)

    estimate = estimate_edit
    fit_memory = fit_memory


def quiet_pipeline(
    model: str | PathLike, dtype: torch.dtype | None = None, is_bare: bool = True
) -> VideoEditPipeline:
    """The pipeline of a model on the GPU, where there is one, without progress bars.

    In half precision the weights of the variant "fp16" are read, where the model has them.
    is_bare: leave out what the checkpoint may bring beside Stable Diffusion's parts.
    """
    extras = BARE if is_bare else {}
    load = partial(VideoEditPipeline.from_pretrained, str(model), dtype, **extras)
    pipe = half_first(dtype, load)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")
