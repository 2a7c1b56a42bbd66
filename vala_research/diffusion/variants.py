"""Variants of weights, such as fp16: what a folder holds, and which of them is loaded."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

from vala_research import InputError

Loaded = TypeVar("Loaded")

# model.safetensors, model.fp16.safetensors, and shards of both, in both orders of the names.
NAME = re.compile(r"[^.]+?(-\d{5}-of-\d{5})?(\.(?P<variant>\w+?)(-\d{5}-of-\d{5})?)?\.safetensors")


def variant_of(folder: Path, asked: str | None, what: str) -> str | None:
    """The variant to load from a part's folder; None is the weights without one.

    As in diffusers, a part without the variant that is asked for gives its plain weights. A part
    that has one variant alone gives that.
    Raises InputError where several are left to choose from, or only others than the one asked for.
    """
    matches = [NAME.fullmatch(file.name) for file in sorted(folder.glob("*.safetensors"))]
    variants = list(dict.fromkeys(match["variant"] for match in matches if match))
    if asked in variants:
        return asked
    if None in variants or not variants:
        return None
    if asked is None and len(variants) == 1:
        return variants[0]
    raise InputError(
        f"{what} has weights of the variants {', '.join(map(str, variants))} alone: give one of "
        f"them as variant, such as variant={variants[0]!r}."
    )


def half_first(dtype: torch.dtype | None, load: Callable[..., Loaded]) -> Loaded:
    """Call `load`; for float16 first with variant="fp16", which not every model has.

    Any other reason for which that fails is told by the call without the variant.
    """
    if dtype == torch.float16:
        with suppress(InputError):
            return load(variant="fp16")
    return load()
