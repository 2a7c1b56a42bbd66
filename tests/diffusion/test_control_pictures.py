"""Outlines, depths and poses that ControlNets see; tiny estimators, about 5 s."""

import pytest
import torch
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
)

from vala_research import InputError
from vala_research.diffusion.control_pictures import COLOURS, depth_maps, pose_pictures

SIDE = 28


def estimator(folder, kind: str):
    """Folder of a random Depth Anything with its image processor."""
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    torch.manual_seed(0)
    stages = [f"stage{k}" for k in (1, 2, 3, 4)]
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=SIDE, patch_size=14,
        out_features=stages, reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8, head_hidden_size=4, patch_size=14, depth_estimation_type=kind,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    sides = {"height": SIDE, "width": SIDE}
    DPTImageProcessorPil(size=sides, ensure_multiple_of=14).save_pretrained(folder)
    return folder


def test_depths_share_one_scale_over_the_clip(tmp_path):
    """Near is white: what estimates metres is turned round. Chunks change nothing."""
    frames = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    near = depth_maps(frames, estimator(tmp_path, "relative"))
    assert near.shape == frames.shape and (near.min(), near.max()) == (0, 1)
    assert torch.equal(near[:, 0], near[:, 2]) and near.amax((1, 2, 3)).min() < 1
    torch.testing.assert_close(depth_maps(frames, tmp_path, frames_per_call=1), near)


def test_an_estimator_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="depth estimator '/nowhere'.*Depth-Anything"):
        depth_maps(torch.rand(1, 3, 32, 32), "/nowhere")
    folder = estimator(tmp_path, "relative")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        depth_maps(torch.rand(1, 3, 32, 32), folder)


def test_a_pose_shows_its_points_in_their_colours():
    """Two people in one frame; a point without confidence is not drawn, nor its limbs."""
    points = torch.zeros(2, 2, 18, 3)
    points[0, 0, 1] = torch.tensor([10.0, 20.0, 1.0])  # neck
    points[0, 0, 2] = torch.tensor([30.0, 20.0, 1.0])  # right shoulder
    points[0, 1, 4] = torch.tensor([50.0, 50.0, 1.0])  # right wrist
    points[0, 1, 3] = torch.tensor([60.0, 60.0, 0.0])
    pictures = pose_pictures(points, 64, 72)
    assert pictures.shape == (2, 3, 64, 72) and not pictures[1].any()
    for k, (x, y) in ((1, (10, 20)), (2, (30, 20)), (4, (50, 50))):
        assert (255 * pictures[0, :, y, x]).round().int().tolist() == list(COLOURS[k])
    assert pictures[0, :, 20, 20].any() and not pictures[0, :, 60, 60].any()
    assert not pictures[0, :, 55, 55].any()
