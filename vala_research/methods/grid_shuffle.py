"""Grid shuffle: frames meet as cells of one large picture, in new company at every step.

Kara et al. 2023, RAVE (arXiv 2312.04524), section 3.2. A plain image model sees a grid of
side x side frames, so that its attention, convolutions and norms see them together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError


def shuffled(n_frames: int, side: int, generator: torch.Generator | None = None) -> list[int]:
    """A random order of all frames that fills whole grids of side x side frames.

    Frames of the order's beginning fill the cells that are left over in the last grid.

    Differs from paper: its code drops the frames that do not fill a grid.
    """
    if side < 1:
        raise InputError(f"The side of the grids is {side}: give 1 frame or more.")
    order = torch.randperm(n_frames, generator=generator).tolist()
    n_cells = -(-n_frames // side**2) * side**2
    return [order[i % n_frames] for i in range(n_cells)]


def to_grids(
    z: Float[Tensor, "*g f c h w"], side: int, permutation: Sequence[int]
) -> Float[Tensor, "*g n c y x"]:
    """Lay frames out in grids, row by row. permutation: the frame of each cell, see `shuffled`."""
    cells = z[..., list(permutation), :, :, :]
    return rearrange(
        cells, "... (n row column) c h w -> ... n c (row h) (column w)", row=side, column=side
    )


def from_grids(
    grids: Float[Tensor, "*g n c y x"], side: int, permutation: Sequence[int]
) -> Float[Tensor, "*g f c h w"]:
    """Take grids apart: the way back of `to_grids`.

    Of a frame that fills several cells, the first cell counts.
    """
    cells = rearrange(
        grids, "... n c (row h) (column w) -> ... (n row column) c h w", row=side, column=side
    )
    cell_of = {frame: cell for cell, frame in reversed(list(enumerate(permutation)))}
    return cells[..., [cell_of[frame] for frame in sorted(cell_of)], :, :, :]
