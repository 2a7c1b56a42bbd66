"""The cost of an edit, added up from the configurations of its networks before it starts."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from vala_research.diffusion import codec
from vala_research.diffusion.attending import Attending
from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.difference import WITHOUT, DifferenceEdit
from vala_research.diffusion.fixed_point import ExactSettings
from vala_research.diffusion.injection import Injection, n_source_steps
from vala_research.diffusion.inversion import InversionSettings, get_inversion
from vala_research.diffusion.motion import max_frames
from vala_research.diffusion.null_text import NullTextSettings
from vala_research.diffusion.schedule import Schedule
from vala_research.diffusion.vae import vae_factor
from vala_research.editing.fusion import Fusion
from vala_research.editing.hosts import defaults_of
from vala_research.editing.source import Source, windows_of
from vala_research.editing.stretches import count_frames


def peak_bytes(
    networks: dict[str, nn.Module],
    n_frames: int,
    height: int,
    width: int,
    n_steps: int,
    n_branches: int,
    frames_per_chunk: int | None,
    unet_frames: int,
    n_seen: int,
) -> int:
    """Peak memory: all weights, the trajectory, and the larger of the maps of UNet and VAE.

    height, width: of the frames. unet_frames: frames per chunk of the UNet's inner work. n_seen:
    frames that the UNet sees at once, see `stretches`. The UNet
    is widest in the last decoder block. There each branch of each frame holds the upsampled input,
    one skip per layer and one more, and six maps inside the transformer; a chunk holds its
    feed-forward layer, 16 maps. This is an estimate, not a bound: the cache of the allocator and
    the framework itself come on top.
    """
    # Maps of the UNet and of the VAE, in elements.
    vae, unet = networks["vae"], networks["unet"]
    h, w = height // vae_factor(vae), width // vae_factor(vae)
    channels, layers = unet.config.block_out_channels, unet.config.layers_per_block
    wide = channels[0] * h * w  # one feature map of one frame at full latent resolution
    held = channels[min(1, len(channels) - 1)] / channels[0] + layers + 1 + 6
    in_unet = n_branches * wide * (held * n_seen + 16 * unet_frames)
    part = codec.chunks_of(n_frames, height, width, frames_per_chunk)[0].stop
    in_vae = 5 * vae.config.block_out_channels[0] * height * width * part
    # Models that share their weights hold them once.
    parameters = {id(p): p for m in networks.values() for p in m.parameters()}
    weights = sum(p.numel() * p.element_size() for p in parameters.values())
    solver = 4 * n_frames * (unet.config.in_channels * h * w * (n_steps + 10) + 6 * height * width)
    activations = max(in_unet * unet.dtype.itemsize, in_vae * vae.dtype.itemsize)
    return int(weights + solver + activations)


@dataclass(frozen=True)
class Estimate:
    """What an edit will cost.

    n_evaluations: single frames through the UNet, in all guidance branches. It is exact, except for
        the inversions "exact" and "null_text", where it is an upper bound. It counts forward
        passes: the backward passes of "null_text" (at most its iterations per step) and their
        memory come on top.
    peak_bytes: see `peak_bytes`.
    """

    n_evaluations: int
    peak_bytes: int
    frames_per_chunk: int


def estimate_edit(
    pipe: Any,
    n_frames: int,
    height: int,
    width: int,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    inversion: str | InversionSettings | None = None,
    injection: float | Injection | None = None,
    frames_per_chunk: int | None = None,
    has_latents: bool = False,
    fusion: Fusion | None = None,
    attention: Attending | None = None,
    strength: float | None = None,
    host: str | None = None,
) -> Estimate:
    """What an edit by this pipeline costs, before it starts. The arguments are those of the edit.

    has_latents: the clip is inverted already. Every source of a fusion counts as much as the
    pipeline's own model, its weights once.
    """
    num_inference_steps, guidance_scale, inversion, injection, attention, strength = (
        defaults_of(pipe.edit_defaults, host).filled(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            inversion=inversion, injection=injection, attention=attention, strength=strength,
        )
    )  # fmt: skip
    schedule = Schedule.from_scheduler(pipe.scheduler, num_inference_steps)
    n_steps = len(schedule.last_part(strength))
    n_branches = 2 if guidance_scale > 1 else 1
    n_injected = n_source_steps(attention, Injection.of(injection), n_steps)
    n_inverted = 0 if has_latents else n_steps * evaluations_per_step(inversion, guidance_scale)
    n_seen, n_at_once = frames_seen(pipe, attention, n_frames)
    n_sampled = n_steps * n_branches
    if isinstance(edit := get_inversion(inversion), DifferenceEdit):
        n_sampled = edit.n_calls(n_steps, guidance_scale)
        n_branches = 3 if edit.zeta is not None else 2
    n_evaluations = n_seen * (n_inverted + n_sampled + n_injected)

    h, w = height // pipe.vae_scale_factor, width // pipe.vae_scale_factor
    n_branches += n_injected > 0
    if n_at_once < n_frames and not n_injected and pipe.image_unet is None:
        n_branches = 1  # those of a long clip go one by one
    size = Backbone(pipe.unet, frames_per_chunk).chunk_size(n_at_once, n_branches, h, w)
    networks = dict(vae=pipe.vae, text_encoder=pipe.text_encoder, unet=pipe.unet)
    networks |= {} if pipe.text_encoder_2 is None else {"text_encoder_2": pipe.text_encoder_2}
    networks |= pipe.adapter_networks
    networks |= {} if pipe.controlnet is None else {"controlnet": pipe.controlnet}
    networks |= {f"controlnet {i}": c.network for i, c in enumerate(pipe.more_controls, 2)}
    if fusion is not None:
        n_evaluations *= len(fusion.sources)
        own = (s.unet for s in fusion.sources if s.unet is not None)
        networks |= {f"unet of source {i}": unet for i, unet in enumerate(own)}
    needed = peak_bytes(
        networks, n_frames, height, width, n_steps, n_branches, frames_per_chunk,
        unet_frames=size, n_seen=n_at_once,
    )  # fmt: skip
    return Estimate(n_evaluations, needed, size)


def frames_seen(pipe: Any, attention: Attending, n_frames: int) -> tuple[int, int]:
    """Frames that the pipeline's UNet sees in one prediction of a clip: in all, and at once."""
    if pipe.image_unet is None:
        return count_frames(attention, n_frames)
    windows = windows_of(n_frames, max_frames(pipe.unet), Source.overlap)
    lengths = [w.stop - w.start for w in windows] or [n_frames]
    return sum(lengths), max(lengths)


def evaluations_per_step(inversion: str | InversionSettings, guidance_scale: float) -> int:
    """Network evaluations per inverted step: exact for DDIM, else an upper bound."""
    settings = get_inversion(inversion)
    if isinstance(settings, WITHOUT):
        return 0
    if isinstance(settings, ExactSettings):
        return settings.max_iterations
    if isinstance(settings, NullTextSettings) and guidance_scale > 1:
        return 1 + settings.n_iterations + 2
    return 1
