"""The miniature's video model: what is trained, what is committed, what its clips show."""

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel
from safetensors.torch import load_file

from vala_research import InputError, miniature_path
from vala_research.miniature import motion, motion_card
from vala_research.miniature.batches import Captions
from vala_research.sprites.render import render
from vala_research.sprites.scene import SIZE


@pytest.fixture(scope="module")
def image_unet():
    return UNet2DConditionModel.from_pretrained(miniature_path(), subfolder="unet")


@pytest.fixture(scope="module")
def adapter():
    return MotionAdapter.from_pretrained(miniature_path("motion"))


def noisy(f: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents f c h w, and one text for every frame."""
    g = torch.Generator().manual_seed(0)
    text = torch.randn(1, 5, 128, generator=g).expand(f, -1, -1)
    return torch.randn(f, 4, 16, 16, generator=g), text


@torch.no_grad()
def test_before_training_it_is_the_image_model(image_unet, adapter):
    z, text = (x.double() for x in noisy())
    frame_by_frame = copy.deepcopy(image_unet).double()(z, 500, text).sample

    def video(unet):
        return unet.double()(z.transpose(0, 1)[None], 500, text).sample[0].transpose(0, 1)

    untrained = video(motion.motion_unet(motion.build_adapter()))
    torch.testing.assert_close(untrained, frame_by_frame, atol=1e-12, rtol=0)  # fp64 rounding
    trained = video(motion.motion_unet(copy.deepcopy(adapter)))
    assert not torch.allclose(trained, frame_by_frame, atol=0.01)


def test_image_weights_are_the_miniature_s(image_unet, adapter):
    pipe = motion_card.video_model(adapter)
    state, own = pipe.unet.state_dict(), image_unet.state_dict()
    assert all(torch.equal(state.pop(name), value) for name, value in own.items())
    assert state and all("motion_modules" in name for name in state)


def test_committed_weights_are_the_modules_alone():
    folder = Path(miniature_path("motion"))
    weights = folder / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < 4e6
    tensors = load_file(weights)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert all("motion_modules" in name for name in tensors)
    config = json.loads((folder / "config.json").read_text())
    wanted = json.loads(json.dumps(motion.MOTION))
    assert {k: config[k] for k in wanted} == wanted


def test_recipe_trains_the_modules_resumes_and_exports(tmp_path, image_unet, ticking):
    run = tmp_path / "run"
    ticking(0.5)  # seconds a step
    motion.build(run, 2 / 60, n_clips=3)
    first = load_file(run / "motion.safetensors")
    assert all(k.split(".")[0] in ("live", "ema", "adam") for k in first)
    assert all("motion_modules" in k for k in first if not k.startswith("adam"))
    assert all(v.any() for k, v in first.items() if k.startswith("live") and ".proj_out." in k)
    motion.build(run, 3 / 60, n_clips=3)
    steps = [int(r.split(",")[0]) for r in (run / "motion.csv").read_text().split()[1:]]
    assert steps == [4, 6]
    with pytest.raises(InputError, match="3 clips"):
        motion.build(run, 3 / 60, n_clips=4)
    motion.export(run, tmp_path / "out")
    last = load_file(run / "motion.safetensors")
    exported = MotionAdapter.from_pretrained(tmp_path / "out")
    unet = motion_card.video_model(exported).unet.state_dict()
    for name, value in last.items():
        if name.startswith("ema."):
            assert torch.equal(unet[name.removeprefix("ema.adapter.")], value.half().float())
    assert all(torch.equal(unet[k], v) for k, v in image_unet.state_dict().items())


def test_training_clips_are_runs_of_one_scene_either_way():
    # Latents that say which scene and frame they are.
    place = torch.arange(5)[:, None] * 100 + torch.arange(motion.N_FRAMES)
    latents = place[:, :, None, None, None].expand(-1, -1, 4, 2, 2).float()

    class Index(Captions):
        def __init__(self):
            pass

        def ids(self, index, generator, dropout=0.0):
            return index[:, None]

    sample, g = motion.clip_sampler(latents, Index()), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(60):
        z, eps, t, ids = sample(2, g, 0.0)
        assert z.shape == eps.shape and z.shape[1] in motion.LENGTHS and len(t) == len(z)
        frames = z[:, :, 0, 0, 0]
        assert torch.equal(frames // 100, ids.expand_as(frames).float())
        (step,) = frames.diff(dim=1).unique().tolist()
        seen.add((z.shape[1], int(step)))
        # Frames have noise of their own.
        assert eps.flatten(2).std(1).min() > 0
    assert seen == {(8, 1), (8, -1), (8, 2), (8, -2), *((f, s) for f in (12, 16) for s in (1, -1))}


def test_rows_tell_a_clip_from_its_shuffled_frames():
    scene = next(s for s in motion_card.prompt_scenes(40) if s.shape == "circle")
    frames = render(scene, 8, SIZE).frames
    centre = scene.motion.at(torch.linspace(0, 1, 8))[0] * SIZE
    torch.testing.assert_close(motion_card.object_path(frames, scene), centre, atol=0.5, rtol=0)
    true = motion_card.clip_row(frames, scene)
    assert true["success"] == true["coherent"] == 1
    shuffled = motion_card.clip_row(frames[[0, 4, 1, 6, 3, 7, 2, 5]], scene)
    assert shuffled["jump"] > 5 * true["jump"] and shuffled["difference"] > true["difference"]
    other = frames.clone()
    other[3] = render(scene.edited(shape="square"), 8, SIZE).frames[3]
    assert motion_card.clip_row(other, scene)["coherent"] == 0


def test_frames_of_a_sampled_clip_belong_together(adapter):
    """Of the same prompts and noise: steps and jumps are a tenth of the image model's, not half."""
    video, image = motion_card.video_model(adapter), motion_card.image_model()
    rows = {"video": [], "image": []}
    for seed, scene in enumerate(motion_card.prompt_scenes(3)):
        for name, pipe in (("video", video), ("image", image)):
            frames = motion_card.sample_clip(pipe, scene, 5, seed, num_inference_steps=8)
            assert frames.shape == (5, 3, SIZE, SIZE) and frames.isfinite().all()
            rows[name].append(motion_card.clip_row(frames, scene))
    jump, difference = (
        {n: sum(r[k] for r in group) for n, group in rows.items()} for k in ("jump", "difference")
    )
    assert jump["video"] < 0.5 * jump["image"]
    assert difference["video"] < 0.5 * difference["image"]
    # They show what was asked for, which by chance one frame in 1280 would.
    assert sum(r["success"] for r in rows["video"]) > 0.5 * 3


def test_more_frames_than_positions_fail(adapter):
    unet = motion.motion_unet(adapter)
    z, text = noisy(motion.N_FRAMES + 1)
    with pytest.raises(RuntimeError, match="must match"):
        unet(z.transpose(0, 1)[None], 500, text)
