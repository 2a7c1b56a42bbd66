"""FLATTEN as an editor: attention to all frames, then along the trajectories of the optical flow.

Cong et al. 2023 (arXiv 2310.05922), section 4.2, as in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from vala_research import InputError, chosen_from
from vala_research.diffusion.attention import extended
from vala_research.diffusion.attention_processor import FrameAttention, gathered, projected
from vala_research.diffusion.cross_frame import CrossFrame, Meeting
from vala_research.diffusion.patching import chunks
from vala_research.methods.optical_flow import estimate_flow
from vala_research.methods.trajectories import Trajectories, linked

TRAJECTORIES_AT_ONCE = 2**14


@dataclass(frozen=True, eq=False)
class TrajectoryAttention(CrossFrame):
    """Every frame attends to all frames; in the finest layers, each site then to its trajectory.

    flow: from each frame to the next, in pixels of the clip, dx first. valid: where it may be
    trusted. None estimates both on the clip by DIS.
    queries: of the second attention: "layer", the layer's own queries and keys, as in the released
        scripts; or "output", the first attention's output. Values are its output.
    norms_frames: see `LayeredAttention`.
    trajectories: of this clip, once it is known.

    Differs from paper: its code estimates the flow by RAFT.
    """

    flow: Float[Tensor, "p 2 y x"] | None = None
    valid: Bool[Tensor, "p 1 y x"] | None = None
    queries: str = "layer"
    norms_frames: bool = True
    trajectories: Trajectories | None = None

    def __post_init__(self):
        chosen_from("queries along trajectories", self.queries, ("layer", "output"))

    def of_clip(
        self, z_0: Float[Tensor, "f c h w"], frames: Float[Tensor, "f 3 y x"] | None,
        generator: torch.Generator | None,
    ) -> TrajectoryAttention:  # fmt: skip
        if self.trajectories is not None:
            return self
        seeded = super().of_clip(z_0, frames, generator)
        flow, valid = self.flow, self.valid
        if flow is None and len(z_0) > 1:
            if frames is None:
                raise InputError(
                    "Trajectories follow the optical flow of the clip, and only latents are given: "
                    "give the video too, or TrajectoryAttention(flow)."
                )
            flow, valid = estimate_flow(frames)
        if flow is None:  # a single frame
            flow = z_0.new_zeros(0, 2, *z_0.shape[2:]).cpu()
        if len(flow) != len(z_0) - 1:
            raise InputError(
                f"The optical flow has {len(flow)} fields and the clip {len(z_0)} frames: give one "
                "field from each frame to the next."
            )
        linking = flow.cpu(), *z_0.shape[2:], None if valid is None else valid.cpu()
        return replace(seeded, trajectories=linked(*linking, seeded.drawing(0)))

    def inverting(self) -> TrajectoryAttention:
        return self

    def at(self, t: int, n_frames: int, n_sites: int) -> Paths:
        if self.trajectories is None or self.trajectories.of_sites.shape != (n_frames, n_sites):
            raise InputError(
                "The trajectories are those of another clip: leave them to VideoEditPipeline."
            )
        return Paths(norms_frames=self.norms_frames, settings=self)


@dataclass(frozen=True, eq=False)
class Paths(Meeting):
    """All frames of a clip, and the trajectories through them."""

    settings: TrajectoryAttention = TrajectoryAttention()

    def processor(
        self, layer: str, n_branches: int, frames_per_chunk: int, is_injected: bool
    ) -> FrameAttention:
        return AlongPaths(n_branches, frames_per_chunk, is_injected, self.settings)


@dataclass
class AlongPaths(FrameAttention):
    """Attention to all frames, then along trajectories where a layer has a token per site."""

    n_branches: int
    frames_per_chunk: int
    is_injected: bool
    settings: TrajectoryAttention

    def output(self, attn: Attention, x: Float[Tensor, "g f n c"]) -> Float[Tensor, "g f n c"]:
        out = torch.empty_like(x)
        paths = self.settings.trajectories
        is_finest = x.shape[2] == paths.of_sites.shape[1]
        for g, branch in enumerate(x):
            layout = self.layout(x, g)
            q, k, v = attn.to_q(layout), attn.to_k(layout), attn.to_v(branch)
            seen = extended(k, v, "")
            y = torch.empty_like(v)
            for frames in chunks(len(branch), self.frames_per_chunk):
                y[frames] = gathered(attn, q[frames], *seen(frames))
            if is_finest:
                q, k = (q, k) if self.settings.queries == "layer" else (y, y)
                y = along(attn, q, k, y, paths)
            for frames in chunks(len(branch), self.frames_per_chunk):
                out[g, frames] = projected(attn, y[frames])
        return out


def along(
    attn: Attention,
    q: Float[Tensor, "f n d"],
    k: Float[Tensor, "f n d"],
    v: Float[Tensor, "f n d"],
    paths: Trajectories,
) -> Float[Tensor, "f n d"]:
    """Attention of each site to the sites of its trajectory."""
    paths = Trajectories(paths.of_sites.to(v.device), paths.sites.to(v.device))
    out = v.new_empty(len(paths.sites), len(v), v.shape[-1])
    for some in chunks(len(paths.sites), TRAJECTORIES_AT_ONCE):
        part = Trajectories(paths.of_sites, paths.sites[some])
        heads = [
            rearrange(part.gathered(x), "p f (head d) -> p head f d", head=attn.heads)
            for x in (q, k, v)
        ]
        mask = part.visits[:, None, None, :]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        out[some] = rearrange(mixed, "p head f d -> p f (head d)")
    return paths.scattered(out)
