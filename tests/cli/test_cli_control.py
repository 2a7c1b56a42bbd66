"""`vala edit --controlnet`, and the model's own values of an edit; a tiny model, about 6 s."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from test_cli import PROMPTS, QUICK, clip, model, refused, vala  # noqa: F401 - fixtures

from vala_research import VideoEditPipeline, read_clip

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


@pytest.mark.parametrize(
    "given, message",
    [
        (["--control", "canny"], "belong to a ControlNet: give --controlnet"),
        (["--control-scale", "0.5"], "belong to a ControlNet: give --controlnet"),
        (["--controlnet", "NET", "--control", "sketch"], "Unknown picture of a ControlNet"),
        (["--controlnet", "NET", "--control-scale", "nan"], "The scale of a ControlNet is nan"),
        (["--controlnet", "/nowhere"], "The ControlNet '/nowhere' cannot be loaded"),
    ],
)
def test_bad_options_are_refused(tmp_path, clip, model, net, given, message):  # noqa: F811
    given = [net if x == "NET" else x for x in given]
    refused(
        tmp_path, "edit", clip, *PROMPTS, "-o", tmp_path / "out.mp4", "--model", model, *given,
        naming=message,
    )  # fmt: skip
