"""Count each kind of network call once: a weightless edit repeats a few calls many times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from vala_research.diffusion.patching import Patch
from vala_research.evaluation.flops import FlopCount
from vala_research.evaluation.memory import LiveTensors


@dataclass
class KnownCalls:
    """FLOPs and memory of the network calls that were counted once.

    Two calls are of one kind if network, shapes and attention processors are the same. A call of a
    known kind makes an empty prediction, and adds what the first call of its kind took.
    flops: sum over the calls that were not made.
    """

    flops: int = 0
    _known: dict[tuple, tuple] = field(default_factory=dict)

    def patch(self, counter: FlopCount, live: LiveTensors) -> Patch:
        """A patch of a whole network that remembers what `counter` and `live` say of its calls.

        The network returns one tensor, or one tensor in a tuple.
        """

        def wrap(_name: str, network: nn.Module, forward: Callable) -> Callable:
            def known(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
                processors = list(getattr(network, "attn_processors", {}).values())
                kind = id(network), *_shapes(args, kwargs), *map(_settings, processors)
                if kind in self._known:
                    flops, rise, out, _ = self._known[kind]
                    self.flops += flops
                    live.peak = max(live.peak, live.now + rise)
                    return tree_map(_empty, out)

                # Lower the peak for this call, so that it shows how far the call alone rises.
                before, flops, at_start = live.peak, counter.total, live.now
                live.peak = at_start
                out = forward(*args, **kwargs)
                flops, rise = counter.total - flops, live.peak - at_start
                live.peak = max(before, live.peak)

                # Network and processors are kept, for an id is unique among living objects only.
                kept = network, processors
                self._known[kind] = flops, rise, tree_map(_Shape.of, out), kept
                return out

            return known

        return Patch(lambda name, _: name == "", forward=wrap)


@dataclass(frozen=True)
class _Shape:
    """A tensor without its storage."""

    size: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> _Shape:
        return cls(tuple(x.shape), x.dtype)


def _empty(of: _Shape) -> Tensor:
    return torch.empty(of.size, dtype=of.dtype, device="meta")


def _shapes(*arguments: Any) -> list[_Shape]:
    return [_Shape.of(x) for x in tree_leaves(arguments) if isinstance(x, Tensor)]


def _settings(processor: Any) -> tuple:
    """What two attention processors of the same cost share."""
    values = vars(processor).values()
    return type(processor), *(x if isinstance(x, int | str) else id(x) for x in values)
