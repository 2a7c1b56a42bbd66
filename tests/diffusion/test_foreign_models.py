"""A model's folder is foreign: it runs no code, reaches no hub and gets no random weights.

Costs about 15 s of one core.
"""

import json
import os
import shutil
import socket
import sys
import threading

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file
from tiny_models import tiny_motion_adapter, tiny_unet
from transformers import CLIPConfig, CLIPModel

from vala_research import InputError, VideoEditPipeline
from vala_research.diffusion.controlnet import load_controlnet
from vala_research.diffusion.loading import load_vision_tower, read_json
from vala_research.diffusion.motion import load_motion_unet
from vala_research.evaluation.clip_scores import ClipScorer
from vala_research.evaluation.structure import KeyEncoder

SPY = "import pathlib; pathlib.Path({mark!r}).write_text('ran')\nclass Evil: pass\n"
NESTED = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def foreign(checkpoint, tmp_path):
    """A copy to change."""
    return shutil.copytree(checkpoint, tmp_path / "foreign")


@pytest.fixture
def mark(tmp_path, foreign, monkeypatch):
    """A file that foreign code would write; the code lies wherever a library might look."""
    mark = tmp_path / "mark"
    code = SPY.format(mark=str(mark))
    names = ("evil", "pipeline", "None", "diffusers", "transformers", "modeling_evil")
    for folder in (foreign, *(p for p in foreign.iterdir() if p.is_dir())):
        for name in names:
            (folder / f"{name}.py").write_text(code)
    monkeypatch.chdir(foreign)
    monkeypatch.syspath_prepend(str(foreign / "vae"))  # `import evil` would find it
    for name in ("diffusers", "transformers"):
        (foreign / "vae" / f"{name}.py").rename(foreign / "vae" / f"{name}.py.txt")
    yield mark
    sys.modules.pop("evil", None)


def edit_json(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"unet": ["evil", "UNet2DConditionModel"]},
        {"scheduler": ["evil", "DDIMScheduler"]},
        {"tokenizer": ["evil", "CLIPTokenizer"]},
        {"safety_checker": ["evil", "Evil"]},
        {"anything": ["os", "system"]},
        {"feature_extractor": ["transformers", "../evil"]},
        {"_class_name": ["evil", "Evil"]},
        {"_class_name": {"evil": "Evil"}},
        {"auto_map": {"unet": "evil.Evil"}},
    ],
    ids=str,
)
def test_an_index_runs_no_code_and_is_refused(foreign, mark, changes):
    edit_json(foreign / "model_index.json", **changes)
    with pytest.raises(InputError):
        VideoEditPipeline.from_pretrained(str(foreign))
    assert not mark.exists() and "evil" not in sys.modules


@pytest.mark.parametrize(
    "part, changes",
    [
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
        ("text_encoder/config.json", {"auto_map": {"AutoConfig": "evil.Evil"}}),
        ("text_encoder/config.json", {"attn_implementation": "someone/kernel"}),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
        ("tokenizer/tokenizer_config.json", {"trust_remote_code": True}),
    ],
    ids=str,
)
def test_a_part_s_configuration_runs_no_code_and_is_refused(foreign, mark, part, changes):
    edit_json(foreign / part, **changes)
    with pytest.raises(InputError, match="names code to run"):
        VideoEditPipeline.from_pretrained(str(foreign))
    assert not mark.exists()


def test_python_files_in_the_folder_are_never_run(foreign, mark):
    """None.py is what diffusers takes for a custom pipeline where none is given."""
    for part in ("unet/config.json", "vae/config.json"):
        edit_json(foreign / part, _class_name="Evil")
    assert VideoEditPipeline.from_pretrained(str(foreign)).unet.config.in_channels == 4
    assert not mark.exists()


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_a, **_k: pytest.fail("network"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_a, **_k: pytest.fail("network"))


