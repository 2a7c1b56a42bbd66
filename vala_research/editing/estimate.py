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
from vala_research.diffusion.records import is_video_model, n_tokens, n_tokens_of, record_of
from vala_research.diffusion.schedule import Schedule
from vala_research.diffusion.vae import group_of, is_temporal, n_latent_frames, vae_factor
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
    tiling: bool = False,
    offload: bool = False,
) -> int:
    """Peak memory: all weights, the trajectory, and the larger of the maps of network and VAE.

    height, width: of the frames. unet_frames: frames per chunk of the UNet's inner work. n_seen:
    frames that the network sees at once, see `stretches`. tiling: of the VAE. offload: the VAE, a
    text encoder, and the rest take turns on the device. This is an estimate, not a bound: the
    cache of the allocator and the framework itself come on top.
    """
    vae, unet = networks["vae"], networks["unet"]
    h, w = height // vae_factor(vae), width // vae_factor(vae)
    if record_of(unet).is_unet:
        in_network = _in_unet(unet, n_branches * h * w, n_seen, unet_frames)
    else:
        in_network = _in_transformer(unet, n_branches * n_seen * n_tokens(unet, h, w))
    weights = _of_weights(networks, offload)
    in_latents = unet.config.in_channels * h * w * (n_steps + 10) * n_latent_frames(vae, n_frames)
    solver = 4 * (in_latents + n_frames * 6 * height * width)
    if tiling:
        height, width = (min(side, tile_side(vae)) for side in (height, width))
    in_vae = _in_vae(vae, n_frames, height, width, frames_per_chunk)
    return int(weights + solver + max(in_network, in_vae))


def _of_weights(networks: dict[str, nn.Module], offload: bool) -> int:
    """Bytes of weights on the device: of all networks, or of the largest part that takes turns.

    Models that share their weights hold them once.
    """
    turns: dict[str, dict[int, int]] = {}
    for name, network in networks.items():
        is_alone = offload and (name == "vae" or name.startswith("text_encoder"))
        part = turns.setdefault(name if is_alone else "rest", {})
        part |= {id(p): p.numel() * p.element_size() for p in network.parameters()}
    return max(sum(part.values()) for part in turns.values())


def tile_side(vae: Any) -> int:
    """Side of a VAE's tiles in pixels."""
    names = ("tile_sample_min_size", "tile_sample_min_height")
    return next((int(getattr(vae, name)) for name in names if hasattr(vae, name)), 512)


def _in_unet(unet: nn.Module, n_sites: int, n_seen: int, unet_frames: int) -> float:
    """Bytes of a UNet's maps; n_sites: of one frame of latents, in all branches.

    It is widest in the last decoder block. There each branch of each frame holds the upsampled
    input, one skip per layer and one more, and six maps inside the transformer; a chunk of
    `unet_frames` holds its feed-forward layer, 16 maps.
    """
    channels, layers = unet.config.block_out_channels, unet.config.layers_per_block
    wide = channels[0] * n_sites  # one feature map of one frame at full latent resolution
    held = channels[min(1, len(channels) - 1)] / channels[0] + layers + 1 + 6
    return wide * (held * n_seen + 16 * unet_frames) * unet.dtype.itemsize


def _in_transformer(network: nn.Module, tokens: int) -> float:
    """Bytes of a transformer's maps for so many tokens, in all branches.

    Six maps of its width, and the larger of the feed-forward layer, twice, and of one map that
    Wan's rotations hold in float64, twice.
    """
    config, size = network.config, network.dtype.itemsize
    width = config.num_attention_heads * config.attention_head_dim
    inner = config.get("ffn_dim") or 4 * width
    return tokens * (6 * width * size + max(2 * inner * size, 16 * width))


def _in_vae(vae: Any, n_frames: int, height: int, width: int, per_chunk: int | None) -> float:
    """Bytes of five maps of the VAE's decoder at full size: of a chunk, or a group of frames."""
    if is_temporal(vae):
        frames = group_of(vae)
        channels = vae.config.get("base_dim") or vae.config.decoder_block_out_channels[0]
    else:
        frames = codec.chunks_of(n_frames, height, width, per_chunk)[0].stop
        channels = vae.config.block_out_channels[0]
    return 5 * channels * height * width * frames * vae.dtype.itemsize


