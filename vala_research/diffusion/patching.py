"""Reversible changes to a UNet: attention processors, wrapped modules, chunks of frames."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_ltx import LTXAttention
from diffusers.models.transformers.transformer_wan import WanAttention
from diffusers.models.upsampling import Upsample2D
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from vala_research import InputError

# Modules of video models that look along time, by their names in diffusers.
TEMPORAL = ("motion_modules", "temp_attentions", "temp_convs", "transformer_in")
_LOCKS: WeakKeyDictionary[object, RLock] = WeakKeyDictionary()
_GUARD = RLock()


@dataclass(frozen=True)
class Patch:
    """A change to every module that `select(name, module)` picks.

    processor: `(name, attention) -> attention processor`, or
    forward: `(name, module, original_forward) -> new forward`.
    """

    select: Callable[[str, nn.Module], bool]
    processor: Callable[[str, Attention], Any] | None = None
    forward: Callable[[str, nn.Module, Callable], Callable] | None = None


def lock_of(owner: object) -> RLock:
    """The lock of a network or a pipeline. It is not in the owner, which can be copied."""
    with _GUARD:
        return _LOCKS.setdefault(owner, RLock())


def one_call_at_a_time(method: Callable) -> Callable:
    """Let one thread at a time call such methods of an object; the others wait."""

    @wraps(method)
    def waiting(self, *args: Any, **kwargs: Any) -> Any:
        with lock_of(self):
            return method(self, *args, **kwargs)

    return waiting


@contextmanager
def patched(unet: nn.Module, *patches: Patch) -> Iterator[int]:
    """Within the block, change a UNet. Yields how many modules are changed.

    Leaving restores the UNet, also after an exception. Blocks nest: the inner one wraps what the
    outer one set. Other threads wait until the UNet is restored.
    Raises LookupError when a patch picks no module, since it would silently do nothing.
    """
    with lock_of(unet), ExitStack() as undo:
        modules, count = list(named_modules(unet)), 0
        for patch in patches:
            targets = [(n, m) for n, m in modules if patch.select(n, m)]
            if not targets:
                raise LookupError(f"A patch found no module to change in {type(unet).__name__}.")
            for name, module in targets:
                undo.callback(_apply(patch, name, module))
            count += len(targets)
        yield count


def lora_layers(network: nn.Module) -> list[BaseTunerLayer]:
    """The layers of a network that carry a LoRA of peft."""
    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def scaled_lora(network: nn.Module, scale: float | None) -> Iterator[None]:
    """Within the block, multiply the weights of a network's LoRAs of peft by a scale; None is 1."""
    layers = [] if scale is None else lora_layers(network)
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scale_layer(scale)
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def named_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield what `network.named_modules()` yields, ten times as fast: its generators do not nest.

    Names are those of the network that torch.compile wraps, without its "_orig_mod".
    Every step of an edit asks for the modules of its networks several times.
    """
    waiting, known = [("", network)], set()
    while waiting:
        name, module = waiting.pop()
        if id(module) in known:
            continue
        known.add(id(module))
        yield name, module
        prefix = f"{name}." if name else ""
        own = [(part, m) for part, m in module._modules.items() if m is not None]
        parts = [(name if part == "_orig_mod" else prefix + part, m) for part, m in own]
        waiting += reversed(parts)


def _apply(patch: Patch, name: str, module: nn.Module) -> Callable[[], None]:
    """Apply one patch to one module. Returns the function that undoes it."""
    if patch.processor is not None:
        old = module.get_processor()
        module.set_processor(patch.processor(name, module))
        return lambda: module.set_processor(old)
    was_wrapped, old = "forward" in module.__dict__, module.forward
    module.forward = patch.forward(name, module, old)
    return lambda: (
        setattr(module, "forward", old) if was_wrapped else module.__dict__.pop("forward")
    )


def is_temporal(name: str) -> bool:
    """Whether a module looks along time, by its name: a part that only video models have."""
    return any(part in TEMPORAL for part in name.split("."))


def is_self_attention(name: str, module: nn.Module) -> bool:
    """Whether a module is spatial self-attention: not cross-attention, not attention in time.

    In transformers `attn1`; in that of Stable Diffusion 3 `attn`, which sees the text too, and
    `attn2`, which does not.
    """
    own = name.rpartition(".")[2]
    if isinstance(module, WanAttention | LTXAttention):
        return own == "attn1"
    if not isinstance(module, Attention) or is_temporal(name):
        return False
    if name.startswith("transformer_blocks."):
        return own == "attn" or own == "attn2" and not module.is_cross_attention
    return own == "attn1" and not module.is_cross_attention


def is_cross_attention(name: str, module: nn.Module) -> bool:
    """Whether a module is spatial cross-attention, which reads the prompt."""
    if isinstance(module, WanAttention | LTXAttention):
        return name.rpartition(".")[2] == "attn2"
    return (
        isinstance(module, Attention)
        and name.rpartition(".")[2] in ("attn1", "attn2")
        and not is_temporal(name)
        and module.is_cross_attention
    )


def is_heavy_per_frame(name: str, module: nn.Module) -> bool:
    """Whether a module sees one frame at a time and needs much more memory than its output."""
    if is_temporal(name):
        return False
    if isinstance(module, Attention):
        return name.rpartition(".")[2] == "attn2"
    if isinstance(module, Downsample2D | Upsample2D):
        return ".resnets." not in name
    return isinstance(module, ResnetBlock2D | FeedForward)


def chunks(n_frames: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` frames."""
    if size < 1:
        raise InputError(f"frames_per_chunk is {size}: give 1 or more, or None to choose it.")
    return [slice(i, min(i + size, n_frames)) for i in range(0, n_frames, size)]


def chunking(n_branches: int, frames_per_chunk: int) -> Patch:
    """A patch that loops the heavy per-frame modules over chunks of frames.

    A chunk holds all guidance branches.
    """

    def wrap(_name: str, _module: nn.Module, forward: Callable) -> Callable:
        def looped(*args: Any, **kwargs: Any) -> Tensor:
            # The first tensor is the module's input; some UNets pass it by keyword.
            x = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            n_frames, out = len(x) // n_branches, None

            for frames in chunks(n_frames, frames_per_chunk):
                y = forward(
                    *(_part(a, frames, len(x), n_branches) for a in args),
                    **{k: _part(v, frames, len(x), n_branches) for k, v in kwargs.items()},
                ).unflatten(0, (n_branches, -1))
                if out is None:  # g f ..., now that the shape of a chunk is known
                    out = y.new_empty(n_branches, n_frames, *y.shape[2:])
                out[:, frames] = y
            return out.flatten(0, 1)

        return looped

    return Patch(is_heavy_per_frame, forward=wrap)


def _part(value: Any, frames: slice, n_rows: int, n_branches: int) -> Any:
    """The rows of some frames, in all branches, of a tensor or several; else the value itself.

    It is no inner function: one that calls itself would keep its tensors until Python looks for
    circles.
    """
    if isinstance(value, list | tuple):  # text and the pictures of IP-Adapters
        return type(value)(_part(v, frames, n_rows, n_branches) for v in value)
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != n_rows:
        return value
    return value.unflatten(0, (n_branches, -1))[:, frames].flatten(0, 1)
