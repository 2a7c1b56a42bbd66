"""vid2vid-zero as an editor: attention to all frames in some layers, sparse-causal in the others.

Wang et al. 2023 (arXiv 2303.17599), section 3.3, as in the released code. Its inflated network has
group norms over all frames, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from einops import rearrange
from torch import Tensor, nn

from vala_research import chosen_from
from vala_research.diffusion.attention import POLICIES
from vala_research.diffusion.attention_processor import SelfAttention
from vala_research.diffusion.cross_frame import CrossFrame, Meeting
from vala_research.diffusion.patching import Patch, is_temporal

# The first attention of the first encoder block, of the middle, and of the second decoder block.
RELEASED = {
    "down_blocks.0.attentions.0.": "extended", "mid_block.": "extended",
    "up_blocks.1.attentions.0.": "extended",
}  # fmt: skip


@dataclass(frozen=True)
class LayeredAttention(CrossFrame):
    """A policy per layer.

    policies: names of policies, by the beginning of a layer's name. others: of all other layers.
    norms_frames: whether the norms of the resnets are over all frames of a clip, also in the
        inversion. The inversion is frame by frame otherwise.

    Differs from paper: the paper describes dense attention everywhere; these are the layers of its
    code.
    """

    policies: Mapping[str, str] = field(default_factory=lambda: dict(RELEASED))
    others: str = "sparse_causal"
    norms_frames: bool = True

    def __post_init__(self):
        for name in (*self.policies.values(), self.others):
            chosen_from("attention of a layer", name, POLICIES)

    def inverting(self) -> LayeredAttention:
        return replace(self, policies={}, others="own")

    def at(self, t: int, n_frames: int, n_sites: int) -> Layers:
        return Layers(settings=self)


@dataclass(frozen=True)
class Layers(Meeting):
    """All frames of a clip. settings: which policy a layer has."""

    settings: LayeredAttention = LayeredAttention()

    @property
    def sees_all_at_once(self) -> bool:
        return self.settings.norms_frames

    def processor(
        self, layer: str, n_branches: int, frames_per_chunk: int, is_injected: bool
    ) -> SelfAttention:
        names = (n for start, n in self.settings.policies.items() if layer.startswith(start))
        policy = POLICIES[next(names, self.settings.others)]
        return SelfAttention(policy, layer, n_branches, frames_per_chunk, is_injected)

    def patches(self, n_branches: int) -> list[Patch]:
        return [joint_norms(n_branches)] if self.settings.norms_frames else []


def joint_norms(n_branches: int) -> Patch:
    """A patch by which the group norms of resnets, and the last one, are over all frames."""

    def selects(name: str, module: nn.Module) -> bool:
        parent, _, own = name.rpartition(".")
        is_last = name == "conv_norm_out"
        is_in_resnet = ".resnets." in f".{parent}." and own in ("norm1", "norm2")
        return isinstance(module, nn.GroupNorm) and not is_temporal(name) and (
            is_last or is_in_resnet
        )  # fmt: skip

    def wrap(_name: str, _module: nn.Module, forward: Callable) -> Callable:
        def over_frames(x: Tensor) -> Tensor:
            joint = rearrange(x, "(g f) c h w -> g c (f h) w", g=n_branches)
            return rearrange(forward(joint), "g c (f h) w -> (g f) c h w", h=x.shape[-2])

        return over_frames

    return Patch(selects, forward=wrap)