def test_a_part_takes_no_weights_from_another_place(foreign, no_network):
    told = {"base_model_name_or_path": "someone/elses-model", "peft_type": "LORA"}
    (foreign / "text_encoder" / "adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="weights from another place"):
        VideoEditPipeline.from_pretrained(str(foreign))


# Missing weights.


def without_one(folder, name: str) -> None:
    """Take the weight whose name contains `name` out of the folder's file."""
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    weights.pop(next(k for k in weights if name in k))
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize(
    "part, name",
    [
        ("unet", "conv_in.bias"),
        ("vae", "decoder.conv_out"),
        ("text_encoder", "position_embedding"),
    ],
)
def test_a_missing_weight_is_not_drawn_at_random(foreign, part, name):
    without_one(foreign / part, name)
    with pytest.raises(InputError, match=f"{part} of .* cannot be loaded.*{name}"):
        VideoEditPipeline.from_pretrained(str(foreign))


@pytest.fixture
def clip_folder(tmp_path, checkpoint):
    """A tiny CLIPModel with a tokenizer."""
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    text = small | {"vocab_size": 99, "max_position_embeddings": 12}
    vision = small | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    folder = shutil.copytree(checkpoint / "tokenizer", tmp_path / "clip")
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_every_other_network_checks_its_weights_too(tmp_path, clip_folder):
    unet = tiny_unet()
    ControlNetModel.from_unet(unet).save_pretrained(tmp_path / "control")
    tiny_motion_adapter().save_pretrained(tmp_path / "motion")
    loads = {
        "control": lambda folder: load_controlnet(folder, unet),
        "motion": lambda folder: load_motion_unet(unet, folder),
        "clip": ClipScorer.from_pretrained,
    }
    for name, load in loads.items():
        load(tmp_path / name)
        weight = {"clip": "visual_projection", "control": "conv_in", "motion": "proj_in"}[name]
        without_one(tmp_path / name, weight)
        with pytest.raises(InputError, match=f"cannot be loaded .*{weight}"):
            load(tmp_path / name)

    # The other half of a CLIP may be missing, a layer of this half may not.
    load_vision_tower(str(clip_folder))
    without_one(clip_folder, "vision_model.encoder.layers.0.mlp.fc1.weight")
    with pytest.raises(InputError, match="vision encoder .*fc1.weight"):
        load_vision_tower(str(clip_folder))


def test_only_the_pooler_of_a_vision_transformer_may_be_missing(tmp_path):
    """DINO's published file has no pooler, and nothing here calls one."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ViTModel(ViTConfig(image_size=32, patch_size=16, **small)).save_pretrained(tmp_path)
    for name in ("pooler.dense.weight", "pooler.dense.bias"):
        without_one(tmp_path, name)
    KeyEncoder.from_pretrained(tmp_path)
    without_one(tmp_path, "key.weight" if has(tmp_path, "key.weight") else "k_proj.weight")
    with pytest.raises(InputError, match="no vision transformer .* cannot be loaded"):
        KeyEncoder.from_pretrained(tmp_path)


def has(folder, name: str) -> bool:
    return any(name in k for file in folder.glob("*.safetensors") for k in load_file(file))


# Damaged values.


@pytest.mark.parametrize(
    "file, changes",
    [
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
        ("scheduler/scheduler_config.json", {"beta_start": 0}),
        ("scheduler/scheduler_config.json", {"beta_end": float("nan")}),
        ("scheduler/scheduler_config.json", {"trained_betas": [2.0, 3.0]}),
        ("scheduler/scheduler_config.json", {"steps_offset": -5}),
        ("scheduler/scheduler_config.json", {"steps_offset": 0.5}),
        ("scheduler/scheduler_config.json", {"timestep_spacing": 7}),
        ("scheduler/scheduler_config.json", {"prediction_type": None}),
        ("unet/config.json", {"sample_size": "64"}),
        ("unet/config.json", {"sample_size": 10**9}),
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"transformer_layers_per_block": -1}),
        ("unet/config.json", {"addition_embed_type": "text_time"}),
        ("unet/config.json", {"class_embed_type": "identity"}),
        ("unet/config.json", {"block_out_channels": [8, 10**12, 16]}),
        ("unet/config.json", {"flip_sin_to_cos": "no"}),
        ("vae/config.json", {"scaling_factor": 0}),
        ("vae/config.json", {"scaling_factor": float("inf")}),
        ("vae/config.json", {"scaling_factor": "big"}),
        ("vae/config.json", {"scaling_factor": None}),
        ("text_encoder/config.json", {"vocab_size": 10**12}),
        ("text_encoder/config.json", {"max_position_embeddings": 10**12}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": -1}),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_at_loading(foreign, file, changes):
    edit_json(foreign / file, **changes)
    with pytest.raises(InputError) as caught:
        VideoEditPipeline.from_pretrained(str(foreign))
    assert "\n" not in str(caught.value)


def test_infinite_defaults_of_diffusers_are_no_damage(foreign):
    """diffusers itself writes -Infinity for DPM-Solver."""
    from diffusers import DPMSolverMultistepScheduler

    DPMSolverMultistepScheduler().save_pretrained(foreign / "scheduler")
    assert "-Infinity" in (foreign / "scheduler" / "scheduler_config.json").read_text()
    index = foreign / "model_index.json"
    edit_json(index, scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    VideoEditPipeline.from_pretrained(str(foreign))


@pytest.mark.parametrize(
    "file",
    ["model_index.json", "unet/config.json", "text_encoder/config.json",
     "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"],
)  # fmt: skip
@pytest.mark.parametrize("text", [NESTED, "", "[]", '{"a":', "\xff", '"text"'], ids=range(6))
def test_files_that_are_no_json_objects(foreign, file, text):
    (foreign / file).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="cannot be read") as caught:
        VideoEditPipeline.from_pretrained(str(foreign))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["unet/config.json", "vae/more.safetensors"])
def test_a_fifo_is_not_opened(foreign, file):
    (foreign / file).unlink(missing_ok=True)
    os.mkfifo(foreign / file)
    caught = []

    def load() -> None:
        with pytest.raises(InputError, match="no regular file"):
            VideoEditPipeline.from_pretrained(str(foreign))
        caught.append(True)

    thread = threading.Thread(target=load, daemon=True)  # a hang would end with the tests
    thread.start()
    thread.join(60)
    assert caught


def test_a_weight_too_many_is_a_warning(foreign):
    file = foreign / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"more.weight": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.warns(UserWarning, match="1 weights of its file unused, such as more.weight"):
        VideoEditPipeline.from_pretrained(str(foreign))


def test_json_is_read_to_a_depth(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"a": [[{"b": 1}]]}))
    assert read_json(file) == {"a": [[{"b": 1}]]}
    deep = 1
    for _ in range(40):
        deep = [deep]
    file.write_text(json.dumps({"a": deep}))
    with pytest.raises(InputError, match="nested more than 32 levels"):
        read_json(file)
