"""Metrics of where the object is: is it there, on its path, of its size, and does it move smoothly.

For clips of the sprite world, whose true edit is known. The edited clip and the rendered truth are
searched alike for the object's colour (`sprites.finder`), frame by frame, so the truth scores
exactly 0. A frame counts if the object is seen in the truth. Frames in which the clip lacks the
object have no centre: read `path_error`, `size_error` and `jitter` beside `presence`.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vala_research import InputError
from vala_research.evaluation.checks import checked
from vala_research.sprites.finder import find_object
from vala_research.sprites.render import render
from vala_research.sprites.scene import Scene


@dataclass(frozen=True)
class Placement:
    """Where an object is in each frame, in pixels. A frame without it is NaN.

    centre: (x, y), the mean of the pixels that it covers. extent: their root mean square distance
    from the centre. shot: number of the shot; no motion is measured across a cut.
    """

    centre: Float[Tensor, "f 2"]
    extent: Float[Tensor, " f"]
    shot: Int[Tensor, " f"]

    @property
    def found(self) -> Bool[Tensor, " f"]:
        return self.extent.isfinite()


def placement_row(frames: Float[Tensor, "..."], scene: Scene) -> dict[str, float]:
    """Measure presence, path_error, size_error and jitter; the clip is searched once.

    Raises InputError for frames that are not those of a sprite clip, which is square.
    """
    frames = checked(frames)
    n, channels, h, w = frames.shape
    if channels != 3 or h != w:
        raise InputError(f"frames have shape {tuple(frames.shape)}: give f 3 h w, with h = w.")
    truth, shots = true_placement(scene, n, h), (scene, *scene.then)
    clip = placement(find_object(frames, [shots[i].colour for i in truth.shot]))
    off = clip.centre - truth.centre
    return {
        "presence": clip.found[truth.found].double().mean().item(),
        "path_error": _root_mean_square(off.norm(dim=1)),
        "size_error": _root_mean_square(clip.extent / truth.extent - 1),
        "jitter": _jitter(off, truth.shot),
    }


@lru_cache(maxsize=64)  # a clip's edits under many settings share it
def true_placement(scene: Scene, n_frames: int, size: int) -> Placement:
    """Placement of the object in the scene's rendering."""
    clip, shots = render(scene, n_frames, size), (scene, *scene.then)
    cover = find_object(clip.frames, [shots[i].colour for i in clip.scene_index])
    return placement(cover, clip.scene_index)


def placement(cover: Float[Tensor, "f h w"], shot: Int[Tensor, " f"] | None = None) -> Placement:
    """Centre and extent of what a mask covers."""
    n, h, w = cover.shape
    mass = cover.double() / cover.double().sum((1, 2), keepdim=True)  # 0 / 0 is NaN
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    at = torch.stack([x, y]).double()  # 2 h w
    centre = (mass[:, None] * at).sum((2, 3))
    square = (mass[:, None] * (at - centre[..., None, None]).square()).sum((1, 2, 3))
    return Placement(centre, square.sqrt(), torch.zeros(n).long() if shot is None else shot)


def presence(frames: Float[Tensor, "..."], scene: Scene) -> float:
    """Share of frames in which an object of the scene's colour is found; larger is better.

    In [0, 1], over the frames in which the truth shows it; NaN if it never does.
    """
    return placement_row(frames, scene)["presence"]


def path_error(frames: Float[Tensor, "..."], scene: Scene) -> float:
    """Root mean square distance of the object's centre to its true path; pixels, smaller is better.

    Over the frames in which the object is found (see `presence`); NaN if there is none.
    """
    return placement_row(frames, scene)["path_error"]


def size_error(frames: Float[Tensor, "..."], scene: Scene) -> float:
    """Root mean square relative error of the object's extent; smaller is better, 0 is right.

    extent / true extent - 1: 0.5 for an object 1.5 times as large. The extent is the root mean
    square distance of the object's points from its centre. Frames as in `path_error`.
    """
    return placement_row(frames, scene)["size_error"]


def jitter(
    frames: Float[Tensor, "..."] | None = None,
    scene: Scene | None = None,
    mask: Float[Tensor, "..."] | Bool[Tensor, "..."] | None = None,
) -> float:
    """How the object trembles about its path; pixels per frame squared, smaller is better.

    Root mean square of |d_t-1 - 2 d_t + d_t+1|, where d is the object's centre less its true one.
    So a constant or a steady displacement scores 0, and noise of s pixels per axis 3.5 s. Over
    three frames in succession in which the object is found, without a cut; NaN if there are none.

    mask: where the object is (f 1 h w, in [0, 1]), in place of frames. scene: the truth; without
    it, d is the mask's centre itself, so that the object's own acceleration counts too.
    """
    if mask is None:
        if frames is None or scene is None:
            raise InputError("jitter lacks what it measures: give frames and scene, or a mask.")
        return placement_row(frames, scene)["jitter"]
    mask = checked(mask, name="mask")
    n, channels, h, w = mask.shape
    if channels != 1 or mask.min() < 0 or mask.max() > 1 or (scene and h != w):
        raise InputError(f"mask has shape {tuple(mask.shape)}: give f 1 h w in [0, 1], as frames.")
    clip = placement(mask[:, 0])
    if scene is None:
        return _jitter(clip.centre, clip.shot)
    truth = true_placement(scene, n, h)
    return _jitter(clip.centre - truth.centre, truth.shot)


def _jitter(off: Float[Tensor, "f 2"], shot: Int[Tensor, " f"]) -> float:
    bend = off[:-2] - 2 * off[1:-1] + off[2:]  # none of fewer than three frames
    return _root_mean_square(bend.norm(dim=1)[shot[2:] == shot[:-2]])


def _root_mean_square(values: Float[Tensor, " n"]) -> float:
    """Over the values that are not NaN; NaN if there are none."""
    return values.square().nanmean().sqrt().item()
