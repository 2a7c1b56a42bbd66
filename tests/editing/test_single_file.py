"""A pipeline from one .safetensors file, without the hub; a tiny model, about 5 s."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from original_layout import save_single_file
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from vala_research import InputError, VideoEditPipeline
from vala_research.editing.single_file import CONFIGS, clip_tokenizer, write_configs


@pytest.fixture(scope="module")
def file(checkpoint, tmp_path_factory):
    """The tiny checkpoint in one file, in a folder of its own."""
    pipe = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    return save_single_file(pipe, tmp_path_factory.mktemp("single") / "tiny.safetensors")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """A call of the hub fails, and would otherwise be seen as a slow success."""

    def fails(*args, **kwargs):
        raise AssertionError("the hub was asked")

    for name in ("snapshot_download", "hf_hub_download", "model_info"):
        monkeypatch.setattr(f"huggingface_hub.{name}", fails)
    monkeypatch.setattr("diffusers.loaders.single_file.snapshot_download", fails)


def test_it_is_the_checkpoint_of_the_folder(file, checkpoint, tmp_path, video):
    folder = VideoEditPipeline.from_pretrained(str(checkpoint))
    beside = tmp_path / "beside"
    shutil.copytree(checkpoint, beside, ignore=lambda _, names: [n for n in names if "safet" in n])
    shutil.copy(file, beside)
    call = dict(source_prompt="a red circle", num_inference_steps=2, output_type="pt")
    expected = folder(video, "a blue square", **call).frames
    for pipe in (
        VideoEditPipeline.from_single_file(file, config=checkpoint),
        VideoEditPipeline.from_single_file(str(beside / file.name)),
    ):
        for part in ("vae", "text_encoder", "unet"):
            known = getattr(folder, part).state_dict()
            found = getattr(pipe, part).state_dict()
            assert known.keys() == found.keys()
            assert all(torch.equal(found[k], x) for k, x in known.items())
        assert torch.equal(pipe(video, "a blue square", **call).frames, expected)
    half = VideoEditPipeline.from_single_file(file, config=checkpoint, torch_dtype=torch.bfloat16)
    assert half.unet.dtype == half.vae.dtype == half.text_encoder.dtype == torch.bfloat16


def test_the_local_tokenizer_is_clip_s():
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    ids = tokenizer("a photo of a cat, naïve", padding="max_length").input_ids
    assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 267] and ids[-1] == 49407
    assert len(ids) == 77 and clip_tokenizer("v2")("a", padding="max_length").input_ids[-1] == 0


@pytest.mark.parametrize("version, n_unet, n_text", [
    ("v1", 859_520_964, 123_060_480), ("v2", 865_910_724, 340_387_840),
])  # fmt: skip
def test_local_configurations_are_those_of_stable_diffusion(tmp_path, version, n_unet, n_text):
    """Known numbers of weights."""
    write_configs(tmp_path, version)
    counts = {}
    with torch.device("meta"):
        networks = {
            name: cls.from_config(cls.load_config(tmp_path / name))
            for name, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
        } | {
            "text": CLIPTextModel(CLIPTextConfig.from_pretrained(tmp_path / "text_encoder")),
        }
    counts = {k: sum(p.numel() for p in m.parameters()) for k, m in networks.items()}
    assert counts == {"unet": n_unet, "vae": 83_653_863, "text": n_text}
    assert networks["vae"].config.scaling_factor == 0.18215
    assert set(CONFIGS) == {"v1", "v2"}


def test_wrong_files_are_one_sentence(file, checkpoint, tmp_path):
    weights = load_file(file)
    damaged, bare = tmp_path / "damaged.safetensors", tmp_path / "bare.safetensors"
    damaged.write_bytes(b"abc")
    save_file({k: x for k, x in weights.items() if "cond_stage" not in k}, bare)
    short = tmp_path / "short.safetensors"
    save_file({k: x for k, x in weights.items() if not k.endswith("out.2.bias")}, short)
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"abc")
    code = shutil.copytree(checkpoint, tmp_path / "code")
    index = json.loads((code / "model_index.json").read_text())
    (code / "model_index.json").write_text(json.dumps(index | {"unet": ["mine", "Spy"]}))
    for given, config, message in [
        (damaged, None, "not readable"), (bare, None, "no whole checkpoint"),
        (pickle, None, "is a pickle"), (tmp_path / "no.safetensors", None, "no .safetensors file"),
        ("someone/model", None, "no .safetensors file"), (file, None, "cannot be loaded"),
        (short, checkpoint, "lacks|cannot be loaded"), (file, code, "code of its own"),
        (file, tmp_path / "no", "no model_index.json"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message) as caught:
            VideoEditPipeline.from_single_file(given, config=config)
        assert "\n" not in str(caught.value), given
    with pytest.raises(InputError, match="no option 'variant'"):
        VideoEditPipeline.from_single_file(file, variant="fp16")
