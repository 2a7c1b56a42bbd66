"""An adapter on disk: a LoRA that plain diffusers loads, its tokens, and what it belongs to.

`pytorch_lora_weights.safetensors` in diffusers' names, `prompt_tokens.safetensors`, `adapter.json`.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vala_research import InputError, miniature_path
from vala_research.adapter.settings import AdapterSettings, lora_shapes, signature
from vala_research.diffusion.backbone import UNet
from vala_research.diffusion.checkpoint import PICKLES
from vala_research.diffusion.loading import read_json, reason_of
from vala_research.diffusion.records import is_transformer, text_width
from vala_research.files import written_together

WEIGHTS = "pytorch_lora_weights.safetensors"
TOKENS = "prompt_tokens.safetensors"
DESCRIPTION = "adapter.json"
FILES = (WEIGHTS, TOKENS, DESCRIPTION)  # the description last
PREFIXES = ("unet.", "transformer.")  # of every name in WEIGHTS, as diffusers has them

Tensors = dict[str, Tensor]


def write_adapter(
    folder: str | os.PathLike,
    description: dict[str, Any],
    lora: Tensors,
    tokens: Tensors,
    lora_config: dict[str, Any],
    prefix: str,
) -> None:
    """Write an adapter's files whole or not at all: a failure leaves what was there.

    The description goes first and comes last, so that no mixture of two adapters is ever read.
    lora: by names in the UNet. lora_config: peft's, by which diffusers learns alpha. prefix: one of
    PREFIXES.
    Raises FloatingPointError for weights that are not finite.
    """
    check_finite(lora | tokens)
    folder = Path(folder)
    config = json.dumps({prefix + k: v for k, v in lora_config.items()}, sort_keys=True)
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: config}
    with written_together(*(folder / name for name in FILES)) as (weights, prompts, text):
        save_file(_plain(lora, prefix), weights, metadata)
        save_file(_plain(tokens), prompts)
        text.write_text(json.dumps(description, indent=2) + "\n", "utf-8")


def prefix_of(unet: UNet) -> str:
    """The prefix of a network's weights in a LoRA's file, as diffusers' pipelines read it."""
    return PREFIXES[is_transformer(unet)]


def check_finite(weights: Tensors) -> None:
    """Raise FloatingPointError for NaN or infinity: such weights are never saved."""
    if not all(x.isfinite().all() for x in weights.values()):
        raise FloatingPointError(
            "The adapter's weights are not finite, so they are not saved: train at a lower "
            "learning rate, or without mixed precision."
        )


def _plain(tensors: Tensors, prefix: str = "") -> Tensors:
    return {prefix + k: v.detach().cpu().contiguous() for k, v in tensors.items()}


@dataclass(frozen=True)
class StoredAdapter:
    """What a folder holds, known to fit a UNet; lora: by names in it."""

    settings: AdapterSettings
    lora: Tensors
    tokens: Tensors
    vision_encoder: str | None = None

    @property
    def d_vision(self) -> int | None:
        """Width of the image tokens that it reads, if any."""
        weight = self.tokens.get("projection.weight")
        return None if weight is None else weight.shape[1]


def read_adapter(folder: str | os.PathLike, unet: UNet) -> StoredAdapter:
    """Read a folder ("miniature": the adapter of the miniature) for a UNet, which stays untouched.

    Raises InputError: no adapter there, a pickle, damaged files, an adapter of another backbone.
    """
    is_miniature = str(folder) == "miniature"
    path = Path(miniature_path("adapter") if is_miniature else folder)
    if is_miniature and not path.is_dir():
        raise InputError(
            "The miniature's adapter is missing from this installation: train one with vala train."
        )
    _check_files(path)
    try:
        description = read_json(path / DESCRIPTION)
        settings = AdapterSettings(**description["settings"])
        lora = load_file(path / WEIGHTS)
        tokens = load_file(path / TOKENS)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, OSError, OverflowError, SafetensorError) as error:
        raise InputError(
            f"The adapter in {str(path)!r} cannot be read ({reason_of(error)}): copy or train it "
            "again."
        ) from error
    vision = description.get("vision_encoder")
    values = [*lora.values(), *tokens.values()]
    if not all(x.is_floating_point() and x.isfinite().all() for x in values):
        raise InputError(f"The adapter in {str(path)!r} holds weights that are no finite numbers.")
    if not isinstance(vision, str | None) or not vision and vision is not None:
        raise InputError(f"The adapter in {str(path)!r} names no vision encoder: train it again.")
    lora = {k.removeprefix(prefix_of(unet)): v for k, v in lora.items()}
    _check_backbone(str(path), description.get("backbone"), settings, lora, unet)
    _check_tokens(str(path), settings, tokens, text_width(unet))
    return StoredAdapter(settings, lora, tokens, vision)


def _check_files(path: Path) -> None:
    if path.is_file() and path.suffix in PICKLES:
        raise InputError(_refusal(path))
    if not path.is_dir():
        raise InputError(f"There is no adapter folder {str(path)!r}: give one of vala train.")
    if not (path / WEIGHTS).is_file():
        pickles = sorted(f for f in path.iterdir() if f.suffix in PICKLES)
        if pickles:
            raise InputError(_refusal(pickles[0]))
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise InputError(
            f"The folder {str(path)!r} is no adapter, it holds no {' and no '.join(missing)}: "
            "give one of vala train."
        )


def _check_backbone(
    name: str, signed: Any, settings: AdapterSettings, lora: Tensors, unet: UNet
) -> None:
    theirs = signed if isinstance(signed, dict) else {}
    differ = [
        f"{k} {theirs.get(k)} where this model has {v}"
        for k, v in signature(unet).items()
        if theirs.get(k) != v
    ]
    expected = lora_shapes(unet, settings)
    found = {k: tuple(x.shape) for k, x in lora.items()}
    wrong = sorted(k for k in {*expected, *found} if expected.get(k) != found.get(k))
    differ += [
        f"{k} {found.get(k, 'missing')} where this model has {expected.get(k, 'none')}"
        for k in wrong[:1]
    ]
    if differ:
        raise InputError(
            f"The adapter {name!r} was trained for another backbone ({'; '.join(differ)}): train "
            "one for this model."
        )


def _check_tokens(name: str, settings: AdapterSettings, tokens: Tensors, d_text: int) -> None:
    shapes = {"shared": (settings.n_shared, d_text)} if settings.has_tokens else {}
    if settings.uses_frame_tokens and "projection.weight" in tokens:
        d_vision = tokens["projection.weight"].shape[-1]
        shapes |= {"projection.weight": (d_text, d_vision), "projection.bias": (d_text,)}
    elif settings.uses_frame_tokens:
        shapes |= {"projection.weight": ()}
    if shapes != {k: tuple(x.shape) for k, x in tokens.items()}:
        raise InputError(
            f"The prompt tokens of {name!r} are not the {settings.n_shared} of width {d_text} that "
            "its settings and this model's text have: copy or train it again."
        )


def _refusal(path: Path) -> str:
    return (
        f"{str(path)!r} is a pickle, which can run code when opened: give the folder of an adapter "
        "in safetensors, or convert it."
    )
