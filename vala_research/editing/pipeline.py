"""An edit inverts under one prompt and samples under another, all frames in lock-step.

The composition of the parts: schedule x inversion x attention policy x injection x guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.adapter.activation import Activation, AdapterMixin, Interval, activate
from vala_research.diffusion import codec
from vala_research.diffusion.attention import AnchorAttention, Policy, get_policy
from vala_research.diffusion.backbone import Backbone, vae_factor
from vala_research.diffusion.bilateral_inversion import BilateralInversion, check_bilateral
from vala_research.diffusion.checkpoint import resolve_checkpoint
from vala_research.diffusion.fixed_point import ExactSettings
from vala_research.diffusion.injection import Injection
from vala_research.diffusion.inversion import Inversion, get_method
from vala_research.diffusion.null_text import NullTextSettings
from vala_research.diffusion.schedule import Schedule
from vala_research.editing import checks
from vala_research.editing.estimate import Estimate, peak_bytes
from vala_research.editing.fusion import Fusion, begin, mix, streams_of
from vala_research.editing.source import AdaptedBackbone, Source
from vala_research.editing.stream import InversionSettings, Stream
from vala_research.methods.anchors import Anchors, AnchorSettings, assign_anchors

GUIDANCE_SCALE = 2.0  # best on validation clips of the miniature; Stable Diffusion: about 7.5
ANCHORS = AnchorSettings(n_anchors=2)  # 1.3 times the cost of editing frame by frame


@dataclass
class VideoEditOutput(BaseOutput):
    """frames: a batch of one clip: PIL lists, or an array in [0, 1], or latents 1 f c h w."""

    frames: Any


class VideoEditPipeline(AdapterMixin, DiffusionPipeline):
    """Edits a clip with an image diffusion model of the Stable Diffusion 1.x/2.x class.

    vae, text_encoder, tokenizer, unet, scheduler: as in StableDiffusionPipeline. The scheduler
    gives its noise schedule and timesteps; the steps themselves are deterministic DDIM.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(self, vae, text_encoder, tokenizer, unet, scheduler):
        super().__init__()
        if unet.config.in_channels != vae.config.latent_channels:
            raise InputError(
                f"The UNet reads {unet.config.in_channels} channels and the VAE makes "
                f"{vae.config.latent_channels}: inpainting and depth checkpoints are not "
                "supported, give a text-to-image one."
            )
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        )
        self.vae_scale_factor = vae_factor(vae)

    @classmethod
    def from_pretrained(cls, name_or_path, dtype: torch.dtype | None = None, **hub):
        """Load "miniature", a local folder, or a hub id of Stable Diffusion 1.x/2.x.

        dtype: of the networks (default float32); the solver works in float32 whatever it is. Only
        safetensors are read.
        hub: `revision`, `variant`, `cache_dir`, `token`, `local_files_only`. Raises InputError.
        """
        folder = resolve_checkpoint(name_or_path, **hub)
        variant = {"variant": hub["variant"]} if hub.get("variant") else {}
        try:
            return super().from_pretrained(
                folder, dtype=dtype or torch.float32, use_safetensors=True, **variant
            )
        except InputError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"The checkpoint {str(name_or_path)!r} cannot be loaded ({reason}): fetch it again."
            ) from error

    @torch.no_grad()
    def __call__(
        self,
        video: Any,
        prompt: str,
        source_prompt: str = "",
        negative_prompt: str | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = GUIDANCE_SCALE,
        inversion: str = "ddim",
        attention: str | Policy = "anchors",
        injection: float | Injection = 0.0,
        anchors: AnchorSettings | Anchors | None = None,
        fusion: Fusion | None = None,
        frames_per_chunk: int | None = None,
        exact_settings: ExactSettings = ExactSettings(),
        null_text_settings: NullTextSettings = NullTextSettings(),
        bilateral_settings: BilateralInversion = BilateralInversion(),
        adapter_interval: Sequence[float] | None = None,
        adapter_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | Inversion | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> VideoEditOutput | tuple:
        """Edit a clip.

        video: f c h w tensor or f h w c array, in [0, 1] or uint8; a list of PIL images; or a Clip
            (None when `latents` are given).
        prompt: describes the edited clip; source_prompt: the clip as it is.
        negative_prompt: the branch that guidance moves away from; None is the empty prompt, classic
            classifier-free guidance. The source prompt given here is negative-prompt inversion
            (Miyake et al. 2023, arXiv 2305.16807): guidance then holds only what differs between
            the prompts, and prompt == source_prompt reconstructs at any scale.
        guidance_scale: eps = eps_neg + guidance_scale (eps_prompt - eps_neg); 1 turns it off.
        inversion: "ddim"; "exact" (slower; reconstructs to rounding error); "null_text" (slowest:
            mends what guidance breaks of "ddim", at this guidance scale); "bilateral" (from
            latents smoothed at every step: reconstructs less, see `BilateralInversion`).
        attention: "own", "first", "sparse_causal", "extended", "anchors", or a policy. The
            inversion uses the same one, since sampling undoes only the process that was inverted:
            with `latents`, "anchors" therefore is whatever attention they were inverted with
            ("extended" where that is not known), unless `anchors` are given.
        injection: first fraction of the steps in which the source's attention maps and features
            replace the edit's (0 none, 1 always); an `Injection` sets the two apart.
        anchors: for attention "anchors": how they are found on the clip's latents, or those found;
            None is two site anchors.
        fusion: several models that denoise together, in place of this one alone; the arguments
            here are what its sources leave open.
        frames_per_chunk: bounds the memory, not the result; None chooses from the resolution.
        exact_settings, null_text_settings: how hard inversions "exact" and "null_text" try.
        bilateral_settings: window, sigmas and place of the filter of "bilateral".
        adapter_interval, adapter_scale: where the adapter of `load_adapter` acts, as fractions of
            the T diffusion steps, and how strongly; None is its own, scale 0 turns it off. It acts
            on the inversion at the same steps.
        generator: accepted as everywhere in diffusers; deterministic DDIM from the VAE's mode
            draws nothing from it, but a fusion whose sources start from noise does.
        latents: f c h w at the noisiest level, or an `Inversion`, to skip inverting.
        output_type: "pil", "np", "pt" or "latent".
        callback_on_step_end: `(pipe, i, t, tensors) -> dict`, whose tensors replace the given ones;
            it may set `pipe._interrupt = True` to stop.
        Returns `.frames`, a batch of one clip. Raises InputError, FloatingPointError (NaN).
        """
        tensor_inputs = getattr(
            callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs
        )
        checks.check_call(
            guidance_scale, output_type, generator, tensor_inputs, self._callback_tensor_inputs
        )
        injection = Injection.of(injection)
        alone = [Source(attention=attention)]
        sources = alone if fusion is None else fusion.sources
        schedule = Schedule.from_scheduler(
            sources[0].scheduler or self.scheduler, num_inference_steps
        )
        weights = [None] * len(schedule) if fusion is None else fusion.weights(len(schedule))
        get_policy(attention), get_method(inversion)
        check_bilateral(inversion, bilateral_settings, schedule)
        settings = InversionSettings(
            inversion, exact_settings, null_text_settings, bilateral_settings
        )
        latents = self._as_inversion(latents)
        if latents is not None:
            checks.check_steps(latents, schedule)
        call = dict(
            prompt=prompt, source_prompt=source_prompt, negative_prompt=negative_prompt,
            guidance_scale=guidance_scale, attention=attention, adapter_interval=adapter_interval,
            adapter_scale=adapter_scale,
        )  # fmt: skip
        shape = self._latent_shape(video) if latents is None else latents.latents.shape
        if all(w is None for w in weights):
            sources = sources[:1]  # nothing is ever fused
        streams = streams_of(
            sources, self, schedule, shape, call, injection, frames_per_chunk, video, latents
        )
        seeks_anchors = attention == "anchors" and isinstance(anchors, AnchorSettings)
        needs_clip = latents is None or (seeks_anchors and video is not None)
        z_0 = self.encode(video, frames_per_chunk) if needs_clip else None
        for stream in streams:
            stream.attention = self._of_clip(stream.attention, anchors, z_0, latents)
        begin(streams, fusion, z_0, latents, settings, generator, self.progress_bar)
        self._interrupt, lead = False, streams[0]
        with self.progress_bar(total=len(schedule)) as bar:
            for i, step in enumerate(schedule):
                if self._interrupt:
                    break
                for stream in streams:
                    stream.step(i, step)
                mix(streams, weights[i], fusion)
                if callback_on_step_end is not None:
                    state = {"latents": lead.z, "prompt_embeds": lead.text[1:2]}
                    state["negative_prompt_embeds"] = lead.text[:1]
                    given = {name: state[name] for name in tensor_inputs}
                    state.update(callback_on_step_end(self, i, step.t, given) or {})
                    z, positive, negative = (state[k] for k in self._callback_tensor_inputs)
                    lead.text = torch.cat([negative, positive, lead.text[2:]])
                    for stream in [lead] if weights[i] is None else streams:
                        stream.z = z
                bar.update()
        frames = lead.z[None]
        if output_type != "latent":
            frames = codec.as_output(self.decode(lead.z, frames_per_chunk), output_type)
        self.maybe_free_model_hooks()
        return VideoEditOutput(frames=frames) if return_dict else (frames,)

    # The parts of an edit, for notebooks and measurements.

    @torch.no_grad()
    def invert(
        self,
        video: Any,
        source_prompt: str = "",
        num_inference_steps: int = 50,
        inversion: str = "ddim",
        attention: str | Policy = "extended",
        anchors: AnchorSettings | Anchors | None = None,
        frames_per_chunk: int | None = None,
        exact_settings: ExactSettings = ExactSettings(),
        return_inversion: bool = False,
        null_text_settings: NullTextSettings = NullTextSettings(),
        negative_prompt: str | None = None,
        guidance_scale: float = GUIDANCE_SCALE,
        bilateral_settings: BilateralInversion = BilateralInversion(),
        adapter_interval: Sequence[float] | None = None,
        adapter_scale: float | None = None,
    ) -> Float[Tensor, "f c h w"] | Inversion:
        """Latents at the noisiest level, from which `reconstruct` returns to the clip (guidance 1).

        attention: as in an edit. The default, unlike an edit's, depends on nothing but the latents,
            so that they alone are enough to reconstruct the clip.
        return_inversion: the whole `Inversion`: trajectory, residuals, evaluations, attention,
            anchors, null text. Latents of "null_text" alone are those of "ddim".
        negative_prompt, guidance_scale: those of the edit to come; "null_text" alone reads them.
        adapter_interval, adapter_scale: as in an edit.
        """
        schedule = Schedule.from_scheduler(self.scheduler, num_inference_steps)
        get_policy(attention), get_method(inversion)
        check_bilateral(inversion, bilateral_settings, schedule)
        codec.check_guidance(guidance_scale)
        text = self.encode_prompt([negative_prompt or "", source_prompt, source_prompt])
        backbone = self._adapted(frames_per_chunk, schedule, adapter_interval, adapter_scale, video)
        z_0 = self.encode(video, frames_per_chunk)
        policy = self._of_clip(attention, anchors, z_0)
        settings = InversionSettings(
            inversion, exact_settings, null_text_settings, bilateral_settings
        )
        stream = Stream(backbone, schedule, text, guidance_scale, policy)
        found = stream.invert(z_0, settings, progress=self.progress_bar)
        self.maybe_free_model_hooks()
        return found if return_inversion else found.latents

    def _adapted(
        self,
        frames_per_chunk: int | None,
        schedule: Schedule,
        interval: Interval | None,
        scale: float | None,
        video: Any,
        inverted: Activation | None = None,
    ) -> AdaptedBackbone:
        """The backbone for one clip; `activate` says what the arguments do and what it raises."""

        def image_tokens() -> Tensor:
            frames = codec.as_frames(video).to(self._execution_device)
            return self.vision_encoder.tokens(frames)

        known = None if video is None else image_tokens
        found = activate(self.adapter, schedule, interval, scale, known, inverted)
        return AdaptedBackbone(self.unet, frames_per_chunk, activation=found)

    def _of_clip(
        self, attention, anchors, z_0: Tensor | None, latents: Inversion | None = None
    ) -> str | Policy:
        """The attention, where "anchors" becomes the policy of this clip.

        Anchors are found on the clean latents z_0; on the given ones when only those are known.
        Nothing but given latents leaves the choice to how they were inverted.
        """
        if attention != "anchors":
            return attention
        if z_0 is None:
            if anchors is None:
                return latents.attention
            z_0 = latents.trajectory[-1] if latents.trajectory else latents.latents
        if not isinstance(anchors, Anchors):
            features = rearrange(z_0, "f c h w -> f (h w) c")
            anchors = assign_anchors(features, anchors or ANCHORS)
        return AnchorAttention(anchors, tuple(z_0.shape[2:]))

    @torch.no_grad()
    def reconstruct(
        self,
        latents: Tensor | Inversion,
        source_prompt: str = "",
        num_inference_steps: int = 50,
        attention: str | Policy | None = None,
        anchors: AnchorSettings | Anchors | None = None,
        frames_per_chunk: int | None = None,
        adapter_interval: Sequence[float] | None = None,
        adapter_scale: float | None = None,
    ) -> Float[Tensor, "f c h w"]:
        """Sample and decode: what `invert` undoes; frames in [0, 1].

        At guidance 1, or with the null text of the `Inversion` at the scale it was made for.
        attention: None is that of the `Inversion`; for bare latents `invert`'s default.
        adapter_interval, adapter_scale: None likewise.
        """
        schedule = Schedule.from_scheduler(self.scheduler, num_inference_steps)
        latents = self._as_inversion(latents)
        attention = latents.attention if attention is None else attention
        get_policy(attention)
        attention = self._of_clip(attention, anchors, None, latents)
        checks.check_steps(latents, schedule)
        backbone = self._adapted(
            frames_per_chunk, schedule, adapter_interval, adapter_scale, None, latents.activation
        )
        text = self.encode_prompt([source_prompt] * 3)
        scale = 1.0 if latents.null_text is None else latents.null_text.guidance_scale
        stream = Stream(backbone, schedule, text, scale, attention)
        stream.start(latents)
        for i, step in enumerate(self.progress_bar(list(schedule))):
            stream.step(i, step)
        frames = self.decode(stream.z, frames_per_chunk)
        self.maybe_free_model_hooks()
        return frames

    @torch.no_grad()
    def encode(self, video: Any, frames_per_chunk: int | None = None) -> Float[Tensor, "f c h w"]:
        """Scaled latents of a clip: the mode of the VAE's posterior, float32 or more."""
        frames = codec.as_frames(video)
        codec.check_size(frames, self.vae)
        frames = frames.to(self._execution_device, self._solver_dtype)
        return codec.encode_frames(self.vae, frames, frames_per_chunk)

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "f c h w"], frames_per_chunk: int | None = None
    ) -> Float[Tensor, "f 3 y x"]:
        """Frames in [0, 1] of scaled latents."""
        return codec.decode_latents(self.vae, self._check_latents(latents), frames_per_chunk)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Float[Tensor, "g n d"]:
        """One text embedding a prompt; warns of words that are cut off or unknown."""
        return codec.encode_prompts(
            self.tokenizer, self.text_encoder, prompts, self._execution_device
        )

    def estimate(
        self,
        n_frames: int,
        height: int,
        width: int,
        num_inference_steps: int = 50,
        guidance_scale: float = GUIDANCE_SCALE,
        inversion: str = "ddim",
        injection: float | Injection = 0.0,
        frames_per_chunk: int | None = None,
        exact_settings: ExactSettings = ExactSettings(),
        has_latents: bool = False,
        null_text_settings: NullTextSettings = NullTextSettings(),
        fusion: Fusion | None = None,
    ) -> Estimate:
        """What an edit costs, before it starts; takes the arguments of the edit.

        Of a fusion every source counts as much as the pipeline's own model, and its weights once.
        """
        get_method(inversion)
        n = len(Schedule.from_scheduler(self.scheduler, num_inference_steps))
        branches = 1 if guidance_scale in (0, 1) else 2
        n_injected = max(Injection.of(injection).n_steps(n))
        per_step = exact_settings.max_iterations if inversion == "exact" else 1
        if inversion == "null_text" and guidance_scale != 1:
            per_step += null_text_settings.n_iterations + 2
        n_inverted = 0 if has_latents else n * per_step
        n_evaluations = n_frames * (n_inverted + n * branches + n_injected)

        h, w = height // self.vae_scale_factor, width // self.vae_scale_factor
        branches += n_injected > 0
        size = Backbone(self.unet, frames_per_chunk).chunk_size(n_frames, branches, h, w)
        networks = dict(vae=self.vae, text_encoder=self.text_encoder, unet=self.unet)
        networks |= self.adapter_networks
        if fusion is not None:
            n_evaluations *= len(fusion.sources)
            own = (s.unet for s in fusion.sources if s.unet is not None)
            networks |= {f"unet of source {i}": unet for i, unet in enumerate(own)}
        needed = peak_bytes(
            networks, n_frames, height, width, n, branches, frames_per_chunk, unet_frames=size
        )
        return Estimate(n_evaluations, needed, size)

    # Checks and conversions.

    @property
    def _solver_dtype(self) -> torch.dtype:
        """The solver works in float32, or in float64 when the network does."""
        return torch.promote_types(torch.float32, self.unet.dtype)

    def _latent_shape(self, video: Any) -> tuple[int, ...]:
        """Of the clip's latents, f c h w, known before the VAE has made them."""
        frames, k = codec.as_frames(video), self.vae_scale_factor
        codec.check_size(frames, self.vae)
        f, _, h, w = frames.shape
        return (f, self.unet.config.in_channels, h // k, w // k)

    def _check_latents(self, latents: Tensor) -> Float[Tensor, "f c h w"]:
        """Latents of one clip, on the device and in the precision of the solver."""
        z = checks.check_latents(latents, self.unet.config.in_channels)
        return z.to(self._execution_device, self._solver_dtype)

    def _as_inversion(self, latents: Tensor | Inversion | None) -> Inversion | None:
        """Bare latents become an inversion that knows nothing else."""
        if latents is None:
            return None
        known = latents if isinstance(latents, Inversion) else Inversion(latents)
        return replace(known, latents=self._check_latents(known.latents))


def quiet_pipeline(model: str | PathLike, dtype: torch.dtype | None = None) -> VideoEditPipeline:
    """The pipeline of a model on the GPU, where there is one, without progress bars."""
    pipe = VideoEditPipeline.from_pretrained(str(model), dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")
