"""ControlNets of a pipeline, and a checkpoint's own values of an edit; tiny models, about 8 s."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from tiny_models import tiny_unet

from vala_research import InputError, VideoEditPipeline
from vala_research.diffusion.control_pictures import canny_edges
from vala_research.diffusion.controlnet import Control, ControlSettings
from vala_research.diffusion.difference import DifferenceEdit
from vala_research.editing.defaults import EditDefaults, read_defaults

WORDS = ("a blue square", "a red circle")
OWN = EditDefaults(3, 2.0, "ddim", "own", control=ControlSettings(in_inversion=False))


def strong(unet, seed: int = 0) -> ControlNetModel:
    """A ControlNet whose residuals are far from zero."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8)).eval()
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net


@pytest.fixture(scope="module")
def controlled(checkpoint, tmp_path_factory):
    """Folder of a checkpoint with a ControlNet and its own values."""
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    folder = tmp_path_factory.mktemp("controlled")
    pipe.controlnet, pipe.edit_defaults = strong(pipe.unet), OWN
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def owner(controlled):
    pipe = VideoEditPipeline.from_pretrained(controlled)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit(pipe, video, **given):
    return pipe(video, *WORDS, output_type="pt", **given).frames[0]


def bare_edit(tiny, video, **given):
    """The same edit by a pipeline without a ControlNet or values of its own."""
    settings = dict(num_inference_steps=3, guidance_scale=2.0, attention="own")
    return edit(tiny, video, **settings | given)


def calls(net) -> list[int]:
    """Timesteps at which the ControlNet is asked from now on."""
    seen: list[int] = []
    net.register_forward_pre_hook(lambda _, given: seen.append(int(given[1])))
    return seen


def test_a_checkpoint_brings_its_controlnet_and_its_values(owner, controlled, tiny, video):
    assert owner.edit_defaults == OWN and owner.estimate(2, 16, 16).n_evaluations == 2 * 3 * 3
    found = edit(owner, video)
    assert not torch.allclose(found, bare_edit(tiny, video), atol=1e-2)
    alone = VideoEditPipeline.from_pretrained(controlled, controlnet=None)
    torch.testing.assert_close(edit(alone, video), bare_edit(tiny, video), rtol=0, atol=1e-6)
    given = VideoEditPipeline.from_pretrained(controlled, controlnet=strong(tiny.unet))
    torch.testing.assert_close(edit(given, video), found, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        edit(VideoEditPipeline.from_pipe(owner), video), found, rtol=0, atol=1e-6
    )
    owner.unload_controlnet()
    torch.testing.assert_close(edit(owner, video), bare_edit(tiny, video), rtol=0, atol=1e-6)


def test_other_checkpoints_have_the_values_of_the_field(tiny):
    assert tiny.edit_defaults == EditDefaults()
    assert (EditDefaults().num_inference_steps, EditDefaults().guidance_scale) == (50, 7.5)


def test_plain_diffusers_opens_the_folder(controlled, caplog):
    StableDiffusionPipeline.from_pretrained(controlled, safety_checker=None)
    assert "not expected" not in caplog.text
    ControlNetModel.from_pretrained(controlled, subfolder="controlnet")


def test_a_controlnet_is_loaded_by_hand(tiny, owner, controlled, video):
    pipe = VideoEditPipeline(**tiny.components)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_controlnet(controlled / "controlnet", in_inversion=False)
    found = bare_edit(pipe, video)
    torch.testing.assert_close(found, edit(owner, video), rtol=0, atol=1e-6)
    pipe.load_controlnet(controlled / "controlnet", scale=0.0)
    torch.testing.assert_close(bare_edit(pipe, video), bare_edit(tiny, video), rtol=0, atol=1e-6)
    pipe.load_controlnet(controlled / "controlnet", picture="canny", in_inversion=False)
    outlines = Control(pipe.controlnet, ControlSettings(in_inversion=False), canny_edges(video))
    pipe.unload_controlnet()
    assert pipe.controls == ()
    pipe.controlnet = outlines.network
    pipe.edit_defaults = replace(
        pipe.edit_defaults, control=ControlSettings("canny", in_inversion=False)
    )
    assert not torch.allclose(bare_edit(pipe, video), found, atol=1e-3)


