"""A GPU that is not there: real numbers, computed by the CPU, that say they are on "fakegpu:0".

A `GpuTensor` wears the device and holds the CPU tensor with the numbers. Operations refuse tensors
of two devices, as CUDA's do, and then run on what is inside. So `.item()`, loops and gradients
work, and results can be compared with the CPU's. The device is torch's PrivateUse1.

    with FakeGpu() as gpu:
        out = on_gpu(pipe)(clip, "a blue square", ...)
    gpu.waits  # where the CPU waits for the device, by line of `vala_research`

It refuses float64, which MPS does not have, unless `has_float64`. It does not see memory, streams,
half precision, or kernels that a device lacks. A generator of the device cannot be made.
"""

import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME, WATCHED = "fakegpu", "/vala_research/"
_setup_privateuseone_for_python_backend(NAME)
GPU = torch.device(NAME, 0)

aten = torch.ops.aten
INDEXING = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor,
    aten._index_put_impl_.default,
}  # fmt: skip
MOVES = {aten._to_copy.default, aten.copy_.default}
WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
    aten.equal.default, aten.is_nonzero.default, aten._unique2.default,
    aten.repeat_interleave.Tensor,
}  # fmt: skip


NUMBERS = {int, float, bool, type(None)}


class GpuTensor(torch.Tensor):
    """Says "fakegpu:0"; `inner` is on the CPU."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, **_):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device=GPU,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor, **_):
        self.inner = inner.inner if isinstance(inner, GpuTensor) else inner

    def __repr__(self):
        return f"GpuTensor({self.inner!r})"

    def tolist(self):
        if FakeGpu.current is not None:
            FakeGpu.current.note("waits")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {}, FakeGpu.current)


class FakeGpu(TorchDispatchMode):
    """Within the block, "fakegpu" is a device.

    waits, copies: how often the CPU waited, and tensors moved to the device, by line.
    """

    current: "FakeGpu | None" = None

    def __init__(self, has_float64: bool = False):
        super().__init__()
        self.has_float64, self.waits, self.copies = has_float64, Counter(), Counter()

    def __enter__(self):
        # torch.tensor(data, device=...) and x[[0, 1]] then move what they made where modes see it.
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        FakeGpu.current = self
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        FakeGpu.current = None
        torch._C._set_only_lift_cpu_tensors(self._before)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {}, self)

    def see(self, func, args, on_gpu: list, makes_gpu: bool) -> None:
        """Note a wait or a copy, if this operation is one."""
        if func in INDEXING and on_gpu:
            index = [i for i in args[1] if i is not None]
            if any(i.dtype in (torch.bool, torch.uint8) for i in index):
                self.note("waits")
        elif func in WAITS and on_gpu:
            self.note("waits")
        elif func in MOVES:
            source = args[0] if func is aten._to_copy.default else args[1]
            target = makes_gpu if func is aten._to_copy.default else isinstance(args[0], GpuTensor)
            if isinstance(source, GpuTensor) and not target:
                self.note("waits")
            elif target and not isinstance(source, GpuTensor) and source.ndim:
                self.note("copies", tuple(source.shape))

    def note(self, kind: str, shape: tuple = ()) -> None:
        """Count an event at the innermost line of the package, or at "elsewhere"."""
        frame = sys._getframe(2)
        while frame is not None and WATCHED not in frame.f_code.co_filename:
            frame = frame.f_back
        where = "elsewhere"
        if frame is not None:
            where = f"{frame.f_code.co_filename.rpartition(WATCHED)[2]}:{frame.f_lineno}"
        counter = self.waits if kind == "waits" else self.copies
        counter[(where, *shape)] += 1


def run(func, args, kwargs, watch: FakeGpu | None):
    """Run one operation, with CUDA's rules about devices."""
    leaves = leaves_of((args, kwargs))
    on_gpu = [x for x in leaves if type(x) is GpuTensor]
    asked = kwargs.get("device")
    target = None if asked is None else torch.device(asked)
    makes_gpu = bool(on_gpu) if target is None else target.type == NAME
    refuse_mixing(func, args, leaves, on_gpu, target, makes_gpu)

    # Run it on what is inside.
    if watch is not None:
        watch.see(func, args, on_gpu, makes_gpu)
    inner_args, inner_kwargs = mapped(inner_of, args), mapped(inner_of, kwargs)
    if target is not None and target.type == NAME:
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
    out = func(*inner_args, **inner_kwargs)
    if func is aten.copy_.default:
        return args[0]
    if not makes_gpu:
        return out

    # Label the result.
    made = [x for x in leaves_of((out,)) if isinstance(x, torch.Tensor)]
    if not (watch and watch.has_float64) and any(x.dtype == torch.float64 for x in made):
        raise TypeError(f"The device has no float64 ({func}).")
    if func is aten._to_copy.default and out is inner_args[0]:
        out = out.clone()
    wrapped = mapped(outer_of, out)
    if on_gpu and makes_aliases(func):
        return return_and_correct_aliasing(func, args, kwargs, wrapped)
    return wrapped


