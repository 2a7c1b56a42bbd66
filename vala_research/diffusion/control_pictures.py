"""Pictures that ControlNets see: the frames themselves, their outlines, depths, poses.

ControlNet (Zhang et al. 2023, arXiv 2302.05543).
"""

from collections.abc import Callable
from colorsys import hsv_to_rgb
from os import PathLike

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from skimage.color import rgb2gray
from skimage.feature import canny
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.loading import load_network, reason_of, silenced
from vala_research.diffusion.patching import chunks

# Joints of OpenPose's body of 18 points (Cao et al. 2017, arXiv 1611.08050), which are joined. The
# points: nose, neck; right and left shoulder, elbow, wrist; right and left hip, knee, ankle; right
# and left eye; right and left ear.
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12),
    (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
N_POINTS = 18
COLOURS = [tuple(round(255 * x) for x in hsv_to_rgb(k / N_POINTS, 1, 1)) for k in range(N_POINTS)]
DEPTH_REMEDY = (
    "give the folder or hub id of a depth estimator with safetensors weights, such as "
    "depth-anything/Depth-Anything-V2-Small-hf."
)


def canny_edges(frames: Float[Tensor, " f 3 h w"], sigma: float = 1.0) -> Float[Tensor, " f 3 h w"]:
    """White outlines on black, by the Canny detector of scikit-image after a blur of sigma pixels.

    Differs from paper: the detector of OpenCV, on 8-bit frames with thresholds of 100 and 200, does
    not blur and finds somewhat more edges.
    """
    grey = rgb2gray(frames.detach().cpu().double().numpy(), channel_axis=1)
    edges = torch.stack([torch.from_numpy(canny(frame, sigma)) for frame in grey])
    return edges[:, None].expand(-1, 3, -1, -1).to(frames)


@torch.no_grad()
def depth_maps(
    frames: Float[Tensor, " f 3 h w"], model: str | PathLike, frames_per_call: int = 8
) -> Float[Tensor, " f 3 h w"]:
    """Depths as ControlNets see them: near is white, far is black, on one scale for the clip.

    frames: in [0, 1], on the device that estimates. model: a folder or hub id of a depth estimator
        of transformers (MiDaS, Depth Anything, ZoeDepth) with safetensors weights.
    Raises InputError.
    """
    from diffusers.utils import logging as ours
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    from transformers.utils import logging as theirs

    what = f"The depth estimator {str(model)!r}"
    network = load_network(AutoModelForDepthEstimation, model, what, DEPTH_REMEDY)
    network = network.to(frames.device)
    try:
        with silenced(ours, theirs):
            processor = AutoImageProcessor.from_pretrained(str(model), trust_remote_code=False)
    except Exception as error:
        raise InputError(f"{what} cannot be loaded ({reason_of(error)}): {DEPTH_REMEDY}") from error

    found, sides = [], [tuple(frames.shape[-2:])]
    for part in chunks(len(frames), frames_per_call):
        asked = processor(list(frames[part].cpu()), do_rescale=False, return_tensors="pt")
        estimated = network(asked["pixel_values"].to(frames.device))
        maps = processor.post_process_depth_estimation(estimated, sides * len(frames[part]))
        found += [one["predicted_depth"].float() for one in maps]
    depths = torch.stack(found)

    # Estimators of metres say how far, all others how near.
    config = network.config
    is_far = getattr(config, "depth_estimation_type", "") == "metric"
    if is_far or config.model_type == "zoedepth":
        depths = 1 / depths.clamp(min=1e-3)
    low, high = depths.min(), depths.max()
    scaled = (depths - low) / (high - low).clamp(min=1e-12)
    return scaled[:, None].expand(-1, 3, -1, -1).to(frames)


def pose_pictures(
    points: Float[Tensor, " f p 18 3"], height: int, width: int
) -> Float[Tensor, " f 3 h w"]:
    """Skeletons in OpenPose's colours on black: f frames of p people of 18 points.

    points: x, y in pixels, and a confidence; a point of confidence 0 or less is not drawn.
    """
    return torch.stack([_skeletons(people, height, width) for people in points.cpu().double()])


def _skeletons(people: Tensor, height: int, width: int) -> Tensor:
    """People of one frame, as 3 h w."""
    picture = Image.new("RGB", (width, height))
    draw, radius = ImageDraw.Draw(picture), max(1.0, min(height, width) / 128)
    for person in people.tolist():
        seen = {k: (x, y) for k, (x, y, confidence) in enumerate(person) if confidence > 0}
        for colour, (a, b) in zip(COLOURS, LIMBS, strict=False):
            if a in seen and b in seen:
                darker = tuple(round(0.6 * x) for x in colour)
                draw.line([seen[a], seen[b]], fill=darker, width=round(2 * radius))
        for k, (x, y) in seen.items():
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=COLOURS[k])
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


PICTURES: dict[str, Callable[[Tensor], Tensor]] = {
    "frames": lambda frames: frames, "canny": canny_edges,
}  # fmt: skip
