"""Options of `from_pretrained` act as in diffusers, or are refused in one sentence.

Costs about 15 s of one core.
"""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline
from tiny_models import tiny_unet
from typer.testing import CliRunner

from vala_research import InputError, VideoEditPipeline
from vala_research.cli.app import app
from vala_research.diffusion.parts import PROBES

BAD = {
    "torch_dtyp": ({"torch_dtyp": torch.float16}, "no option 'torch_dtyp': write 'torch_dtype'"),
    "varient": ({"varient": "fp16"}, "no option 'varient': write 'variant'"),
    "nonsense": ({"xyz": 1}, "no option 'xyz': choose from dtype, "),
    "two dtypes": ({"dtype": torch.float16, "torch_dtype": torch.float32}, "give one of them"),
    "a name": ({"torch_dtype": "float16"}, "dtype is 'float16'"),
    "whole numbers": ({"torch_dtype": torch.int8}, "dtype is torch.int8"),
    "a part": ({"torch_dtype": {"unets": torch.float16}}, "the part 'unets': choose from default"),
    "balanced": ({"device_map": "balanced"}, "device_map is 'balanced'.*enable_model_cpu_offload"),
    "no such device": ({"device_map": "cuda:99"}, "device_map is 'cuda:99'"),
    "pickles": ({"use_safetensors": False}, "use_safetensors=False.*only safetensors"),
    "foreign code": ({"trust_remote_code": True}, "trust_remote_code=True.*never run"),
    "custom": ({"custom_pipeline": "clip_guided"}, "custom_pipeline=clip_guided"),
    "quantised": ({"quantization_config": {}}, "quantization_config"),
    "flax": ({"from_flax": True}, "from_flax=True"),
    "no variant": ({"variant": "fp16"}, "no weights of the variant 'fp16'"),
    "no network": ({"unet": "unet"}, "The unet is a str"),
    "wrong class": ({"vae": tiny_unet()}, "The vae is a UNet2DConditionModel"),
    "no scheduler": ({"scheduler": "DDIMScheduler"}, "The scheduler is str, which"),
    "width": ({"unet": tiny_unet(cross_attention_dim=8)}, "UNet reads text of width 8 and gets 16"),
}


@pytest.mark.parametrize("name", BAD)
def test_options_without_effect_are_refused(checkpoint, name):
    options, message = BAD[name]
    with pytest.raises(InputError, match=message) as caught:
        VideoEditPipeline.from_pretrained(checkpoint, **options)
    assert "\n" not in str(caught.value)


def test_given_parts_replace_those_of_the_checkpoint(checkpoint, tiny, tmp_path):
    unet, scheduler = tiny_unet(9), EulerDiscreteScheduler()
    given = {"unet": unet, "scheduler": scheduler, "vae": tiny.vae}
    given |= {"tokenizer": tiny.tokenizer, "text_encoder": tiny.text_encoder}
    pipe = VideoEditPipeline.from_pretrained(checkpoint, safety_checker=None, **given)
    assert all(getattr(pipe, name) is part for name, part in given.items())
    assert pipe.safety_checker is None

    # What is given need not be in the folder, and is no longer checked there.
    lacking = shutil.copytree(checkpoint, tmp_path / "lacking")
    shutil.rmtree(lacking / "unet")
    assert VideoEditPipeline.from_pretrained(lacking, unet=unet).unet is unet
    with pytest.raises(InputError, match="lacks its unet folder"):
        VideoEditPipeline.from_pretrained(lacking)
    assert VideoEditPipeline.from_pretrained(lacking, unet=None).unet is None


def test_precisions_and_the_device(checkpoint, tiny):
    half = VideoEditPipeline.from_pretrained(
        checkpoint, torch_dtype=torch.float16, vae=tiny.vae, device_map="cpu", variant=None,
        low_cpu_mem_usage=True, use_safetensors=True, requires_safety_checker=False,
    )  # fmt: skip
    found = [half.unet.dtype, half.text_encoder.dtype, half.vae.dtype]
    assert found == [torch.float16, torch.float16, torch.float32]  # a given part stays as it is
    asked = {"unet": torch.bfloat16, "default": torch.float16}
    mixed = VideoEditPipeline.from_pretrained(checkpoint, torch_dtype=asked)
    found = [mixed.unet.dtype, mixed.text_encoder.dtype, mixed.vae.dtype]
    assert found == [torch.bfloat16, torch.float16, torch.float16]
    part = VideoEditPipeline.from_pretrained(checkpoint, dtype={"unet": torch.float16})
    assert (part.unet.dtype, part.vae.dtype) == (torch.float16, torch.float32)


