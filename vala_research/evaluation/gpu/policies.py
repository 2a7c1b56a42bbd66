"""What a policy of attention saves in seconds, beside what it saves in FLOPs."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel, WanTransformer3DModel
from torch import nn

from vala_research.diffusion.attending import policy_of_clip
from vala_research.diffusion.attention import Keyframes
from vala_research.evaluation.flops import (
    bare_forward,
    forward_flops,
    meta_policy,
    meta_unet,
    meta_wan,
)
from vala_research.evaluation.gpu.machine import Machine, attempted, frozen, random_weights
from vala_research.methods.anchors import AnchorSettings

NATIVE = "all frames"
OF_BOTH: dict[str, Any] = {
    NATIVE: "extended", "own": "own", "own and 2 key frames": Keyframes("uniform", 2),
    "own and 2 site anchors": AnchorSettings(2), "own and 4 site anchors": AnchorSettings(4),
}  # fmt: skip
OF_IMAGES: dict[str, Any] = {
    "sparse causal": "sparse_causal",
    "256 token anchors": AnchorSettings(256, granularity="token"),
}


def policy_speed(machine: Machine) -> Iterator[dict]:
    """Yield one row per network and policy: a forward of all frames, in half precision.

    time, FLOPs: over those of the attention among all frames. gib: peak memory, weights included.
    """
    scale = machine.scale
    networks = {
        "image model": (UNet2DConditionModel, meta_unet, scale.unet, scale.dtype,
                        (scale.frames[-1], scale.side // 8, scale.side // 8), OF_BOTH | OF_IMAGES),
        "video transformer": (WanTransformer3DModel, meta_wan, scale.transformer,
                              scale.transformer_dtype, scale.latents, OF_BOTH),
    }  # fmt: skip
    for name, (cls, meta, config, dtype, shape, policies) in networks.items():
        with random_weights(machine):
            network = frozen(cls(**config), dtype)
        weightless, native = meta(config), {}
        for policy, attention in policies.items():
            latents = f"{shape[1]}x{shape[2]}"
            yield attempted(
                {"network": name, "frames": shape[0], "latents": latents, "policy": policy},
                lambda a=attention, n=network, w=weightless, s=shape, first=native: timed(
                    machine, n, w, a, s, first
                ),
                machine,
            )
        del network
        machine.clear()


def timed(
    machine: Machine, network: nn.Module, weightless: nn.Module, attention: Any,
    shape: tuple[int, int, int], native: dict[str, float],
) -> dict:  # fmt: skip
    """Seconds and FLOPs of a forward under a policy, over those of `native`, which the first sets.

    shape: frames, height and width of the latents.
    """
    n, height, width = shape
    draw = torch.Generator().manual_seed(0)
    z_0 = torch.randn(n, network.config.in_channels, height, width, generator=draw)
    policy = policy_of_clip(attention, z_0.to(machine.device), draw)
    forward = bare_forward(network, policy, z_0.to(machine.device, network.dtype)[None])
    gib = machine.peak_gib(forward)  # it also warms up
    seconds = machine.seconds(forward, repeats=3)
    flops = forward_flops(weightless, meta_policy(attention, *shape), *shape)
    native.setdefault("seconds", seconds)
    native.setdefault("flops", flops)
    over = {"time": seconds / native["seconds"], "FLOPs": flops / native["flops"]}
    return {"seconds": seconds, "TFLOP/s": flops / seconds / 1e12, **over, "gib": gib}
