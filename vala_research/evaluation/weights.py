"""Weights of networks that no library loads from safetensors, by folder or hub id; no pickles."""

import os
from pathlib import Path

from torch import Tensor

from vala_research import InputError


def read_weights(name_or_path: str | os.PathLike, file: str, purpose: str) -> dict[str, Tensor]:
    """The tensors of `file` in a folder, or in a hub repository (downloaded if need be).

    Raises InputError when there is no such file, or a pickle only.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _found(str(name_or_path), file, purpose)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not readable as safetensors: fetch or convert it.") from error


def _found(name: str, file: str, purpose: str) -> Path:
    folder = Path(name)
    if (folder / file).is_file():
        return folder / file
    if not folder.exists() and name.count("/") == 1:
        return _downloaded(name, file, purpose)
    from vala_research.diffusion.backbone import PICKLES

    near = sorted(folder.glob("*")) if folder.is_dir() else [folder]
    if pickles := [path for path in near if path.is_file() and path.suffix in PICKLES]:
        raise InputError(
            f"{pickles[0]} is a pickle, which can run code when opened: convert it to"
            f" safetensors, and give the folder of {file}."
        )
    raise InputError(f"{name} holds no {file}, {purpose}: give a folder or hub id that does.")


def _downloaded(name: str, file: str, purpose: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(name, file))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"{file} of {name!r}, {purpose}, is neither on this machine nor to be had from the hub:"
            " check the id and the network, or give a folder that holds it."
        ) from error


def tensor_of(weights: dict[str, Tensor], name: str, of: str) -> Tensor:
    """One tensor, or a sentence about what the file should hold."""
    if name not in weights:
        raise InputError(f"The weights lack {name!r}: give those of {of}.")
    return weights[name].float()
