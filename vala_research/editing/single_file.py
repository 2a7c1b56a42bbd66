"""A whole checkpoint in one .safetensors file, in the layout of its first trainers.

Such a file holds weights alone. diffusers fetches what is missing from the hub; here everything is
local: the configurations lie beside the file, or are those of Stable Diffusion 1.5 and 2.1.
"""

import json
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.loaders import FromSingleFileMixin
from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES, infer_diffusers_model_type
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTokenizer

from vala_research import InputError
from vala_research.assets import clip_merges
from vala_research.diffusion.checkpoint import PARTS, PICKLES, WITH_WEIGHTS, check_index
from vala_research.diffusion.loading import check_folder
from vala_research.diffusion.parts import check_parts
from vala_research.editing.loaders import explained

INDEX = "model_index.json"
CLASSES = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}
# What the configurations of all versions share: the defaults of the classes, and these values.
VAE = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4,
    "sample_size": 512, "scaling_factor": 0.18215,
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
TEXT = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2}
CONFIGS = {
    "v1": {
        "vae": VAE,
        "unet": {"cross_attention_dim": 768, "sample_size": 64, "attention_head_dim": 8},
        "text_encoder": TEXT | {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "hidden_act": "quick_gelu",
        },
        "scheduler": SCHEDULER,
    },
    "v2": {
        "vae": VAE | {"sample_size": 768},
        "unet": {
            "cross_attention_dim": 1024, "sample_size": 96, "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
        },
        "text_encoder": TEXT | {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
            "num_attention_heads": 16, "hidden_act": "gelu",
        },
        "scheduler": SCHEDULER | {"prediction_type": "v_prediction"},
    },
}  # fmt: skip


class SingleFileMixin(FromSingleFileMixin):
    """Loads a pipeline from one file, without the hub."""

    @classmethod
    def from_single_file(
        cls, path: str | PathLike, config: str | PathLike | None = None,
        dtype: torch.dtype | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Load Stable Diffusion 1.x or 2.x from one local .safetensors file.

        config: folder in the diffusers layout, whose configurations and tokenizer are used. None
            is the file's own folder, if it has a model_index.json, or else Stable Diffusion 1.5 or
            2.1 (v-prediction), whichever the weights are.
        dtype: of the networks (default float32); `torch_dtype` is a synonym.
        kwargs: parts to use instead of those of the file, such as `vae`.
        Raises InputError.
        """
        file, dtype = Path(path), kwargs.pop("torch_dtype", None) or dtype or torch.float32
        what = f"The model {str(path)!r}"
        if unknown := sorted(kwargs.keys() - PARTS.keys()):
            raise InputError(f"from_single_file has no option {unknown[0]!r}: leave it out.")
        version = checked_version(file, what)
        if config is None and (file.parent / INDEX).is_file():
            config = file.parent
        with TemporaryDirectory() as made:
            if config is None:
                write_configs(Path(made), version)
                kwargs.setdefault("tokenizer", clip_tokenizer(version))
                config = made
            check_configs(Path(config))
            with explained(what, "give its own config, a folder in the diffusers layout."):
                pipe = super().from_single_file(
                    str(file), config=str(config), local_files_only=True, dtype=dtype, **kwargs
                )
        for part in (part for part in WITH_WEIGHTS if part in PARTS):
            missing = [n for n, p in getattr(pipe, part).named_parameters() if p.is_meta]
            if missing:
                raise InputError(
                    f"{what} lacks {len(missing)} weights of its {part}, such as {missing[0]}: "
                    "fetch it again."
                )
        check_parts(str(path), *(getattr(pipe, part) for part in PARTS))
        pipe.register_to_config(_name_or_path=str(path))
        return pipe


def checked_version(file: Path, what: str) -> str:
    """"v1" or "v2", by the names and shapes in a file. Raises InputError for all else."""
    if file.suffix.lower() in PICKLES:
        raise InputError(
            f"{what} is a pickle, which can run code when opened: convert it to safetensors."
        )
    if file.suffix.lower() != ".safetensors" or not file.is_file():
        raise InputError(f"{what} is no .safetensors file on this machine: give one.")
    try:
        with safe_open(file, "pt") as weights:
            shapes: dict[str, Tensor] = {
                name: torch.empty(weights.get_slice(name).get_shape(), device="meta")
                for name in weights.keys()  # noqa: SIM118 - no mapping
            }
    except (SafetensorError, OSError) as error:
        raise InputError(f"{what} is not readable as safetensors: fetch it again.") from error
    kind = infer_diffusers_model_type(shapes)
    texts = (CHECKPOINT_KEY_NAMES["clip"], CHECKPOINT_KEY_NAMES["open_clip"])
    has_parts = all(
        any(name.startswith(prefix) for name in shapes)
        for prefix in ("model.diffusion_model.", "first_stage_model.")
    )
    if kind not in CONFIGS or not has_parts or not any(name in shapes for name in texts):
        raise InputError(
            f"{what} is no whole checkpoint of Stable Diffusion 1.x or 2.x (UNet, VAE and text "
            "encoder): give one, or a folder in the diffusers layout."
        )
    return kind


def check_configs(folder: Path) -> None:
    """Refuse configurations that lack a part, or that name other classes or code to run."""
    check_index(folder / INDEX, str(folder))
    for part in PARTS:
        if (folder / part).is_dir():
            check_folder(folder / part)


def write_configs(folder: Path, version: str) -> None:
    """Write the configurations of Stable Diffusion 1.5 or 2.1, in the diffusers layout."""
    index = {"_class_name": "StableDiffusionPipeline", **CLASSES}
    (folder / INDEX).write_text(json.dumps(index))
    for part, config in CONFIGS[version].items():
        (folder / part).mkdir()
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        kind = "model_type" if part == "text_encoder" else "_class_name"
        known = {kind: "clip_text_model" if part == "text_encoder" else CLASSES[part][1]}
        (folder / part / name).write_text(json.dumps(known | config))


def clip_tokenizer(version: str = "v1") -> CLIPTokenizer:
    """CLIP's tokenizer, as Stable Diffusion uses it. Version 2 pads by "!"."""
    merges = clip_merges()
    letters = byte_letters()
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary += [first + second for first, second in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges,
        model_max_length=77, pad_token="!" if version == "v2" else "<|endoftext|>",
    )  # fmt: skip


def byte_letters() -> list[str]:
    """A printable character for every byte: itself where it is printable, or one above 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]
