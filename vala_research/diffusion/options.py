"""The options of `from_pretrained`: they act as in diffusers, or are refused in one sentence."""

from collections.abc import Collection
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch

from vala_research import InputError

HUB = (
    "revision", "variant", "cache_dir", "token", "local_files_only", "force_download", "proxies",
)  # fmt: skip
# Options that change only how weights are read, or something that no edit uses.
WITHOUT_EFFECT = ("low_cpu_mem_usage", "disable_mmap", "requires_safety_checker")
# Options that are refused unless they have one of these values, and the remedy.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_safetensors": ((None, True), "only safetensors are read; leave it out"),
    "trust_remote_code": ((None, False), "downloaded code is never run; leave it out"),
    "custom_pipeline": ((None,), "call from_pretrained of that pipeline's class"),
    "custom_revision": ((None,), "leave it out"),
    "quantization_config": ((None,), "give the quantised network itself, as in unet=unet"),
    "max_memory": ((None,), "call pipe.enable_model_cpu_offload() after loading"),
    "offload_folder": ((None,), "call pipe.enable_model_cpu_offload() after loading"),
    "offload_state_dict": ((None, False), "leave it out"),
    "load_connected_pipeline": ((None, False), "leave it out"),
    "from_flax": ((None, False), "choose safetensors weights"),
    "use_onnx": ((None, False), "choose safetensors weights"),
    "dduf_file": ((None,), "unpack it, and give the folder"),
    "use_flashpack": ((None, False), "choose safetensors weights"),
}


@dataclass(frozen=True)
class LoadOptions:
    """What `from_pretrained` is asked for.

    dtypes: precision per part; "default" is that of the others. device: None leaves the CPU.
    parts: networks and so on in place of the checkpoint's, or None to leave a part out.
    hub: options of a download.
    """

    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    device: torch.device | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    hub: dict[str, Any] = field(default_factory=dict)

    def dtype(self, part: str) -> torch.dtype:
        """The precision of a part."""
        return self.dtypes.get(part, self.dtypes.get("default", torch.float32))


def load_options(dtype: Any, options: dict[str, Any], parts: Collection[str]) -> LoadOptions:
    """Sort and check the options of `from_pretrained`; parts: the names of a pipeline's parts.

    Raises InputError for an option that is unknown, or would have no effect.
    """
    left = dict(options)
    precision = _dtypes(dtype, left.pop("torch_dtype", None), parts)
    device = _device(left.pop("device_map", None))
    given = {name: left.pop(name) for name in tuple(left) if name in parts}
    hub = {name: left.pop(name) for name in HUB if name in left}
    for name, value in left.items():
        if name in WITHOUT_EFFECT:
            continue
        if name not in FIXED:
            known = ("dtype", "torch_dtype", "device_map", *parts, *HUB, *WITHOUT_EFFECT, *FIXED)
            near = get_close_matches(name, known, n=1)
            hint = f"write {near[0]!r}" if near else f"choose from {', '.join(known)}"
            raise InputError(f"from_pretrained has no option {name!r}: {hint}.")
        allowed, remedy = FIXED[name]
        if not any(value is x for x in allowed):
            raise InputError(f"{name}={str(value)[:50]} is not supported: {remedy}.")
    return LoadOptions(precision, device, given, hub)


def _dtypes(dtype: Any, torch_dtype: Any, parts: Collection[str]) -> dict[str, torch.dtype]:
    """Precision per part, from one dtype or a dictionary as diffusers reads it."""
    if None not in (dtype, torch_dtype) and dtype != torch_dtype:
        raise InputError(f"dtype is {dtype} and torch_dtype is {torch_dtype}: give one of them.")
    asked = dtype if torch_dtype is None else torch_dtype
    dtypes = asked if isinstance(asked, dict) else {"default": asked or torch.float32}
    for part, value in dtypes.items():
        if not isinstance(value, torch.dtype) or not value.is_floating_point:
            raise InputError(f"dtype is {value!r}: give one of torch, such as torch.float16.")
        if part not in ("default", *parts):
            raise InputError(
                f"dtype names the part {part!r}: choose from default, {', '.join(parts)}."
            )
    return dtypes


def _device(device_map: Any) -> torch.device | None:
    """The one device that a device map names."""
    if device_map is None:
        return None
    try:
        return torch.empty(0, device=device_map).device
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"device_map is {str(device_map)[:50]!r}: give one device that is here, such as 'cpu', "
            "or call pipe.enable_model_cpu_offload() after loading."
        ) from error
