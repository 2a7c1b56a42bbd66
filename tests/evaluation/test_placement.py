"""Where the object is: planted clips have the known presence, path error, size error and jitter.

Costs about 5 s of processor time.
"""

import math
from dataclasses import replace

import pytest
import torch

from vala_research import InputError
from vala_research.evaluation.metrics import jitter, path_error, presence, size_error
from vala_research.evaluation.placement import placement, placement_row
from vala_research.sprites.finder import find_object
from vala_research.sprites.palette import PATTERNS, SHAPES
from vala_research.sprites.render import render
from vala_research.sprites.scene import Motion, Scene

MOTION = Motion(start=(0.4, 0.45), end=(0.55, 0.55), bend=0.3, angle=(0, 0.2), size=(0.2, 0.22),
                pan=(0.05, 0.02))  # fmt: skip
SCENE = Scene("star", "red", "cyan", "striped", MOTION)
# The finder's own error on a pattern is at most .1 pixel: where a border crosses two tones.
NEAR = 0.1


def moved(scene: Scene, dx: float = 0, dy: float = 0, scale: float = 1, size: int = 64) -> Scene:
    """The scene with its object moved by pixels and scaled; the ground stays."""
    m = scene.motion
    start, end = ((x + dx / size, y + dy / size) for x, y in (m.start, m.end))
    sizes = tuple(scale * r for r in m.size)
    return replace(scene, motion=replace(m, start=start, end=end, size=sizes))


def alternating(scene: Scene, n: int, dx: float) -> torch.Tensor:
    """Frames whose object is shifted by dx, -dx, dx, ... pixels."""
    ways = [render(moved(scene, way * dx), n).frames for way in (1, -1)]
    return torch.stack([ways[i % 2][i] for i in range(n)])


def test_the_truth_is_present_and_scores_zero():
    for shape in SHAPES:
        for pattern in PATTERNS:
            scene = replace(SCENE, shape=shape, pattern=pattern)
            found = placement_row(render(scene, 4).frames, scene)
            assert found == {"presence": 1, "path_error": 0, "size_error": 0, "jitter": 0}


def test_a_clip_shifted_by_three_pixels():
    for scene in (SCENE, Scene("ring", "blue", "white", "dotted", MOTION)):
        for dx, dy in ((3, 0), (0, -3)):
            frames = render(moved(scene, dx, dy), 8).frames
            assert presence(frames, scene) == 1
            assert path_error(frames, scene) == pytest.approx(3, abs=NEAR)
            # A second difference of three errors of .05 on a pattern: .05 sqrt(1 + 4 + 1).
            assert jitter(frames, scene) < 3 * NEAR and size_error(frames, scene) < 0.02
    # The whole picture shifted: the object over the same ground has no error at all.
    frames = render(SCENE, 8).frames.roll(3, -1)
    assert path_error(frames, SCENE) == pytest.approx(3, abs=1e-9)
    assert jitter(frames, SCENE) == pytest.approx(0, abs=1e-9)
    assert size_error(frames, SCENE) == pytest.approx(0, abs=1e-9)


def test_motion_by_less_than_a_pixel_is_seen():
    for shape in ("circle", "ring", "cross", "star"):
        scene = replace(SCENE, shape=shape, pattern="plain")
        frames = render(moved(scene, 0.3, 0.4), 6).frames
        assert path_error(frames, scene) == pytest.approx(0.5, abs=0.05)
        # The tips of a star are finer than a pixel: .2. Other shapes: at most .03.
        assert jitter(frames, scene) < (0.3 if shape == "star" else 0.1)
        assert jitter(alternating(scene, 8, 0.25), scene) == pytest.approx(1, abs=0.1)


def test_an_alternating_shift_of_one_pixel_jitters_by_four():
    """d = 1, -1, 1: the second difference is 4, and the distance to the path is 1 throughout."""
    frames = alternating(replace(SCENE, pattern="plain"), 8, 1)
    found = placement_row(frames, replace(SCENE, pattern="plain"))
    assert found["jitter"] == pytest.approx(4, abs=0.1)
    assert found["path_error"] == pytest.approx(1, abs=0.05)
    # A steady drift is no jitter.
    drift = torch.stack([render(SCENE, 8).frames[i].roll(i, -1) for i in range(8)])
    assert jitter(drift, SCENE) == pytest.approx(0, abs=1e-9)
    assert path_error(drift, SCENE) == pytest.approx(math.sqrt(sum(i * i for i in range(8)) / 8))


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_an_object_scaled_has_the_size_error_of_its_scale(scale):
    for shape in ("circle", "ring", "star"):
        scene = replace(SCENE, shape=shape, pattern="plain")
        frames = render(moved(scene, scale=scale), 4).frames
        assert size_error(frames, scene) == pytest.approx(0.5, abs=0.02)
        assert presence(frames, scene) == 1 and path_error(frames, scene) < 2 * NEAR


def test_a_clip_without_the_object_has_no_presence_and_no_path():
    empty = render(Scene(None, None, "cyan", "striped", MOTION), 4).frames
    unedited = render(SCENE.edited(colour="green"), 4).frames
    for frames in (empty, unedited, torch.zeros(4, 3, 64, 64)):
        found = placement_row(frames, SCENE)
        assert found.pop("presence") == 0 and all(math.isnan(v) for v in found.values())


def test_ground_of_the_asked_colour_is_no_object():
    """An edit that changed nothing, where the asked colour was the ground's."""
    for pattern in PATTERNS:
        kept = render(Scene("circle", "yellow", "red", pattern, MOTION), 4).frames
        assert presence(kept, SCENE) == 0, pattern