def test_given_pictures_are_shown_clip_by_clip(tiny, controlled, video):
    """Loaded once; what is shown decides, and nothing shown is refused."""
    pipe = VideoEditPipeline(**tiny.components)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_controlnet(controlled / "controlnet", "given")
    with pytest.raises(InputError, match="none are given"):
        bare_edit(pipe, video)
    found = []
    for pictures in (video, canny_edges(video)):
        pipe.show(pictures)
        found.append(bare_edit(pipe, video))
        pipe.load_controlnet(controlled / "controlnet", pictures)
        torch.testing.assert_close(bare_edit(pipe, video), found[-1], rtol=0, atol=1e-6)
        pipe.load_controlnet(controlled / "controlnet", "given")
    assert not torch.allclose(*found, atol=1e-3)
    pipe.show(video[:1])
    with pytest.raises(InputError, match="control pictures of shape"):
        bare_edit(pipe, video)


def test_where_a_controlnet_acts(owner, video):
    seen = calls(owner.controlnet)
    edit(owner, video)
    assert sorted({*seen}, reverse=True) == seen[::1] and len(seen) == 3  # sampling alone
    for in_inversion, interval, n in ((True, (0, 1), 6), (True, (0.5, 1), 2), (False, (0.5, 1), 1)):
        seen.clear()
        how = ControlSettings(in_inversion=in_inversion, interval=interval)
        owner.edit_defaults = replace(OWN, control=how)
        edit(owner, video)
        assert len(seen) == n and min(seen) >= 1000 * interval[0]


def test_equal_prompts_return_to_the_clip_where_the_inversion_sees_it_too(owner, video):
    bound = owner.decode(owner.encode(video))
    for in_inversion, is_near in ((True, True), (False, False)):
        owner.edit_defaults = replace(OWN, control=ControlSettings(in_inversion=in_inversion))
        found = owner(
            video, WORDS[0], WORDS[0], inversion="exact", guidance_scale=1.0, output_type="pt"
        ).frames[0]
        assert ((found - bound).abs().max() < 1e-3) == is_near
        latents = owner.invert(video, WORDS[0], inversion="exact")
        if not in_inversion:  # the way back is that of the inversion
            assert (owner.reconstruct(latents, WORDS[0]) - bound).abs().max() < 1e-3


def test_an_inverted_clip_is_seen_by_its_trajectory(owner, video):
    inverted = owner.invert(video, WORDS[1], attention="own", return_inversion=True)
    torch.testing.assert_close(
        edit(owner, None, latents=inverted),
        edit(owner, owner.decode(owner.encode(video)), latents=inverted), rtol=0, atol=1e-4,
    )  # fmt: skip
    with pytest.raises(InputError, match="only latents are given: give the video too"):
        edit(owner, None, latents=inverted.latents)


def test_residuals_of_several_add_up(owner, tiny, video):
    from vala_research.diffusion.controlnet import control_residuals

    x, text = torch.randn(2, 3, 4, 8, 12), torch.randn(2, 5, 16)
    one, two = (Control(strong(tiny.unet, seed), pictures=video) for seed in (0, 1))
    parts = [control_residuals(c, x, 500, text, slice(None), 1000) for c in ([one], [two])]
    both = control_residuals([one, two], x, 500, text, slice(None), 1000)
    name = "mid_block_additional_residual"
    torch.testing.assert_close(both[name], parts[0][name] + parts[1][name])
    late = replace(one, settings=ControlSettings(interval=(0.6, 1)))
    assert control_residuals([late], x, 500, text, slice(None), 1000) == {}


