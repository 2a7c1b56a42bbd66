"""FLOPs of a network's forward, counted without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel, WanTransformer3DModel
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vala_research import InputError
from vala_research.diffusion.attending import CROSS_FRAME, Attending
from vala_research.diffusion.attention import (
    ANCHORS,
    AnchorAttention,
    KeyframeAttention,
    Keyframes,
    Policy,
)
from vala_research.diffusion.backbone import UNet
from vala_research.diffusion.cross_frame import CrossFrame
from vala_research.diffusion.injection import attention_patches
from vala_research.diffusion.patching import chunking, patched
from vala_research.diffusion.pooled_text import conditions, reads_pooled
from vala_research.diffusion.records import is_transformer, record_of, text_width
from vala_research.diffusion.token_flow import TokenFlow
from vala_research.diffusion.trajectory_attention import TrajectoryAttention
from vala_research.methods.anchors import Anchors, AnchorSettings

STABLE_DIFFUSION_1_5 = dict(
    sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, cross_attention_dim=768,
    attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280),
    down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
)  # fmt: skip
STABLE_DIFFUSION_XL = dict(
    sample_size=128, in_channels=4, out_channels=4, layers_per_block=2, cross_attention_dim=2048,
    attention_head_dim=(5, 10, 20), block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
    up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)  # fmt: skip


WAN_1_3B = dict(
    patch_size=(1, 2, 2), num_attention_heads=12, attention_head_dim=128, in_channels=16,
    out_channels=16, text_dim=4096, freq_dim=256, ffn_dim=8960, num_layers=30,
)  # fmt: skip
WAN_14B = WAN_1_3B | dict(num_attention_heads=40, ffn_dim=13824, num_layers=40)


def meta_wan(config: Mapping = WAN_1_3B) -> WanTransformer3DModel:
    """Build a video transformer without weights."""
    with torch.device("meta"):
        return WanTransformer3DModel(**config).eval().requires_grad_(False)


def meta_unet(config: Mapping = STABLE_DIFFUSION_1_5) -> UNet2DConditionModel:
    """Build a UNet without weights: nothing is downloaded, nothing is computed."""
    with torch.device("meta"):
        return UNet2DConditionModel(**config).eval().requires_grad_(False)


def meta_anchors(n_frames: int, n_sites: int, n_anchors: int, granularity: str) -> Anchors:
    """Build anchors of shapes alone: the cost of attention does not depend on their values."""
    f, n, k, d = n_frames, n_sites, n_anchors, 4
    sizes = dict(
        responsibilities=(f, n, k), directions=(k, d), concentrations=(k,), weights=(k,),
        summaries=(f, k, d),
    )  # fmt: skip
    tensors = {name: torch.empty(size, device="meta") for name, size in sizes.items()}
    return Anchors(**tensors, objective=[], granularity=granularity)


def meta_policy(
    attention: Attending | None, n_frames: int, height: int, width: int
) -> str | Policy | CrossFrame | None:
    """The attention policy of a clip by its shapes alone: its cost does not depend on the content.

    As `policy_of_clip`. height, width: of the latents. Trajectories are those of a still clip.
    """
    editor = CROSS_FRAME.get(attention, attention) if isinstance(attention, str) else attention
    if isinstance(editor, CrossFrame):
        z_0 = torch.zeros(n_frames, 1, height, width)
        if isinstance(editor, TokenFlow):
            editor = replace(editor, groups=tuple((i,) for i in range(0, n_frames, editor.batch)))
        if isinstance(editor, TrajectoryAttention):
            editor = replace(editor, flow=torch.zeros(n_frames - 1, 2, height, width), valid=None)
        return editor.of_clip(z_0, None, torch.Generator())
    if isinstance(attention, Keyframes):
        return KeyframeAttention(tuple(range(attention.n)))
    settings = ANCHORS if attention == "anchors" else attention
    if isinstance(settings, AnchorSettings):
        sizes = height * width, settings.n_anchors, settings.granularity
        return AnchorAttention(meta_anchors(n_frames, *sizes), (height, width))
    return attention


def relative(flops: Mapping[str, float], to: str) -> dict[str, float]:
    """FLOPs of each setting over the FLOPs of the setting `to`."""
    return {name: count / flops[to] for name, count in flops.items()}


def forward_flops(
    unet: UNet,
    attention: str | Policy | CrossFrame,
    n_frames: int,
    height: int,
    width: int,
    n_branches: int = 1,
    frames_per_chunk: int | None = None,
    n_text: int = 77,
) -> int:
    """Count the FLOPs of one forward of a UNet or video transformer, of all frames and branches.

    n_frames, height, width: of the latents. The work of the policy on keys and values is included:
    copies cost nothing, compression does.
    Raises InputError for a UNet with weights: on the CPU, torch's counter misses the attention.
    """
    if unet.device.type != "meta":
        raise InputError(f"The UNet is on {unet.device}: count on the meta device, by meta_unet.")
    z = torch.empty(n_branches, n_frames, unet.config.in_channels, height, width, device="meta")
    forward = bare_forward(unet, attention, z, n_text, frames_per_chunk)
    with FlopCount() as count, ShapesAlone():
        forward()
    return count.total


def bare_forward(
    unet: UNet, attention: str | Policy | CrossFrame, z: Tensor, n_text: int = 77,
    frames_per_chunk: int | None = None,
) -> Callable[[], None]:  # fmt: skip
    """A call of a network alone, all frames under a policy.

    z: branches f c h w, latents on the network's device and in its dtype. Its words are zeros.
    """
    n_branches, n_frames, _, height, width = z.shape
    size = n_frames if frames_per_chunk is None else frames_per_chunk
    if isinstance(attention, CrossFrame):
        attention = attention.at(0, n_frames, height * width)
        z = attention.arranged(z[:, attention.seen])
    patches = attention_patches(unet, attention, n_branches, size, size=(height, width))
    if size < n_frames:
        patches.append(chunking(n_branches, size))
    pixels = 8 * height, 8 * width
    if is_transformer(unet):
        text = z.new_zeros(n_branches, 1, n_text, text_width(unet))
        call = partial(record_of(unet).call, unet, z, 0.0, text, (*pixels, 4), {})
    else:
        z = z.flatten(0, 1)
        rows = n_text + reads_pooled(unet)  # the last one is the pooled text
        text = z.new_zeros(len(z), rows, unet.config.cross_attention_dim)
        call = partial(unet, z, 0, return_dict=False, **conditions(unet, text, pixels))

    @torch.no_grad()
    def forward() -> None:
        with patched(unet, *patches):
            call()

    return forward


class FlopCount(TorchDispatchMode):
    """Count the FLOPs inside the `with` block, by the formulas of torch's FlopCounterMode: `total`.

    That one also tells modules apart and takes operations apart that autograd has taken apart
    already: half of the time of an empty forward.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


class ShapesAlone(TorchFunctionMode):
    """Make what no counter counts a tensor of its shape: two thirds of an empty forward's time.

    Norms and activations are skipped, so is the bias of a linear layer. Attention is one operation,
    whose count is that of its two products. The peak of live tensors of an edit stays the same.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (F.group_norm, F.layer_norm, F.silu, F.gelu):
            return torch.empty_like(args[0])
        if func is F.linear:
            return F.linear(*args[:2])
        if func is F.scaled_dot_product_attention:
            return fused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention on the meta device in one operation; a mask changes neither count nor shape."""
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