@pytest.fixture
def fp16_only(checkpoint, tmp_path):
    """A folder as many hub ids have it: every weight in half precision alone."""
    folder = tmp_path / "fp16"
    plain = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    plain.to(torch.float16).save_pretrained(folder, variant="fp16")
    assert all(".fp16." in f.name for f in folder.rglob("*.safetensors"))
    return folder


def test_weights_of_one_variant_alone_are_found(fp16_only, checkpoint, tiny, tmp_path):
    for options in ({}, {"variant": "fp16"}):
        pipe = VideoEditPipeline.from_pretrained(fp16_only, **options)
        assert pipe.unet.dtype == torch.float32
        expected = tiny.unet.conv_in.weight.half().float()
        assert torch.equal(pipe.unet.conv_in.weight, expected)
    result = CliRunner().invoke(app, ["info", "--model", str(fp16_only), "--variant", "fp16"])
    assert result.exit_code == 0, result.output
    wrong = CliRunner().invoke(app, ["info", "--model", str(fp16_only), "--variant", "bf16"])
    assert wrong.exit_code == 2 and "bf16" in wrong.output

    # With both, the plain one is the default, as in diffusers; a part without it gives its own.
    both = shutil.copytree(checkpoint, tmp_path / "both")
    shutil.copytree(fp16_only / "unet", both / "unet", dirs_exist_ok=True)
    pipes = [VideoEditPipeline.from_pretrained(both, variant=v) for v in (None, "fp16")]
    weights = [pipe.unet.conv_in.weight for pipe in pipes]
    assert torch.equal(weights[0], tiny.unet.conv_in.weight)
    assert torch.equal(weights[1], weights[0].half().float())

    # Two variants and no plain weights leave a choice.
    (file,) = (fp16_only / "vae").glob("*.safetensors")
    shutil.copy(file, file.with_name("diffusion_pytorch_model.bf16.safetensors"))
    with pytest.raises(InputError, match="vae of .* variants bf16, fp16 alone: give one of them"):
        VideoEditPipeline.from_pretrained(fp16_only)


def test_a_second_text_encoder_that_is_not_there_is_missed(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "xl")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionXLPipeline"}
    index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="whose tokenizer_2 is missing"):
        VideoEditPipeline.from_pretrained(folder)
    index |= {"tokenizer_2": ["transformers", "CLIPTokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="lacks its text_encoder_2 folder"):
        VideoEditPipeline.from_pretrained(folder)
    # An entry of nothing is no second encoder.
    index |= {"_class_name": "StableDiffusionPipeline", "text_encoder_2": [None, None]}
    index |= {"tokenizer_2": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert isinstance(VideoEditPipeline.from_pretrained(folder).vae, AutoencoderKL)


@pytest.mark.parametrize("command", ["edit", "invert", "info"])
def test_the_commands_take_variant_and_revision(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert "--variant" in result.output and "--revision" in result.output


def test_a_network_is_called_once_per_configuration(checkpoint, tmp_path, monkeypatch):
    """Without its weights, before they are read; another configuration is called anew."""
    calls = []
    for part, probe in PROBES.items():
        counted = lambda network, part=part, probe=probe: (calls.append(part), probe(network))  # noqa: E731
        monkeypatch.setitem(PROBES, part, counted)
    for _ in range(2):
        VideoEditPipeline.from_pretrained(checkpoint)
    assert sorted(calls) == ["text_encoder", "unet", "vae"]
    config = shutil.copytree(checkpoint, tmp_path / "other") / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 32}))
    VideoEditPipeline.from_pretrained(tmp_path / "other")
    assert calls[3:] == ["unet"]
    config.write_text(json.dumps(json.loads(config.read_text()) | {"norm_num_groups": 3}))
    for _ in range(2):  # a network that failed is not known
        with pytest.raises(InputError, match="cannot be loaded"):
            VideoEditPipeline.from_pretrained(tmp_path / "other")