def test_frames_without_the_object_neither_help_nor_hide():
    """They lower the presence, leave the path of the others, and break the jitter's threes."""
    empty = render(replace(SCENE, shape=None, colour=None), 8).frames
    frames = alternating(SCENE, 8, 1)
    frames[3] = empty[3]
    found = placement_row(frames, SCENE)
    assert found["presence"] == 7 / 8 and found["path_error"] == pytest.approx(1, abs=NEAR)
    assert found["jitter"] == pytest.approx(4, abs=2 * NEAR)  # of frames 0 to 2 and 4 to 7
    frames[1::3], found = empty[1::3], None  # never three in succession
    found = placement_row(frames, SCENE)
    assert 0 < found["presence"] < 1 and math.isnan(found["jitter"])
    assert found["path_error"] == pytest.approx(1, abs=NEAR)


def test_an_object_that_leaves_the_frame_is_followed_as_far_as_it_is_seen():
    leaving = replace(SCENE, motion=replace(MOTION, end=(1.3, 0.5), bend=0.0))
    frames = render(leaving, 8).frames
    assert placement_row(frames, leaving)["path_error"] == 0 == jitter(frames, leaving)
    assert presence(frames, leaving) == 1  # of the frames in which the truth shows it
    assert presence(render(replace(leaving, shape=None, colour=None), 8).frames, leaving) == 0
    never = replace(SCENE, motion=replace(MOTION, start=(2, 2), end=(2, 2)))
    assert all(math.isnan(v) for v in placement_row(frames, never).values())


def test_a_second_object_and_a_cut():
    other = ("circle", "yellow", Motion(start=(0.2, 0.8), end=(0.7, 0.3), size=(0.12, 0.12)))
    scene = replace(SCENE, second=other, pattern="plain")
    assert path_error(render(moved(scene, 3), 8).frames, scene) == pytest.approx(3, abs=NEAR)
    # Shots have colours of their own; a displacement that changes at the cut is no jitter.
    shots = replace(SCENE, then=(Scene("square", "yellow", "blue", "plain", MOTION),))
    frames = render(shots, 8).frames
    assert presence(frames, shots) == 1
    frames[4:] = frames[4:].roll(3, -1)
    assert jitter(frames, shots) == pytest.approx(0, abs=1e-9)
    assert path_error(frames, shots) == pytest.approx(3 / 2**0.5)


def test_noise_and_blur_are_borne():
    """As of a network: noise of .05, and a blur of a pixel."""
    from scipy.ndimage import gaussian_filter

    generator = torch.Generator().manual_seed(0)
    for scene in (SCENE, Scene("ring", "blue", "white", "checked", MOTION)):
        frames = render(scene, 6).frames
        blurred = torch.from_numpy(gaussian_filter(frames.numpy(), (0, 0, 0.7, 0.7)))
        noisy = (blurred + 0.05 * torch.randn(frames.shape, generator=generator)).clamp(0, 1)
        found = placement_row(noisy, scene)
        assert found["presence"] == 1 and found["path_error"] < 0.3
        assert found["size_error"] < 0.06 and found["jitter"] < 0.6


def test_the_true_clip_after_the_vae_scores_nearly_zero(miniature):
    """Measured over 60 test clips: path .07 (at most .2), size .009, jitter .13 (at most .46)."""
    from vala_research.editing.pipeline import quiet_pipeline
    from vala_research.evaluation.cases import edit_cases
    from vala_research.sprites.scene import WORLD

    pipe = quiet_pipeline(miniature)
    for case in edit_cases(WORLD, "test", 1, ("shape", "several")):
        with torch.no_grad():
            frames = pipe.decode(pipe.encode(render(case.target, 3).frames))
        found = placement_row(frames, case.target)
        assert found["presence"] == 1 and found["path_error"] < 0.3
        assert found["size_error"] < 0.05 and found["jitter"] < 0.6


def test_the_finder_agrees_with_the_masks_of_the_renderer():
    for shape in SHAPES:
        for pattern in PATTERNS:
            clip = render(replace(SCENE, shape=shape, pattern=pattern), 3)
            found = placement(find_object(clip.frames, ["red"] * 3))
            true = placement(clip.mask[:, 0])
            assert (found.centre - true.centre).norm(dim=1).max() < 3 * NEAR
            assert (found.extent / true.extent - 1).abs().max() < 0.03
    assert find_object(clip.frames, ["red", None, "blue"]).flatten(1).any(1).tolist() == [
        True, False, False,
    ]  # fmt: skip


def test_a_mask_alone_has_the_jitter_of_its_centre():
    mask = torch.zeros(6, 1, 20, 20)
    for i in range(6):
        mask[i, 0, 5:9, 5 + 2 * i + i % 2 : 8 + 2 * i + i % 2] = 1
    # Two pixels per frame are steady; the alternating pixel has a second difference of 2.
    assert jitter(mask=mask) == pytest.approx(2)
    assert jitter(mask=mask.bool()) == pytest.approx(2)
    mask[2] = 0
    assert jitter(mask=mask) == pytest.approx(2)  # of frames 3 to 5
    assert math.isnan(jitter(mask=mask[:2]))
    # Beside the truth, only what departs from the true path counts.
    clip = render(SCENE, 8)
    assert jitter(mask=clip.mask, scene=SCENE) < 2 * NEAR < jitter(mask=clip.mask)


def test_bad_input():
    frames = render(SCENE, 4).frames
    for call in (
        lambda: presence(frames[..., :50], SCENE),
        lambda: path_error(frames[:, :1], SCENE),
        lambda: size_error(frames * float("nan"), SCENE),
        lambda: jitter(frames),
        lambda: jitter(mask=frames),
        lambda: jitter(mask=2 * frames[:, :1] + 1),
        lambda: find_object(frames, ["red"]),
        lambda: find_object(frames, ["reddish"] * 4),
    ):
        with pytest.raises(InputError):
            call()