# The walk of torch takes most of the time of a small edit, and so does isinstance of a tensor.


def leaves_of(x: Any) -> list:
    """List what is in nested lists, tuples and dicts, but numbers."""
    leaves = []
    for part in x.values() if type(x) is dict else x:
        if isinstance(part, (list, tuple, dict)):
            leaves += leaves_of(part)
        elif type(part) not in NUMBERS:
            leaves.append(part)
    return leaves


def mapped(f: Callable, x: Any) -> Any:
    """Apply f to every leaf but numbers."""
    kind = type(x)
    if kind in NUMBERS:
        return x
    if isinstance(x, (list, tuple)):
        return kind([mapped(f, part) for part in x])
    if kind is dict:
        return {name: mapped(f, part) for name, part in x.items()}
    return f(x)


def inner_of(x: Any) -> Any:
    return x.inner if type(x) is GpuTensor else x


def outer_of(x: Any) -> Any:
    return GpuTensor(x) if isinstance(x, torch.Tensor) else x


@cache
def makes_aliases(func) -> bool:
    """Whether an operation returns a view of an argument, or the argument."""
    return any(x.alias_info is not None for x in func._schema.returns)


def refuse_mixing(func, args, leaves: list, on_gpu: list, target, makes_gpu: bool) -> None:
    """Raise as CUDA would: tensors on two devices, or a CPU generator for a tensor of the GPU."""
    generators = [x for x in leaves if isinstance(x, torch.Generator)]
    if makes_gpu and any(g.device.type == "cpu" for g in generators):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'.")
    if not on_gpu or target is not None or func in MOVES:
        return
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    on_cpu = [x for x in tensors if not isinstance(x, GpuTensor) and x.ndim]
    if func in INDEXING and isinstance(args[0], GpuTensor):  # an index on the CPU is fine
        indices = {id(i) for i in args[1] if i is not None}
        on_cpu = [x for x in on_cpu if id(x) not in indices]
    if on_cpu:
        shapes = [tuple(x.shape) for x in on_cpu]
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{GPU} and cpu! ({func}, on the CPU: {shapes})"
        )


def on_gpu(owner):
    """Move every module of a pipeline, or a module, as `.to("cuda")` does."""
    parts = owner.components.values() if hasattr(owner, "components") else [owner]
    for module in (m for p in parts if isinstance(p, torch.nn.Module) for m in p.modules()):
        for store in (module._parameters, module._buffers):
            for name, x in store.items():
                if x is None or isinstance(x, GpuTensor):
                    continue
                y = GpuTensor(x.detach())
                if store is module._parameters:
                    y = torch.nn.Parameter(y, requires_grad=x.requires_grad)
                store[name] = y
    return owner
