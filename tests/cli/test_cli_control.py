"""`vala edit --controlnet`, and the model's own values of an edit; a tiny model, about 15 s."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from test_cli import PROMPTS, QUICK, clip, model, refused, vala  # noqa: F401 - fixtures

from vala_research import VideoEditPipeline, read_clip, write_clip
from vala_research.diffusion.control_pictures import canny_edges

MILD = [*QUICK, "--guidance", 2]


@pytest.fixture(scope="module")
def net(model, tmp_path_factory) -> Path:  # noqa: F811
    torch.manual_seed(0)
    unet = VideoEditPipeline.from_pretrained(model).unet
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8))
    for p in controlnet.parameters():
        p.data += 0.3 * torch.randn_like(p)
    controlnet.save_pretrained(folder := tmp_path_factory.mktemp("net"))
    return folder


def test_a_controlnet_is_named_or_comes_with_the_model(tmp_path, clip, model, net):  # noqa: F811
    own = Path(shutil.copytree(model, tmp_path / "own"))
    shutil.copytree(net, own / "controlnet")
    values = {"num_inference_steps": 2, "guidance_scale": 2.0, "attention": "own"}
    control = {"picture": "frames", "in_inversion": True}
    (own / "edit_defaults.json").write_text(json.dumps(values | {"control": control}))
    commands = {
        "bare": ["--model", model, *MILD],
        "given": ["--model", model, *MILD, "--controlnet", net],
        "own": ["--model", own], "none": ["--model", own, "--controlnet", "none"],
        "canny": ["--model", model, *MILD, "--controlnet", net, "--control", "canny"],
    }  # fmt: skip
    frames = {}
    for name, given in commands.items():
        out, record = tmp_path / name / "out", tmp_path / name / "record.json"
        record.parent.mkdir(exist_ok=True)
        status, _, err = vala("edit", clip, *PROMPTS, "-o", out, "--json", record, *given,
                              "--size", 16)  # fmt: skip
        assert status == 0, err
        used = json.loads(record.read_text())["parameters"]
        assert (used["num_inference_steps"], used["guidance_scale"]) == (2, 2.0)
        frames[name] = read_clip(out).frames
    assert torch.equal(frames["own"], frames["given"])
    assert torch.equal(frames["none"], frames["bare"])
    for name in ("bare", "canny"):
        assert (frames[name] - frames["given"]).abs().max() > 0.01


def test_several_controlnets_see_pictures_of_ones_own(tmp_path, clip, model, net):  # noqa: F811
    """Outlines drawn before are those drawn here. Both steps lie outside 0.7 to 0.9."""
    frames = read_clip(clip, size=16).frames
    drawn = write_clip(tmp_path / "outlines", canny_edges(frames), 8.0)
    once, twice = ["--controlnet", net], ["--controlnet", net, "--controlnet", net]
    commands = {
        "named": [*once, "--control", "canny"], "given": [*once, "--control", drawn],
        "both": [*twice, "--control", "canny", "--control", drawn, "--control-scale", 0.5],
        "idle": [*once, "--control", "canny", "--control-interval", "0.7:0.9"],
        "none": ["--controlnet", "none"],
    }  # fmt: skip
    made = {}
    for name, given in commands.items():
        out, record = tmp_path / name, tmp_path / f"{name}.json"
        status, _, err = vala("edit", clip, *PROMPTS, "-o", out, "--json", record, *MILD,
                              "--model", model, *given, "--size", 16)  # fmt: skip
        assert status == 0, err
        made[name] = read_clip(out).frames
    used = json.loads((tmp_path / "both.json").read_text())["parameters"]
    assert used["controlnet"] == [str(net)] * 2 and used["control_scale"] == [0.5]
    assert torch.equal(made["named"], made["given"]) and torch.equal(made["idle"], made["none"])
    # Two halves of one ControlNet are one.
    assert (made["both"] - made["named"]).abs().max() < 0.01
    assert (made["named"] - made["none"]).abs().max() > 0.01


@pytest.mark.parametrize(
    "given, message",
    [
        (["--control", "canny"], "belong to a ControlNet: give --controlnet"),
        (["--control-scale", "0.5"], "belong to a ControlNet: give --controlnet"),
        (["--controlnet", "NET", "--control", "sketch"], "frames, canny, depth"),
        (["--controlnet", "NET", "--control-scale", "nan"], "The scale of a ControlNet is nan"),
        (["--controlnet", "/nowhere"], "The ControlNet '/nowhere' cannot be loaded"),
        (["--controlnet", "NET", "--controlnet", "none"], "give it alone"),
        (["--controlnet", "NET", "--control", "canny", "--control", "canny"], "2 times for 1"),
        (["--controlnet", "NET", "--control-interval", "0.5"], "give FROM:TO"),
        (["--controlnet", "NET", "--control-interval", "1:0"], "two fractions of T in order"),
        (["--controlnet", "NET", "--control", "depth"], "--depth-model belong together"),
        (["--controlnet", "NET", "--depth-model", "NET"], "--depth-model belong together"),
        (["--controlnet", "NET", "--control", "ONE"], "holds 1 of the 3 frames"),
    ],
)
def test_bad_options_are_refused(tmp_path, clip, model, net, given, message):  # noqa: F811
    one = write_clip(tmp_path / "one", torch.rand(1, 3, 16, 16), 8.0)
    given = [{"NET": net, "ONE": one}.get(x, x) for x in given]
    refused(
        tmp_path, "edit", clip, *PROMPTS, "-o", tmp_path / "out.mp4", "--model", model, *given,
        naming=message,
    )  # fmt: skip
