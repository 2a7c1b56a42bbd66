"""How frames meet where a lookup of keys and values does not say it: the editors of other papers.

A `CrossFrame` is an argument `attention`, like a policy. At every call of the network it says how
the frames of this call meet: which frames are seen, in which layout, and by which processors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vala_research.diffusion.attention import Policy, own
from vala_research.diffusion.attention_processor import FrameAttention, SelfAttention
from vala_research.diffusion.patching import Patch, is_temporal


@dataclass(frozen=True)
class Meeting:
    """How the frames of one call of the network meet.

    seen: the frames of the clip that the network sees, in order, some of them perhaps twice. kept:
    the places of the clip's own frames among these. norms_frames: the group norms of the resnets
    are over all frames, which no module may then see in chunks.
    """

    seen: slice | list[int] = field(default_factory=lambda: slice(None))
    kept: slice = field(default_factory=lambda: slice(None))
    norms_frames: bool = False
    is_arranged: ClassVar[bool] = False  # the network sees another layout than frames

    def processor(
        self, layer: str, n_branches: int, frames_per_chunk: int, is_injected: bool
    ) -> FrameAttention:
        """The processor of a self-attention. When injecting, the last branch is the source."""
        raise NotImplementedError

    def patches(self, n_branches: int) -> list[Patch]:
        """Changes to other modules."""
        return [joint_norms(n_branches)] if self.norms_frames else []

    def arranged(self, x: Float[Tensor, "*g f c h w"]) -> Float[Tensor, "*g r c y x"]:
        """Latents, or pictures of the frames, in the layout that the network sees."""
        return x

    def restored(self, x: Float[Tensor, "g r c y x"]) -> Float[Tensor, "g f c h w"]:
        """The way back of `arranged`."""
        return x


@dataclass(frozen=True)
class UnderPolicy(Meeting):
    """All frames of a clip, and a policy that says to which of them each one attends."""

    policy: Policy = own

    def processor(
        self, layer: str, n_branches: int, frames_per_chunk: int, is_injected: bool,
        injects_values: bool = False,
    ) -> SelfAttention:  # fmt: skip
        return SelfAttention(
            self.policy, layer, n_branches, frames_per_chunk, is_injected, injects_values
        )


@dataclass(frozen=True)
class CrossFrame:
    """Base of the editors; each is a frozen dataclass of its settings.

    seed: of all that is drawn. None is drawn from the generator of the edit.
    needs_source: an edit has the source as its last branch at every step. fits_video_models: frames
    stay where they are, so that motion modules see them in order.
    """

    seed: int | None = field(default=None, kw_only=True)
    needs_source: ClassVar[bool] = False
    fits_video_models: ClassVar[bool] = True

    def of_clip(
        self, z_0: Float[Tensor, "f c h w"], frames: Float[Tensor, "f 3 y x"] | None,
        generator: torch.Generator | None,
    ) -> Any:  # fmt: skip
        """The editor of one clip. z_0: its clean latents; frames: the clip, if known."""
        if self.seed is not None:
            return self
        return replace(self, seed=int(torch.randint(2**31, (), generator=generator)))

    def inverting(self) -> Any:
        """The attention of the inversion: most editors invert frame by frame."""
        return "own"

    def at(self, t: int, n_frames: int, n_sites: int) -> Meeting:
        """How the frames of a clip meet at timestep t. n_sites: of one frame of latents."""
        raise NotImplementedError

    def n_seen(self, n_frames: int) -> int:
        """Frames that the network sees in one call."""
        return n_frames

    def drawing(self, t: int) -> torch.Generator:
        """The generator of what is drawn at timestep t: the same in every edit with this seed."""
        return torch.Generator().manual_seed(1_000_003 * (self.seed or 0) + t)


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
