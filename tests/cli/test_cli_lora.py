"""`vala edit --lora` and `--model FILE`; a tiny model, about 8 s."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from original_layout import save_single_file
from safetensors.torch import save_file
from test_cli import PROMPTS, QUICK, clip, model, refused, vala  # noqa: F401 - fixtures

from vala_research import VideoEditPipeline, read_clip

SITE = "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def lora(path, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator) for shape in ((2, 16), (16, 2)))
    save_file({f"unet.{SITE}.lora_A.weight": a, f"unet.{SITE}.lora_B.weight": 9 * b}, path)
    return str(path)


def test_loras_are_added_with_their_scales(tmp_path, clip, model):  # noqa: F811
    one, two = lora(tmp_path / "one.safetensors", 0), lora(tmp_path / "two.safetensors", 1)
    out = tmp_path / "out"
    status, _, err = vala(
        "edit", clip, *PROMPTS, "-o", out, "--model", model, *QUICK, "--lora", f"{one}:0.5",
        "--lora", two,
    )  # fmt: skip
    assert status == 0, err
    pipe = VideoEditPipeline.from_pretrained(model)
    given = dict(source_prompt=PROMPTS[1], num_inference_steps=2, attention="own")
    frames = read_clip(clip, size=16).frames
    bare = pipe(frames, PROMPTS[3], output_type="pt", **given).frames[0]
    for file, name in ((one, "one"), (two, "two")):
        pipe.load_lora_weights(file, adapter_name=name)
    pipe.set_adapters(["one", "two"], [0.5, 1.0])
    expected = pipe(frames, PROMPTS[3], output_type="pt", **given).frames[0]
    found = read_clip(out).frames
    assert (expected - bare).abs().max() > 0.01
    assert (found - expected).abs().max() <= 0.5 / 255 + 1e-4  # pictures of 8 bits


@pytest.mark.parametrize(
    "name, message",
    [
        ("nowhere.safetensors", "does not exist"), ("a.pt", "is a pickle"),
        ("a.bin:0.5", "is a pickle"), ("bad.safetensors", "not readable as safetensors"),
        ("good.safetensors:nan", "give a finite number"), ("good.safetensors:", "does not exist"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_before_any_work(tmp_path, clip, model, name, message):  # noqa: F811
    for wrong in ("a.pt", "a.bin", "bad.safetensors"):
        (tmp_path / wrong).write_bytes(b"abc")
    lora(tmp_path / "good.safetensors", 0)
    refused(
        tmp_path, "edit", clip, *PROMPTS, "-o", tmp_path / "out.mp4", "--model", model,
        "--lora", tmp_path / name, naming=message,
    )  # fmt: skip


def test_a_model_in_one_file(tmp_path, clip, model):  # noqa: F811
    """The same edit as by the folder."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    file = save_single_file(pipe, folder / "one.safetensors")
    outs = [tmp_path / "by_folder", tmp_path / "by_file"]
    for out, given in zip(outs, (model, file), strict=True):
        status, _, err = vala("edit", clip, *PROMPTS, "-o", out, "--model", given, *QUICK)
        assert status == 0, err
    assert torch.equal(*(read_clip(out).frames for out in outs))
    (tmp_path / "a.ckpt").write_bytes(b"abc")
    refused(
        tmp_path, "edit", clip, *PROMPTS, "-o", tmp_path / "out.mp4", "--model",
        tmp_path / "a.ckpt", naming="is a pickle",
    )  # fmt: skip
