"""Load networks by classes that we name, from configurations that are checked first.

A folder of weights is foreign: it may name code to run, another repository or absurd sizes, or lack
weights, which the libraries would draw at random.
"""

import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import ConfigMixin
from safetensors import safe_open
from torch import nn

from vala_research import InputError, miniature_path

MAX_BYTES, MAX_DEPTH, MAX_NUMBER = 2**24, 32, 2**31
NAMES_CODE = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code")
SLACK = 2**20  # numbers that a network may hold beside the weights of its file
FETCH = "fetch it again."
# Networks that passed `_check_network`: class, probe, number of weights and configuration.
CALLED: set[tuple] = set()
CLIP = "give a folder or hub id of a CLIP model with safetensors weights."


@contextmanager
def silenced(*logging: ModuleType) -> Iterator[None]:
    """Within the block, show no warnings of diffusers or transformers (their `utils.logging`)."""
    before = [(library, library.get_verbosity()) for library in logging]
    for library in logging:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, verbosity in before:
            library.set_verbosity(verbosity)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises InputError: no regular file, too large, nested too deeply, or it names code to run.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise OSError("it is no regular file of at most 16 MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        entries = list(_entries(content))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({reason_of(error)}): {FETCH}") from error
    for key, value in entries:
        is_kernel = key.endswith("attn_implementation") and "/" in str(value)
        if value and key in NAMES_CODE or is_kernel:
            raise InputError(
                f"{path} names code to run ({key}), and downloaded code is never run: choose a "
                "model that needs none."
            )
    return content


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of a JSON value, also inside; an element has the key of its list."""
    left = [("", content, 0)]
    while left:
        key, value, depth = left.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        yield key, value
        if isinstance(value, dict):
            left += [(str(k), v, depth + 1) for k, v in value.items()]
        elif isinstance(value, list):
            left += [(key, v, depth + 1) for v in value]


def check_folder(folder: Path) -> None:
    """Check what a library will read in a folder. Raises InputError for what it must not read."""
    for file in folder.iterdir():
        if not (file.is_file() or file.is_dir()):
            raise InputError(f"{file} is no regular file: {FETCH}")
        if file.name == "adapter_config.json":
            raise InputError(
                f"{file} takes the weights from another place: give the folder of the whole model."
            )
        if file.suffix == ".json" and "config" in file.name:
            read_json(file)


def check_types(config: dict[str, Any], cls: type, where: Path, most: float = MAX_NUMBER) -> None:
    """Check the values of a diffusers class's configuration by its defaults. Raises InputError.

    most: the largest size of a number.
    """
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        value, default = config.get(name), parameter.default
        if value is None or name == "self":
            continue
        allowed = _allowed(default, str(parameter.annotation).lower())
        is_wrong = bool(allowed) and type(value) not in allowed
        numbers = [x for _, x in _entries(value) if isinstance(x, int | float)]
        if default not in (math.inf, -math.inf):
            is_wrong |= any(not abs(x) <= most for x in numbers)  # NaN is wrong too
        if is_wrong:
            text = str(value)[:50]
            raise InputError(f"{where} has {name} {text!r}, which {cls.__name__} forbids: {FETCH}")


def _allowed(default: Any, hint: str) -> tuple[type, ...]:
    """The types that a value may have where a class has this default and hint; none: any."""
    known = {bool: (bool,), str: (str,), int: (int,), float: (int, float), tuple: (list,)}
    allowed = known.get(type(default), ())
    if allowed and "float" in hint:
        allowed += (float,)
    if allowed and ("tuple" in hint or "list" in hint):
        allowed += (list,)
    return allowed


def load_network(
    cls: type, place: str | PathLike, what: str, remedy: str = FETCH,
    dtype: torch.dtype | None = None, unused: tuple[str, ...] = (),
    probe: Callable[[nn.Module], Any] | None = None, **hub: Any,
) -> nn.Module:  # fmt: skip
    """Load a network of diffusers or transformers, of this class, from a folder or a hub id.

    what, remedy: beginning and end of the sentence that says why it cannot be loaded.
    unused: beginnings of names of weights that may be missing.
    probe: calls the network on the meta device, where nothing is computed, to see whether it runs.
    Raises InputError, also when the file lacks a weight.
    """
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    is_ours, folder = issubclass(cls, ConfigMixin), Path(place)
    if dtype is not None:
        hub["torch_dtype" if is_ours else "dtype"] = dtype
    if not is_ours and not hasattr(cls, "config_class"):  # AutoModel
        hub["trust_remote_code"] = False
    try:
        with silenced(ours, theirs):
            if folder.is_dir():
                hub["local_files_only"] = True
                _check_network(cls, folder, probe)
            hub |= {"use_safetensors": True, "output_loading_info": True}
            model, info = cls.from_pretrained(str(place), **hub)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{what} cannot be loaded ({reason_of(error)}): {remedy}") from error

    # A weight that the file lacks would be random.
    missing = sorted(k for k in info["missing_keys"] if not k.startswith(unused))
    if missing:
        raise InputError(
            f"{what} cannot be loaded (its file lacks {len(missing)} weights, such as "
            f"{missing[0]}): {remedy}"
        )
    if is_ours and info["unexpected_keys"]:
        warnings.warn(
            f"{what} leaves {len(info['unexpected_keys'])} weights of its file unused, such as "
            f"{min(info['unexpected_keys'])}: its config.json may be that of another network.",
            stacklevel=3,
        )
    return model.eval()


def _check_network(cls: type, folder: Path, probe: Callable[[nn.Module], Any] | None) -> None:
    """Check a folder's network without its weights, on the meta device, and call it by probe.

    Raises InputError if it has other numbers of layers or weights than the file holds.
    """
    # What the file holds, and numbers of layers or lengths of lists beyond it.
    check_folder(folder)
    counts = [n for file in folder.glob("*.safetensors") for n in _sizes(file)]
    where = folder / "config.json"
    if not where.exists() or not counts:
        raise FileNotFoundError("the folder holds no config.json or no safetensors weights")
    config = read_json(where)
    for key, value in _entries(config):
        is_number = type(value) in (int, float)
        is_wrong = is_number and not abs(value) <= MAX_NUMBER
        if is_number and "layers" in key:
            is_wrong |= not 1 <= value <= max(len(counts), 1)
        is_wrong |= isinstance(value, list) and len(value) > max(len(counts), 1000)
        if is_wrong:
            raise InputError(f"{where} has {key} {str(value)[:50]}, which is out of range: {FETCH}")

    # The network as the configuration describes it. One that was built and called before is known.
    known_as = (cls, probe, sum(counts), json.dumps(config, sort_keys=True))
    if known_as in CALLED:
        return
    if issubclass(cls, ConfigMixin):
        check_types(config, cls, where)
        with torch.device("meta"):
            skeleton = cls.from_config(cls.load_config(folder))
    else:
        from transformers import AutoConfig

        kind = getattr(cls, "config_class", None)
        given = {} if kind else {"trust_remote_code": False}
        known = (kind or AutoConfig).from_pretrained(folder, local_files_only=True, **given)
        with torch.device("meta"):
            skeleton = cls(known) if kind else cls.from_config(known, **given)
    described = sum(x.numel() for x in (*skeleton.parameters(), *skeleton.buffers()))
    if described > 2 * sum(counts) + SLACK:
        raise InputError(
            f"{where} describes {described} weights and the file holds {sum(counts)}: {FETCH}"
        )
    if probe is not None:
        probe(skeleton.eval())
    CALLED.add(known_as)


def _sizes(file: Path) -> list[int]:
    with safe_open(file, "pt") as weights:
        return [math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()]  # noqa: SIM118 - no mapping


def load_vision_tower(name_or_path: str, **hub: Any) -> nn.Module:
    """Load the vision half of a CLIP model, frozen, in float32.

    name_or_path: "miniature", a folder, or a hub id with weights in safetensors.
    hub: such as `local_files_only`.
    Raises InputError when there is none of that name.
    """
    from transformers import CLIPVisionModel

    name, remedy = str(name_or_path), CLIP
    folder = miniature_path("clip") if name == "miniature" else name
    if hub.get("local_files_only") and not Path(folder).is_dir():
        remedy = (
            "an adapter's file names it, which downloads nothing; if you trust it, run "
            f"`hf download {name}`, or give vision_encoder."
        )
    what, dtype = f"The vision encoder {name!r}", torch.float32
    return load_network(CLIPVisionModel, folder, what, remedy, dtype, **hub).requires_grad_(False)


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
