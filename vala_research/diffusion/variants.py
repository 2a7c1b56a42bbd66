"""Variants of weights, such as fp16: what a folder holds, and which of them is loaded."""

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TypeVar

import torch

from vala_research import InputError

Loaded = TypeVar("Loaded")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")

# model.safetensors, model.fp16.safetensors, and shards of both, in both orders of the names.
NAME = re.compile(r"[^.]+?(-\d{5}-of-\d{5})?(\.(?P<variant>\w+?)(-\d{5}-of-\d{5})?)?\.safetensors")


def check_safetensors(files: Collection[str], what: str) -> None:
    """Check that weights in safetensors are among a network's files. Raises InputError."""
    if any(file.endswith(".safetensors") for file in files):
        return
    if any(file.endswith(PICKLES) for file in files):
        raise InputError(
            f"{what} has pickled weights only, which can run code when opened: convert them to "
            "safetensors, or choose a checkpoint that ships safetensors."
        )
    raise InputError(f"{what} has no weights: fetch its .safetensors file.")


def weights_of(files: Collection[str], variant: str | None) -> list[str]:
    """The files with the weights of a variant; None is those without one."""
    return [f for f in files if (match := NAME.fullmatch(f)) and match["variant"] == variant]


def variant_of(files: Collection[str], asked: str | None, what: str) -> str | None:
    """The variant to load of a part, by its files' names; None is the weights without one.

    As in diffusers, a part without the variant that is asked for gives its plain weights. A part
    that has one variant alone gives that.
    Raises InputError where several are left to choose from, or only others than the one asked for.
    """
    matches = [NAME.fullmatch(file) for file in sorted(files)]
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
