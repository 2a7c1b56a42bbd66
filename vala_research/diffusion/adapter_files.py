"""An adapter on disk: a LoRA that plain diffusers loads, its tokens, and what it belongs to.

`pytorch_lora_weights.safetensors` in diffusers' names, `prompt_tokens.safetensors`, `adapter.json`.
"""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vala_research import InputError, miniature_path
from vala_research.diffusion.backbone import PICKLES

WEIGHTS = "pytorch_lora_weights.safetensors"
TOKENS = "prompt_tokens.safetensors"
DESCRIPTION = "adapter.json"
PREFIX = "unet."  # of every name in WEIGHTS

Tensors = dict[str, Tensor]


def write_adapter(
    folder: str | os.PathLike,
    description: dict[str, Any],
    lora: Tensors,
    tokens: Tensors,
    lora_config: dict[str, Any],
) -> None:
    """Each file appears whole or not at all; the description, without which none loads, comes last.

    lora: by names in the UNet. lora_config: peft's, by which diffusers learns alpha.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    config = json.dumps({PREFIX + k: v for k, v in lora_config.items()}, sort_keys=True)
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: config}
    named = {PREFIX + k: v for k, v in lora.items()}
    _replace(folder / WEIGHTS, lambda path: save_file(_plain(named), path, metadata))
    if tokens:
        _replace(folder / TOKENS, lambda path: save_file(_plain(tokens), path))
    else:
        (folder / TOKENS).unlink(missing_ok=True)
    text = json.dumps(description, indent=2) + "\n"
    _replace(folder / DESCRIPTION, lambda path: path.write_text(text, encoding="utf-8"))


def _plain(tensors: Tensors) -> Tensors:
    return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}


def _replace(path: Path, write) -> None:
    """Write beside the file and rename: whole, or as it was."""
    unfinished = path.with_name(f".{path.stem}.{uuid4().hex[:8]}{path.suffix}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}).") from error
    finally:
        unfinished.unlink(missing_ok=True)


def read_adapter(folder: str | os.PathLike) -> tuple[dict[str, Any], Tensors, Tensors]:
    """(description, LoRA by names in the UNet, tokens); InputError names what is missing.

    folder: "miniature" is the one trained for the miniature.
    """
    path = Path(miniature_path("adapter") if str(folder) == "miniature" else folder)
    if path.is_file() and path.suffix in PICKLES:
        raise InputError(_refusal(path))
    if not path.is_dir():
        raise InputError(
            f"There is no adapter folder {str(path)!r}: give one that vala train wrote."
        )
    if not (path / WEIGHTS).is_file():
        pickles = sorted(f for f in path.iterdir() if f.suffix in PICKLES)
        if pickles:
            raise InputError(_refusal(pickles[0]))
    missing = [name for name in (DESCRIPTION, WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise InputError(
            f"The folder {str(path)!r} is no adapter, it holds no {' and no '.join(missing)}: "
            "give one that vala train wrote."
        )
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        lora = load_file(path / WEIGHTS)
        tokens = load_file(path / TOKENS) if (path / TOKENS).is_file() else {}
    except (ValueError, OSError, SafetensorError) as error:
        raise InputError(
            f"The adapter in {str(path)!r} cannot be read ({error}): copy or train it again."
        ) from error
    return description, {k.removeprefix(PREFIX): v for k, v in lora.items()}, tokens


def _refusal(path: Path) -> str:
    return (
        f"{str(path)!r} is a pickle, which can run code when opened: give the folder of an adapter "
        "in safetensors, or convert it."
    )
