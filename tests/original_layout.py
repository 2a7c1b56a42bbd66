"""The names that a checkpoint's weights had in the layout of Stable Diffusion's first trainers."""

import re
from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE = {
    "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "downsamplers.0": "downsample",
    "upsamplers.0": "upsample", "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_single_file(pipe: StableDiffusionPipeline, path: Path) -> Path:
    """Write the weights of a pipeline to one file."""
    weights = {}
    for name, x in pipe.unet.state_dict().items():
        weights["model.diffusion_model." + _unet_name(name, pipe.unet.config)] = x
    n_blocks = len(pipe.vae.config.block_out_channels)
    for name, x in pipe.vae.state_dict().items():
        new, x = _vae_name(name, x, n_blocks)
        weights["first_stage_model." + new] = x
    for name, x in pipe.text_encoder.state_dict().items():
        name = name.removeprefix("text_model.")
        weights["cond_stage_model.transformer.text_model." + name] = x
    save_file({k: x.contiguous() for k, x in weights.items()}, path)
    return path


def _replaced(name: str, table: dict[str, str]) -> str:
    for new, old in table.items():
        name = re.sub(rf"(^|\.){re.escape(new)}(?=\.)", rf"\g<1>{old}", name)
    return name


def _unet_name(name: str, config) -> str:
    n = config.layers_per_block
    is_resnet = ".resnets." in name
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
        side, block, kind, layer, rest = match.groups()
        block, layer = int(block), int(layer)
        if side == "down" and kind == "downsamplers":
            return f"input_blocks.{block * (n + 1) + n + 1}.0.op.{rest.removeprefix('conv.')}"
        if side == "up" and kind == "upsamplers":
            place = 2 if "Attn" in config.up_block_types[block] else 1
            return f"output_blocks.{block * (n + 1) + n}.{place}.{rest}"
        first = f"input_blocks.{block * (n + 1) + layer + 1}"
        first = first if side == "down" else f"output_blocks.{block * (n + 1) + layer}"
        name = f"{first}.{0 if kind == 'resnets' else 1}.{rest}"
    name = _replaced(name, UNET)
    return _replaced(name, RESNET) if is_resnet else name


def _vae_name(name: str, x: Tensor, n_blocks: int) -> tuple[str, Tensor]:
    if ".attentions." in name:
        name = _replaced(name, ATTENTION)
        if x.ndim == 2:  # once a convolution
            x = x[:, :, None, None]
    if match := re.match(r"(.*)\.(down|up)_blocks\.(\d+)\.(.*)", name):
        half, side, block, rest = match.groups()
        block = int(block) if side == "down" else n_blocks - 1 - int(block)
        name = f"{half}.{side}.{block}.{rest.replace('resnets', 'block')}"
    return _replaced(name, VAE), x