@dataclass(frozen=True)
class Estimate:
    """What an edit will cost.

    n_evaluations: single frames of latents through the network, in all guidance branches. It is
        exact, except for the inversions "exact" and "null_text", where it is an upper bound. It
        counts forward passes: the backward passes of "null_text" (at most its iterations per step)
        and their memory come on top.
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
    tiling: bool | None = None,
    offload: bool = False,
) -> Estimate:
    """What an edit by this pipeline costs, before it starts. The arguments are those of the edit.

    has_latents: the clip is inverted already. Every source of a fusion counts as much as the
    pipeline's own model, its weights once.
    tiling: of the VAE (None: as it is set). offload: parts take turns on the device.
    """
    tiling = getattr(pipe.vae, "use_tiling", False) if tiling is None else tiling
    num_inference_steps, guidance_scale, inversion, injection, attention, strength = (
        defaults_of(pipe.edit_defaults, host).filled(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            inversion=inversion, injection=injection, attention=attention, strength=strength,
        )
    )  # fmt: skip
    h, w = height // pipe.vae_scale_factor, width // pipe.vae_scale_factor
    n_latent = n_latent_frames(pipe.vae, n_frames)
    tokens = n_tokens_of(pipe.unet, (n_latent, 0, h, w))
    schedule = Schedule.from_scheduler(pipe.scheduler, num_inference_steps, tokens)
    n_steps = len(schedule.last_part(strength))
    n_branches = 2 if guidance_scale > 1 else 1
    n_injected = n_source_steps(attention, Injection.of(injection), n_steps)
    n_inverted = 0 if has_latents else n_steps * evaluations_per_step(inversion, guidance_scale)
    n_seen, n_at_once = frames_seen(pipe, attention, n_latent)
    n_sampled = n_steps * n_branches
    if isinstance(edit := get_inversion(inversion), DifferenceEdit):
        n_sampled = edit.n_calls(n_steps, guidance_scale)
        n_branches = 3 if edit.zeta is not None else 2
    n_evaluations = n_seen * (n_inverted + n_sampled + n_injected)

    n_branches += n_injected > 0
    if n_at_once < n_latent and not n_injected and pipe.image_unet is None:
        n_branches = 1  # those of a long clip go one by one
    size = Backbone(pipe.unet, frames_per_chunk).chunk_size(n_at_once, n_branches, h, w)
    networks = dict(vae=pipe.vae, text_encoder=pipe.text_encoder, unet=pipe.unet)
    networks |= {} if pipe.text_encoder_2 is None else {"text_encoder_2": pipe.text_encoder_2}
    networks |= {} if pipe.text_encoder_3 is None else {"text_encoder_3": pipe.text_encoder_3}
    networks |= pipe.adapter_networks
    networks |= {} if pipe.controlnet is None else {"controlnet": pipe.controlnet}
    networks |= {f"controlnet {i}": c.network for i, c in enumerate(pipe.more_controls, 2)}
    if fusion is not None:
        n_evaluations *= len(fusion.sources)
        own = (s.unet for s in fusion.sources if s.unet is not None)
        networks |= {f"unet of source {i}": unet for i, unet in enumerate(own)}
    needed = peak_bytes(
        networks, n_frames, height, width, n_steps, n_branches, frames_per_chunk,
        unet_frames=size, n_seen=n_at_once, tiling=tiling, offload=offload,
    )  # fmt: skip
    return Estimate(n_evaluations, needed, size)


def frames_seen(pipe: Any, attention: Attending, n_frames: int) -> tuple[int, int]:
    """Frames that the pipeline's UNet sees in one prediction of a clip: in all, and at once."""
    if pipe.image_unet is None and is_video_model(pipe.unet):
        return n_frames, n_frames
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
