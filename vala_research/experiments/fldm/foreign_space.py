"""Image models of other latent spaces, made on purpose: rotated or untrained.

A rotated model is as good as the original, its latents have the same shape, and its configuration
does not reveal the rotation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import cos, radians, sin

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from vala_research.diffusion.controlnet import Control
from vala_research.editing.plan import Plan, kept_model
from vala_research.editing.source import Source
from vala_research.experiments.fldm.settings import FRAMEWISE
from vala_research.methods.fusion import FusionSchedule

SAME, UNTRAINED, OTHER_CLIP = "same space", "untrained", "another clip"


@dataclass(frozen=True)
class ForeignPlan(Plan):
    """A plan whose image sources live in another latent space than the pipeline's VAE.

    * angle: rotation of pairs of channels, in degrees. 0 is the same space, 180 flips every sign.
    * is_trained: False gives the image sources a network of random weights.
    """

    angle: float = 0.0
    is_trained: bool = True

    def inverting(self) -> str:
        return f"{super().inverting()} {self.angle} {self.is_trained}"

    def built(self, pipe) -> list[Source]:
        sources = super().built(pipe)
        make = partial(foreign_unet, angle=self.angle, is_trained=self.is_trained)
        unet = kept_model(pipe, (self.angle, self.is_trained), make)
        controls = [
            kept_model(pipe, (self.angle, c.network), partial(_foreign_control, c, self.angle))
            for c in pipe.controls
        ]
        pairs = zip(self.sources, sources, strict=True)
        return [
            replace(s, unet=unet, controls=controls) if kind == "image" else s for kind, s in pairs
        ]


def rotation(angle: float, n_channels: int) -> Float[Tensor, "c c"]:
    """Build the matrix that rotates channels 0 and 1, 2 and 3, ... by `angle` degrees.

    It is orthogonal: Gaussian noise stays Gaussian noise.
    """
    a = radians(angle)
    block = torch.tensor([[cos(a), -sin(a)], [sin(a), cos(a)]], dtype=torch.float64)
    pairs = torch.block_diag(*[block] * (n_channels // 2), *[torch.ones(1, 1)] * (n_channels % 2))
    return pairs.float()


def foreign_unet(
    unet: UNet2DConditionModel, angle: float, is_trained: bool
) -> UNet2DConditionModel:
    """Convert the network to a VAE with rotated channels: eps'(R z) = R eps(z).

    R is folded into the first and the last convolution. All other weights are shared with `unet`.
    Untrained networks are drawn with seed 0; the global random state is untouched.
    """
    if not is_trained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = UNet2DConditionModel.from_config(unet.config)
        return fresh.to(unet.device, unet.dtype).eval().requires_grad_(False)
    if angle == 0:
        return unet

    # Rotate what enters and what leaves.
    foreign, r = _turned(unet, angle)
    last = foreign.conv_out
    last.weight = _frozen(torch.einsum("ko,oiyx->kiyx", r, last.weight.float()), unet)
    last.bias = _frozen(r @ last.bias.float(), unet)
    return foreign


def _foreign_control(control: Control, angle: float, _unet: nn.Module) -> Control:
    """The ControlNet as it reads the rotated latents."""
    return replace(control, network=_turned(control.network, angle)[0]) if angle else control


def _turned(network: nn.Module, angle: float) -> tuple[nn.Module, Float[Tensor, "c c"]]:
    """A copy that shares all parameters but the first convolution, which turns latents back by R.

    Returns R too.
    """
    turned = copy.deepcopy(network, {id(p): p for p in network.parameters()})
    r = rotation(angle, network.config.in_channels).to(network.device)
    weight = torch.einsum("oiyx,ji->ojyx", turned.conv_in.weight.float(), r)
    turned.conv_in.weight = _frozen(weight, network)
    return turned, r


def _frozen(weight: Tensor, unet: nn.Module) -> nn.Parameter:
    return nn.Parameter(weight.to(unet.dtype), requires_grad=False)


def foreign_plans(
    motion: str = "miniature",
    angles: Iterable[float] = (0, 30, 60, 90, 180),
    has_untrained: bool = True,
    schedule: FusionSchedule = FusionSchedule(),
) -> dict[str, ForeignPlan]:
    """Plan one fusion of the video model per space of the image model: rotated, or untrained."""
    plan = ForeignPlan(attentions=FRAMEWISE, motion=motion, schedule=schedule)
    plans = {space_name(a): replace(plan, angle=float(a)) for a in angles}
    return plans | ({UNTRAINED: replace(plan, is_trained=False)} if has_untrained else {})


def space_name(angle: float) -> str:
    return f"rotated by {angle:g}" if angle else SAME
