"""Find a checkpoint and check it before any weight is read. Safetensors only."""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

from vala_research import InputError, miniature_path
from vala_research.diffusion.hub import Extras, fetch_file, fetch_parts, hub_errors
from vala_research.diffusion.loading import read_json
from vala_research.diffusion.variants import PICKLES, check_safetensors

# The only classes that are loaded, whatever model_index.json says: part -> library, classes.
SCHEDULERS = (
    *(kind.name for kind in KarrasDiffusionSchedulers), "LCMScheduler", "TCDScheduler",
    "FlowMatchEulerDiscreteScheduler",
)  # fmt: skip
PARTS = {
    "vae": ("diffusers", ("AutoencoderKL", "AutoencoderTiny")),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "scheduler": ("diffusers", SCHEDULERS),
}
# Parts of Stable Diffusion XL beside these.
SECOND = {
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
    "tokenizer_2": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
}
# Parts of checkpoints with a transformer, by its class; `transformer_2` of Wan 2.2 beside them.
_T5 = ("transformers", ("T5Tokenizer", "T5TokenizerFast"))
TRANSFORMERS = {
    "WanTransformer3DModel": {
        "vae": ("diffusers", ("AutoencoderKLWan", "AutoencoderKL", "AutoencoderTiny")),
        "text_encoder": ("transformers", ("UMT5EncoderModel", "CLIPTextModel")),
        "tokenizer": ("transformers", (*_T5[1], *PARTS["tokenizer"][1])),
    },
    "LTXVideoTransformer3DModel": {
        "vae": ("diffusers", ("AutoencoderKLLTXVideo",)),
        "text_encoder": ("transformers", ("T5EncoderModel",)), "tokenizer": _T5,
    },
    "SD3Transformer2DModel": {
        "vae": ("diffusers", ("AutoencoderKL",)),
        "text_encoder": SECOND["text_encoder_2"], "tokenizer": PARTS["tokenizer"], **SECOND,
    },
}  # fmt: skip
THIRD = {"text_encoder_3": ("transformers", ("T5EncoderModel",)), "tokenizer_3": _T5}
FAMILIES = (
    "Stable Diffusion 1.x, 2.x, XL or 3 (StableDiffusionPipeline, StableDiffusionXLPipeline, "
    "StableDiffusion3Pipeline), or of Wan or LTX (WanPipeline, LTXPipeline)"
)
# Libraries that an index may name for its other parts, which are not loaded.
LIBRARIES = ("diffusers", "transformers", "stable_diffusion", None)
WITH_WEIGHTS = (
    "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer",
    "transformer_2",
)  # fmt: skip
IMAGE_PARTS = ("image_encoder", "feature_extractor")  # of an IP-Adapter, where there is one
INDEX = "model_index.json"
# Checkpoints of ours, by their names, and the part of `miniature_path`.
OWN = {"miniature": "pipeline", "miniature_flow": "flow"}


def resolve_checkpoint(
    name_or_path: str, given: Collection[str] = (), extras: Extras | None = None, **hub: Any
) -> str:
    """The local folder of a checkpoint: "miniature", a folder, or a hub id, which is downloaded.

    given: parts that come from elsewhere, which the checkpoint need not hold.
    extras: what to download beside the parts of Stable Diffusion, where the repository has it.
    hub: `revision`, `cache_dir`, `token`, `variant`, `local_files_only`, as in diffusers.
    Raises InputError when it is no complete checkpoint of a known family in safetensors.
    """
    name = str(name_or_path)
    folder = Path(miniature_path(OWN[name]) if name in OWN else name)
    if folder.is_file():
        raise InputError(
            f"The model {name!r} is a file: give the folder that holds model_index.json."
        )
    if not folder.is_dir():
        if name in OWN:
            raise InputError(
                "The miniature's weights are missing from this installation: install it again, "
                "or train them with python -m vala_research.miniature."
            )
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise InputError(
                f"Unknown model {name!r}: give {' or '.join(map(repr, OWN))}, an existing folder "
                "that holds model_index.json, or a hub id such as "
                "'stable-diffusion-v1-5/stable-diffusion-v1-5'."
            )
        folder = _download(name, given, extras, **hub)
    for part in parts_of(check_index(folder / INDEX, name, given)):
        if part not in given:
            _check_part(folder / part, name)
    return str(folder)


