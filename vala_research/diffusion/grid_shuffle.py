"""RAVE as an editor: the network sees grids of frames, in new company at every step.

Kara et al. 2023 (arXiv 2312.04524), section 3.2. Nothing in the network changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vala_research import number_in
from vala_research.diffusion.cross_frame import CrossFrame, UnderPolicy
from vala_research.methods.grid_shuffle import from_grids, shuffled, to_grids


@dataclass(frozen=True)
class GridShuffle(CrossFrame):
    """Grids of side x side frames. A clip that does not fill them shows some frames twice.

    Differs from paper: its VAE codes whole grids, too; and its code drops frames that do not fill a
    grid.
    """

    side: int = 3
    fits_video_models: ClassVar[bool] = False

    def __post_init__(self):
        number_in("The side of RAVE's grids", self.side, 1, 16, whole=True)

    def n_seen(self, n_frames: int) -> int:
        return -(-n_frames // self.side**2) * self.side**2

    def at(self, t: int, n_frames: int, n_sites: int) -> Grids:
        order = tuple(shuffled(n_frames, self.side, self.drawing(t)))
        return Grids(side=self.side, permutation=order)


@dataclass(frozen=True)
class Grids(UnderPolicy):
    """Grids as the frames of a clip. permutation: the frame of each cell."""

    side: int = 1
    permutation: tuple[int, ...] = ()
    is_arranged: ClassVar[bool] = True

    def arranged(self, x: Float[Tensor, "*g f c h w"]) -> Float[Tensor, "*g r c y x"]:
        return to_grids(x, self.side, self.permutation)

    def restored(self, x: Float[Tensor, "g r c y x"]) -> Float[Tensor, "g f c h w"]:
        return from_grids(x, self.side, self.permutation)
