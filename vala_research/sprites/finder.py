"""Find the object of a known colour: which pixels it covers, to a fraction of a pixel.

1. Core: the pixels that are nearer to the asked colour than to any other colour of the palette and
   to any second tone of a background. Parts that almost touch are one. The core is the largest.
2. Cover: at the core's border, the share of the object's colour in the mixture with the ground.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, chosen_from
from vala_research.sprites.palette import COLOURS, tones
from vala_research.sprites.reader import MIN_AREA

FARTHEST = 0.3  # RGB distance from its colour's name that a pixel of the core may have
MIN_GAP = 0.2  # RGB distance between object and ground from which a mixture can be told apart
BRIDGE = 1 / 16  # parts that are no farther apart than this, in frame widths, are one


def find_object(
    frames: Float[Tensor, "f 3 h w"], colours: Sequence[str | None]
) -> Float[Tensor, "f h w"]:
    """Share of each pixel that the object of the asked colour covers, in [0, 1].

    colours: one name per frame; None asks for nothing. The frame's ground may be any: a part that
    reaches from one side of the frame to the opposite side is ground, and no object. A frame
    without the object is 0 everywhere. Raises InputError for unknown colours.
    """
    if len(colours) != len(frames):
        raise InputError(f"{len(colours)} colours for {len(frames)} frames: give one per frame.")
    for colour in {*colours} - {None}:
        chosen_from("sprite colour", colour, COLOURS)
    pixels = frames.detach().float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    covers = [
        np.zeros(frame.shape[:2], np.float32) if colour is None else _cover(frame, colour)
        for frame, colour in zip(pixels, colours, strict=True)
    ]
    return torch.from_numpy(np.stack(covers))


def _cover(frame: np.ndarray, colour: str) -> np.ndarray:
    """Cover of one frame, h w 3."""
    from scipy.ndimage import binary_dilation, distance_transform_edt

    core = _core(frame, colour)
    if not core.any():
        return core.astype(np.float32)

    # The ground under a mixed pixel is the nearest pixel that is neither core nor beside it.
    near = binary_dilation(core, np.ones((3, 3)))
    rows, columns = distance_transform_edt(near, return_distances=False, return_indices=True)
    ground = frame[rows, columns]

    # pixel = ground + cover (object - ground), by least squares over the three channels.
    along = np.median(frame[core], axis=0) - ground
    length = np.square(along).sum(-1)
    cover = ((frame - ground) * along).sum(-1) / np.maximum(length, MIN_GAP**2)
    cover = np.where(length < MIN_GAP**2, core, cover.clip(0, 1))
    return np.where(near, cover, 0).astype(np.float32)


def _core(frame: np.ndarray, colour: str) -> np.ndarray:
    """The pixels of the largest part of this colour; none where it is no object."""
    from scipy.ndimage import binary_dilation, label

    others = [t for name in COLOURS if name != colour for t in tones(name).numpy()]
    gap = np.linalg.norm(frame - np.array(COLOURS[colour]), axis=-1)
    rivals = np.stack([np.linalg.norm(frame - other, axis=-1) for other in others])
    mine = (gap < FARTHEST) & (gap < rivals.min(0))

    # Noise may split an object: parts that touch when they are grown by half a bridge are one.
    reach = max(1, round(BRIDGE * frame.shape[1] / 2))
    parts, _ = label(binary_dilation(mine, iterations=reach))
    sizes = np.bincount(parts[mine], minlength=2)
    core = mine & (parts == sizes[1:].argmax() + 1)
    spans = [{*first} & {*last} - {0} for first, last in
             ((parts[0], parts[-1]), (parts[:, 0], parts[:, -1]))]  # fmt: skip
    is_object = core.mean() >= MIN_AREA and not any(spans)
    return core if is_object else np.zeros_like(core)
