"""Checks of a call's arguments, made before any work is done."""

import warnings
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, chosen_from
from vala_research.diffusion.attending import depends_on_clip, get_policy
from vala_research.diffusion.codec import OUTPUT_TYPES
from vala_research.diffusion.compatible import check_text, check_unet
from vala_research.diffusion.controlnet import check_controlnet, check_factor
from vala_research.diffusion.cross_frame import CrossFrame
from vala_research.diffusion.guidance import check_guidance
from vala_research.diffusion.injection import check_transformer
from vala_research.diffusion.inversion import Inversion
from vala_research.diffusion.motion import max_frames
from vala_research.diffusion.records import is_transformer, is_video_model
from vala_research.diffusion.schedule import Schedule
from vala_research.diffusion.vae import group_of, latent_channels, vae_factor
from vala_research.editing.source import Source


def check_call(
    guidance_scale: float,
    output_type: str,
    generator: Any,
    asked: Sequence[str],
    offered: Sequence[str],
    n_prompts: int,
) -> None:
    """Check the plain arguments of an edit. asked: tensors the callback wants, out of offered."""
    check_guidance(guidance_scale)
    chosen_from("output_type", output_type, OUTPUT_TYPES)
    if isinstance(generator, list) and len(generator) not in (1, n_prompts):
        raise InputError(
            f"generator is a list of {len(generator)}: a call edits one clip, give one generator, "
            "or one per prompt."
        )
    unknown = [name for name in asked if name not in offered]
    if unknown:
        raise InputError(
            f"The callback asks for {', '.join(unknown)}: choose from {', '.join(offered)}."
        )


def check_latents(latents: Tensor, n_channels: int) -> Float[Tensor, "f c h w"]:
    """The latents of one clip, without a batch axis. Raises InputError for other shapes."""
    z = latents[0] if latents.ndim == 5 and len(latents) == 1 else latents
    if z.ndim != 4 or z.shape[1] != n_channels or 0 in z.shape:
        raise InputError(
            f"The latents have shape {tuple(latents.shape)}: give those of one clip, "
            f"frames x {n_channels} x height x width."
        )
    return z


def check_steps(latents: Inversion, schedule: Schedule) -> None:
    """Check that an edit has as many steps as the inversion that it starts from."""
    if latents.null_text is not None:
        n_steps = len(latents.null_text.embeddings)
    else:
        n_steps = len(latents.trajectory) - 1 if latents.trajectory else len(schedule)
    if n_steps != len(schedule):
        raise InputError(
            f"The inversion given as latents has {n_steps} steps and the "
            f"edit has {len(schedule)}: use the same num_inference_steps for both."
        )


def check_source(source: Source, name: str, vae: Any, shape: Sequence[int]) -> None:
    """Check that a source can share latents of this shape, f c h w. Raises InputError.

    name: of the source in a sentence. vae: of the pipeline; the source's own VAE, if it has one,
    is compared with it.
    """
    # Its network reads and makes these latents, and reads its text.
    unet = source.unet
    check_unet(unet)
    n_frames, n_channels, h, w = shape
    config = unet.config
    for what, found in (("reads", config.in_channels), ("makes", config.out_channels)):
        if found != n_channels:
            raise InputError(
                f"{name} {what} latents of {found} channels and the pipeline's have {n_channels}: "
                "fuse models of one latent space."
            )
    if source.vae is not None:
        _check_vae(source.vae, vae, name)
    check_text(source.text_encoder, unet, name, source.text_encoder_2)
    editor = get_policy(source.attention)
    if isinstance(editor, CrossFrame) and is_transformer(unet):
        check_transformer(unet, False, None, editor)
    if is_video_model(unet) and isinstance(editor, CrossFrame) and not editor.fits_video_models:
        raise InputError(
            f"{name} is a video model, and {type(editor).__name__} lays out frames for an image "
            "model: leave the motion modules out (pipe.unload_motion_adapter(), --motion none)."
        )

    # Its windows, its inversion and its control pictures fit the clip.
    _check_windows(source, name, n_frames)
    if source.latents is not None and tuple(source.latents.latents.shape) != tuple(shape):
        raise InputError(
            f"{name} has latents of shape {tuple(source.latents.latents.shape)} and the clip's are "
            f"{tuple(shape)}: invert this clip."
        )
    size = (n_frames, 3, h * vae_factor(vae), w * vae_factor(vae))
    for control in source.controls or ():
        check_controlnet(control.network, unet, f"The ControlNet of {name[:1].lower()}{name[1:]}")
        check_factor(control.network, vae)
        if control.pictures is not None and tuple(control.pictures.shape) != size:
            raise InputError(
                f"{name} has a ControlNet and control pictures of shape "
                f"{tuple(control.pictures.shape)}: give {size}."
            )


def warn_without_adapter(source: Source, name: str) -> None:
    """Warn of a source that the adapter of the pipeline's own UNet does not reach."""
    if source.adapter is None:
        warnings.warn(
            f"The adapter of load_adapter acts on the pipeline's UNet, and not on {name}: load one "
            "for it, as in Source(unet, adapter=TemporalAdapter.load(folder, unet)).",
            stacklevel=2,
        )


def _check_vae(vae: Any, own: Any, name: str) -> None:
    """Check that two VAEs agree in scale, shift and resolution, so that they share a space."""
    if vae_factor(vae) != vae_factor(own):
        raise InputError(
            f"{name} has latents {vae_factor(vae)} times smaller than the frames and the "
            f"pipeline's are {vae_factor(own)} times: fuse models of one spatial size."
        )
    for key in ("scaling_factor", "shift_factor", "latents_mean", "latents_std"):
        theirs, ours = (getattr(v.config, key, None) or 0 for v in (vae, own))
        if theirs != ours:
            raise InputError(
                f"{name} has a VAE of {key} {theirs} and the pipeline's is {ours}: fuse models of "
                "one latent space."
            )
    theirs, ours = (latent_channels(v) for v in (vae, own))
    if theirs != ours or group_of(vae) != group_of(own):
        raise InputError(
            f"{name} has a VAE of {theirs} channels for {group_of(vae)} frames and the pipeline's "
            f"is of {ours} for {group_of(own)}: fuse models of one latent space."
        )


def _check_windows(source: Source, name: str, n_frames: int) -> None:
    limit, window = max_frames(source.unet), source.window
    if window is not None and not (window > 0 and 0 <= source.overlap < window):
        raise InputError(
            f"{name} has a window of {window} frames with overlap {source.overlap}: give a "
            "positive window and an overlap smaller than it."
        )
    seen = min(n_frames, window or n_frames)
    if limit is not None and seen > limit:
        raise InputError(
            f"{name} is given {seen} frames and its positional encoding reaches {limit}: give the "
            f"source window={limit}, or a shorter clip."
        )
    if seen == n_frames:
        return
    if depends_on_clip(source.attention):
        raise InputError(
            f"{name} sees windows of {window} frames, and its attention needs the whole clip: "
            "give the source another attention, such as 'own'."
        )
    if source.adapter is not None and source.adapter.settings.uses_frame_tokens:
        raise InputError(
            f"{name} sees windows of {window} frames, and its adapter makes tokens of all frames: "
            "leave the window or the adapter out."
        )