def test_several_controlnets_see_the_clip_and_given_pictures(tiny, checkpoint, video, tmp_path):
    """Each has its scale, its interval and its pictures."""
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path / str(seed))
        strong(tiny.unet, seed).save_pretrained(folders[-1])
    pipe = VideoEditPipeline.from_pretrained(str(checkpoint))
    pipe.set_progress_bar_config(disable=True)
    pipe.load_controlnet(folders[0], "frames", in_inversion=False)
    one = bare_edit(pipe, video)
    pipe.add_controlnet(folders[1], 1 - video, 0.5, (0.0, 0.5), in_inversion=False)
    both = bare_edit(pipe, video)
    assert not torch.allclose(both, one, atol=1e-4)
    again = VideoEditPipeline.from_pipe(pipe)
    torch.testing.assert_close(bare_edit(again, video), both)

    # Pictures alone; other pictures make another edit.
    pipe.load_controlnet(folders[1], video[None], in_inversion=False)
    alone = bare_edit(pipe, video)
    pipe.load_controlnet(folders[1], "frames", in_inversion=False)
    torch.testing.assert_close(bare_edit(pipe, video), alone)
    pipe.load_controlnet(folders[1], 1 - video, in_inversion=False)
    assert not torch.allclose(bare_edit(pipe, video), alone, atol=1e-4)
    for wrong in (video[:1], video[..., :8]):
        pipe.load_controlnet(folders[1], wrong)
        with pytest.raises(InputError, match="control pictures of shape"):
            bare_edit(pipe, video)
    pipe.load_controlnet(folders[1], "given")
    with pytest.raises(InputError, match="none are given"):
        bare_edit(pipe, video)
    pipe.unload_controlnet()
    torch.testing.assert_close(bare_edit(pipe, video), bare_edit(tiny, video), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"steps": 3}, "holds 'steps': it may hold num_inference_steps"),
        ({"control": {"image": "x"}}, "holds 'image': it may hold picture"),
        ({"control": {"picture": "sketch"}}, "Unknown picture of a ControlNet 'sketch'"),
        ({"control": {"interval": [1, 0]}}, "two fractions of T in order"),
        ({"control": {"interval": "ab"}}, "two fractions of T in order"),
        ({"control": {"scale": float("nan")}}, "scale of a ControlNet is nan"),
        ({"control": {"in_inversion": 1}}, "in_inversion is 1: give true or false"),
        ({"control": [1]}, r"holds '\[1\]': it may hold picture"),
        ([1], "it holds no JSON object"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": "9"}, "num_inference_steps is 9"),
        ({"guidance_scale": "big"}, "guidance"),
        ({"attention": "all"}, "'all'"),
        ({"inversion": 3}, "3"),
        ({"inversion": {"steps": 1}}, "holds 'steps': it may hold n_max"),
        ({"inversion": {"n_max": 2}}, "n_max, the last share of the steps that edit, is 2"),
        ({"injection": 2}, "2"),
        ({"strength": -1}, "strength is -1"),
        ({"brings": ["controls"]}, "it may bring motion_adapter, temporal_adapter, in a list"),
        ({"brings": "motion_adapter"}, "it may bring motion_adapter, temporal_adapter, in a list"),
    ],
)
def test_wrong_values_are_refused(tmp_path, content, message):
    (tmp_path / "edit_defaults.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_defaults(tmp_path)


def test_objects_in_the_file_are_settings(tmp_path):
    """An empty object is settings with their own values."""
    own = EditDefaults(control=ControlSettings(), inversion=DifferenceEdit(1.0))
    content = {"control": {}, "inversion": {"n_max": 1.0}}
    (tmp_path / "edit_defaults.json").write_text(json.dumps(content))
    assert read_defaults(tmp_path) == (own, ())
    own.save(tmp_path)
    assert read_defaults(tmp_path) == (own, ())


def test_a_controlnet_that_does_not_fit_is_refused(tiny, owner, tmp_path, video):
    ControlNetModel.from_unet(tiny_unet(cross_attention_dim=24)).save_pretrained(tmp_path / "other")
    kept = owner.controlnet
    with pytest.raises(InputError, match="cross_attention_dim"):
        owner.load_controlnet(tmp_path / "other")
    assert owner.controlnet is kept
    coarse = ControlNetModel.from_unet(tiny.unet, conditioning_embedding_out_channels=(8,))
    owner.controlnet = coarse
    with pytest.raises(InputError, match="times smaller"):
        edit(owner, video)
    pipe = VideoEditPipeline(**tiny.components)
    pipe.controlnet = kept
    with pytest.raises(InputError, match="nothing says what it sees"):
        edit(pipe, video)
