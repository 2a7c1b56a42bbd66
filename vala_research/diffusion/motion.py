"""Build a video model on an image model: motion modules are new, all other weights are shared.

AnimateDiff (Guo et al. 2023, arXiv 2307.04725): attention along frames after every block of an
image UNet.
"""

from collections.abc import Callable
from functools import partial
from os import PathLike

from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from diffusers.utils import logging
from torch import nn

from vala_research import InputError, miniature_path
from vala_research.diffusion.backbone import UNet
from vala_research.diffusion.loading import load_network, reason_of, silenced
from vala_research.diffusion.patching import Patch, is_temporal, lora_layers
from vala_research.diffusion.records import is_video_model, refuse_transformer
from vala_research.diffusion.variants import half_first


def _passed_over(_name: str, _module: nn.Module, _forward: Callable) -> Callable:
    return lambda hidden_states, *_, **__: hidden_states


# Motion modules return what they are given: the network is its image model.
STILL = Patch(lambda _, module: isinstance(module, AnimateDiffTransformer3D), forward=_passed_over)
MOTION = "give the folder or hub id of an AnimateDiff MotionAdapter with safetensors weights."


def load_motion_unet(
    unet: UNet, motion: str | PathLike | MotionAdapter, **hub
) -> UNetMotionModel:
    """Add motion modules to a UNet. All other weights are those of `unet`, not copies.

    motion: "miniature", a folder or hub id of a MotionAdapter in safetensors, or a MotionAdapter.
    hub: `revision`, `variant`, `cache_dir`, `token`, `local_files_only`. For a UNet in half
    precision the variant "fp16" is read, where there is one.
    Raises InputError when the motion modules cannot be read or belong to another UNet, and when the
    UNet carries a LoRA or a temporal adapter. Those may come later: they act in `unet` alone.
    """
    refuse_transformer(unet, "A MotionAdapter")
    if is_video_model(unet):
        raise InputError(
            "The UNet has motion modules already: give the image UNet, which is pipe.image_unet "
            "after pipe.load_motion_adapter()."
        )
    if lora_layers(unet):
        raise InputError(
            "The UNet carries a LoRA or a temporal adapter, and motion modules are built on its "
            "weights alone: take it off first (pipe.fuse_lora() and pipe.unload_lora_weights(), or "
            "pipe.unload_adapter()), or load it afterwards."
        )
    if not isinstance(motion, MotionAdapter):
        folder = miniature_path("motion") if str(motion) == "miniature" else motion
        what = f"The motion modules {str(folder)!r}"
        load = partial(load_network, MotionAdapter, folder, what, MOTION, **hub)
        motion = load() if "variant" in hub else half_first(unet.dtype, load)

    # Build the video model, then let it use the weights of `unet`.
    try:
        with silenced(logging):  # diffusers warns of an empty list of modules
            video = UNetMotionModel.from_unet2d(unet, motion)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            "The motion modules were made for another UNet than this one "
            f"({reason_of(error)}): give motion modules of its class."
        ) from error
    share_weights(video.to(unet.device), unet)
    return video.train(unet.training)


def share_weights(video: UNetMotionModel, unet: UNet2DConditionModel) -> None:
    """Let the video model use the image model's parameters wherever both have the same name."""
    own = dict(unet.named_parameters())
    for name, module in video.named_modules():
        if is_temporal(name):
            continue
        for key in list(module._parameters):
            if module._parameters[key] is not None:
                setattr(module, key, own[f"{name}.{key}"])


def max_frames(unet: nn.Module) -> int | None:
    """Most frames that the positional encoding along time allows; None is no limit."""
    lengths = [
        module.pe.shape[1]
        for name, module in unet.named_modules()
        if is_temporal(name) and name.endswith("pos_embed") and hasattr(module, "pe")
    ]
    return min(lengths, default=None)
