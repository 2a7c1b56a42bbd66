"""Partners of another latent space: rotated, untrained, or of another clip."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, radians, sin

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from vala_research.editing.plan import Plan
from vala_research.editing.source import Source
from vala_research.experiments.fldm.settings import FRAMEWISE
from vala_research.methods.fusion import FusionSchedule

SAME, UNTRAINED, OTHER_CLIP = "same space", "untrained", "another clip"


# Models of another space.


@dataclass(frozen=True)
class ForeignPlan(Plan):
    """A plan whose image sources live in another latent space than the pipeline's VAE.

    angle: degrees by which pairs of channels are rotated there; 0 is the same space, 180 flips
    every sign. is_trained: False is a network of random weights.
    """

    angle: float = 0.0
    is_trained: bool = True

    def inverting(self) -> str:
        return f"{super().inverting()} {self.angle} {self.is_trained}"

    def built(self, pipe) -> list[Source]:
        sources = super().built(pipe)
        unet = foreign_unet(pipe.unet, self.angle, self.is_trained)
        pairs = zip(self.sources, sources, strict=True)
        return [replace(s, unet=unet) if kind == "image" else s for kind, s in pairs]


def rotation(angle: float, n_channels: int) -> Float[Tensor, "c c"]:
    """Rotates channels 0 and 1, 2 and 3, ... by degrees: orthogonal, so that noise stays noise."""
    a = radians(angle)
    block = torch.tensor([[cos(a), -sin(a)], [sin(a), cos(a)]], dtype=torch.float64)
    pairs = torch.block_diag(*[block] * (n_channels // 2), *[torch.ones(1, 1)] * (n_channels % 2))
    return pairs.float()


@lru_cache(maxsize=8)
def foreign_unet(
    unet: UNet2DConditionModel, angle: float, is_trained: bool
) -> UNet2DConditionModel:
    """The network as it were, had its VAE rotated channels: eps'(R z) = R eps(z).

    R is folded into the first and the last convolution; all other weights are the given network's.
    """
    if not is_trained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = UNet2DConditionModel.from_config(unet.config)
        return fresh.to(unet.device, unet.dtype).eval().requires_grad_(False)
    if angle == 0:
        return unet
    found = copy.deepcopy(unet, {id(p): p for p in unet.parameters()})
    r = rotation(angle, unet.config.in_channels).to(unet.device)
    first, last = found.conv_in, found.conv_out
    first.weight = _frozen(torch.einsum("oiyx,ji->ojyx", first.weight.float(), r), unet)
    last.weight = _frozen(torch.einsum("ko,oiyx->kiyx", r, last.weight.float()), unet)
    last.bias = _frozen(r @ last.bias.float(), unet)
    return found


def _frozen(weight: Tensor, unet: UNet2DConditionModel) -> nn.Parameter:
    return nn.Parameter(weight.to(unet.dtype), requires_grad=False)


def foreign_plans(
    motion: str = "miniature",
    angles: Iterable[float] = (0, 30, 60, 90, 180),
    has_untrained: bool = True,
    schedule: FusionSchedule = FusionSchedule(),
) -> dict[str, ForeignPlan]:
    """A video model and an image model of the same space, of spaces rotated against it, of none."""
    plan = ForeignPlan(attentions=FRAMEWISE, motion=motion, schedule=schedule)
    found = {space_name(a): replace(plan, angle=float(a)) for a in angles}
    return found | ({UNTRAINED: replace(plan, is_trained=False)} if has_untrained else {})


def space_name(angle: float) -> str:
    return f"rotated by {angle:g}" if angle else SAME
