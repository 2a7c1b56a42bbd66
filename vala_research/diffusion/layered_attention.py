"""vid2vid-zero as an editor: attention to all frames in some layers, sparse-causal in the others.

Wang et al. 2023 (arXiv 2303.17599), section 3.3, as in the released code. Its inflated network has
group norms over all frames, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vala_research import chosen_from
from vala_research.diffusion.attention import POLICIES
from vala_research.diffusion.attention_processor import SelfAttention
from vala_research.diffusion.cross_frame import CrossFrame, Meeting

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
        return Layers(norms_frames=self.norms_frames, settings=self)


@dataclass(frozen=True)
class Layers(Meeting):
    """All frames of a clip. settings: which policy a layer has."""

    settings: LayeredAttention = LayeredAttention()

    def processor(
        self, layer: str, n_branches: int, frames_per_chunk: int, is_injected: bool
    ) -> SelfAttention:
        names = (n for start, n in self.settings.policies.items() if layer.startswith(start))
        policy = POLICIES[next(names, self.settings.others)]
        return SelfAttention(policy, layer, n_branches, frames_per_chunk, is_injected)