def _download(name: str, given: Collection[str], extras: Extras | None, **hub: Any) -> Path:
    """Download a checkpoint, after its index has shown that its class is right."""
    with hub_errors(name):
        index = fetch_file(name, INDEX, **hub)
        entries = check_index(index, name, given)
        is_seeing = (entries.get("image_encoder") or [None])[0]
        there = (*parts_of(entries), *IMAGE_PARTS * bool(is_seeing))
        parts = [part for part in there if part not in given]
        fetch_parts(name, index.parent, parts, extras, **hub)
    return index.parent


def check_index(index: Path, name: str, given: Collection[str] = ()) -> dict[str, Any]:
    """Refuse other classes of checkpoints by their index, before any weight is read.

    given: parts that come from elsewhere.
    """
    if not index.exists():
        raise InputError(
            f"The folder {name!r} holds no model_index.json: give a folder in the diffusers layout."
        )
    parts = read_json(index)

    # Every entry names a class of a known library, never a file of the folder.
    found = parts.get("_class_name", "unknown")
    for part, entry in (*parts.items(), ("_class_name", ["diffusers", found])):
        if isinstance(entry, list) and not _is_known(entry):
            raise InputError(
                f"The model_index.json of {name!r} names code of its own for {part} "
                f"({str(entry)[:80]}), which is never run: give one of plain diffusers."
            )

    is_known = (parts.get("transformer") or [None, None])[1] in TRANSFORMERS
    if (parts.get("text_encoder_3") or [None, None])[1] is not None and not is_known:
        raise InputError(
            f"The checkpoint {name!r} is a {found} and has a third text encoder (text_encoder_3), "
            f"as Stable Diffusion 3 has: give one of {FAMILIES}."
        )
    for part, (library, classes) in parts_of(parts).items():
        entry = parts.get(part)
        cls = entry[1] if isinstance(entry, list) and entry[0] == library else None
        if part not in given and cls not in classes:
            raise InputError(
                f"The checkpoint {name!r} is a {found}, whose {part} is {cls or 'missing'}: "
                f"give one of {FAMILIES}."
            )
    return parts


def parts_of(index: dict[str, Any]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The parts that a checkpoint with this index has: library and classes of each."""
    known = TRANSFORMERS.get((index.get("transformer") or [None, None])[1])
    if known is not None:
        kinds = "diffusers", tuple(TRANSFORMERS)
        has_two = (index.get("transformer_2") or [None, None])[1] is not None
        networks = ("transformer", "transformer_2") if has_two else ("transformer",)
        if (index.get("text_encoder_3") or [None, None])[1] is not None:
            known = known | THIRD
        others = {"scheduler": PARTS["scheduler"]} | dict.fromkeys(networks, kinds)
        return known | others
    has_second = (index.get("text_encoder_2") or [None, None])[1] is not None
    return PARTS | SECOND if has_second else PARTS


def _is_known(entry: list) -> bool:
    """Whether an entry of an index is [a known library, the name of a class], or [None, None]."""
    if len(entry) != 2 or entry[0] not in LIBRARIES:
        return False
    return entry[1] is None or isinstance(entry[1], str) and entry[1].isidentifier()


def _check_part(folder: Path, name: str) -> None:
    """A part of the checkpoint is there, and its weights are safetensors."""
    files = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    if not files:
        raise InputError(f"The checkpoint {name!r} lacks its {folder.name} folder: fetch it again.")
    if folder.name in WITH_WEIGHTS:
        check_safetensors(files, f"The {folder.name} of {name!r}")


def read_weights(name_or_path: str | os.PathLike, file: str, purpose: str) -> dict[str, Tensor]:
    """The tensors of `file` in a folder, or in a hub repository (downloaded if need be).

    Raises InputError when there is no such file, or a pickle only.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _found(str(name_or_path), file, purpose)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not readable as safetensors: fetch or convert it.") from error
    if not all(x.isfinite().all() for x in weights.values()):
        raise InputError(f"{path} holds weights that are not finite: fetch or convert it again.")
    return weights


def check_runs(network: Callable[[dict[str, Tensor]], Any], weights: dict[str, Tensor], of: str):
    """Call a network on the meta device, where nothing is computed. Raises InputError if it fails.

    network: calls the network of these weights. of: what the weights should be.
    """
    try:
        network({name: weight.to("meta") for name, weight in weights.items()})
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The weights have other shapes: give those of {of}.") from error


def _found(name: str, file: str, purpose: str) -> Path:
    folder = Path(name)
    if (folder / file).is_file():
        return folder / file
    if not folder.exists() and name.count("/") == 1:
        return _downloaded(name, file, purpose)
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
