"""A clip in any form that users have it in, as one tensor of frames in [0, 1]."""

from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError


def as_frames(video: Any) -> Float[Tensor, "f 3 h w"]:
    """Convert a clip in any accepted form to one float tensor in [0, 1].

    video: one of
        a tensor f c h w, or a numpy array f h w c or f c h w, of floats in [0, 1] or of uint8;
        a list of PIL images;
        a batch of one of these, such as the `.frames` of an edit;
        an object with `.frames` of such a form.
    Raises InputError for an empty clip, other channels than 3, other ranges.
    """
    # To a tensor f c h w.
    video = _without_batch(getattr(video, "frames", video))
    if isinstance(video, list | tuple):
        video = _stack(video)
    if isinstance(video, np.ndarray):
        is_channels_last = video.ndim == 4 and video.shape[-1] in (1, 2, 3, 4)
        video = torch.from_numpy(np.ascontiguousarray(video))
        video = video.permute(0, 3, 1, 2) if is_channels_last else video
    if not isinstance(video, Tensor):
        raise InputError(
            f"The video is a {type(video).__name__}: give a tensor or array of frames, a list of "
            "PIL images, or a clip from read_clip."
        )
    _check_shape(video)

    # To floats in [0, 1].
    if video.dtype == torch.uint8:
        return video.float() / 255
    video = video if video.is_floating_point() else video.float()
    low, high = torch.stack(video.aminmax()).tolist()  # one question, whatever the device
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # a codec's rounding is forgiven; NaN is not
        raise InputError(
            f"The video's pixels run from {low:.3g} to {high:.3g}: give finite values in [0, 1] "
            "(divide by 255), or uint8."
        )
    return video if 0 <= low and high <= 1 else video.clamp(0, 1)  # a long clip is not copied


def once(video: Any, n_prompts: int) -> Any:
    """The clip of a list that repeats it once per prompt; any other video as it is."""
    is_list = isinstance(video, list | tuple) and _is_batch(video)
    repeats = is_list and len(video) == n_prompts and all(clip is video[0] for clip in video)
    return video[0] if repeats else video


def _is_batch(video: Any) -> bool:
    if isinstance(video, list | tuple):
        first = video[0] if video else None
        return isinstance(first, list | tuple) or getattr(first, "ndim", 0) == 4
    return getattr(video, "ndim", 0) == 5


def _without_batch(video: Any) -> Any:
    """The one clip of a batch; any other video as it is."""
    is_batch = _is_batch(video)
    if is_batch and len(video) > 1:
        raise InputError(
            f"The video holds {len(video)} clips: a call edits one, give one at a time."
        )
    return video[0] if is_batch else video


def _check_shape(video: Tensor) -> None:
    """Refuse all but f 3 h w with at least one frame."""
    if video.ndim != 4:
        raise InputError(
            f"The video has shape {tuple(video.shape)}: give one clip with axes frame, channel, "
            "height, width."
        )
    if 0 in video.shape:
        raise InputError(
            f"The video of shape {tuple(video.shape)} is empty: give at least one frame."
        )
    if video.shape[1] != 3:
        raise InputError(
            f"The video has {video.shape[1]} channels: give 3 (repeat grey ones, drop or blend "
            "alpha)."
        )


def _stack(images: list | tuple) -> np.ndarray:
    """Stack PIL images to one uint8 array f h w c."""
    if not images:
        raise InputError("The video is an empty list: give at least one frame.")
    if not all(isinstance(image, PIL.Image.Image) for image in images):
        kinds = sorted({type(image).__name__ for image in images})
        raise InputError(f"The video is a list of {', '.join(kinds)}: give a list of PIL images.")
    if len({image.size for image in images}) > 1:
        sizes = sorted({image.size for image in images})
        raise InputError(f"The frames have different sizes {sizes[:3]}: resize them to one.")
    return np.stack([np.asarray(image.convert("RGB")) for image in images])
