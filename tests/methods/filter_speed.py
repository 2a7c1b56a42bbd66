"""Time the bilateral filter beside kornia's, and beside the exponentials that every filter needs.

The filter is what bilateral inversion adds to a step's network call: eqs 9-11 of GE-Adapter
(arXiv 2501.04606). Measured on the processor, with one thread.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from vala_research.evaluation.memory import LiveTensors
from vala_research.methods.bilateral import bilateral_filter

SHAPES = ((32, 4, 64, 64), (16, 4, 128, 128))  # latents of 512 and of 1024 pixels: f c h w
CHUNK = 1 << 14  # values whose exponentials are taken at once: they stay in a processor's cache


def filter_costs(
    shapes: Sequence[tuple[int, int, int, int]] = SHAPES,
    kernel_size: int = 5,
    repeats: int = 15,
    with_gradient: bool = False,
) -> list[dict]:
    """One row per shape and filter, both sigmas 1, float32, border "reflect".

    ms: processor time, the best of the repeats; the filters take turns. speedup: kornia's time over
    this one; larger is better. to_exp2, to_exp: time over that of one exponential for each pair of
    sites within a window, by torch's exp2 and exp; every exact filter needs these, so 1 is the
    best. (On some processors the two differ fourfold.) extra: peak of all tensors made, including
    the result, as a multiple of the input; smaller is better. difference: the largest one from
    kornia's result.
    with_gradient: times forward and backward of the sum of squares. kornia 0.9 then unfolds its
    windows; without gradients it loops over their sites, for tensors of 65536 values or more.

    Where the conventions differ:
    * kornia adds up differences over channels; here it gets one channel at a time.
    * kornia's border "constant" counts zeros, which "truncate" leaves out.
    * kornia computes half precision in half precision; our filter computes it in float32.
    """
    rows, n_threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for shape in shapes:
            z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            rows += _rows(z.requires_grad_(with_gradient), kernel_size, repeats)
    finally:
        torch.set_num_threads(n_threads)
    return rows


def _rows(z: Tensor, kernel_size: int, repeats: int) -> list[dict]:
    from kornia.filters import bilateral_blur

    planes = (z.shape[0] * z.shape[1], 1, *z.shape[2:])
    filters = {
        "ours": lambda x: bilateral_filter(x, kernel_size, 1.0, 1.0),
        "kornia": lambda x: bilateral_blur(x.view(planes), kernel_size, 1.0, (1.0, 1.0)).view_as(x),
    }
    calls = {name: partial(_run, run, z) for name, run in filters.items()}
    floors = {f.__name__: _exponentials(f, z.shape, kernel_size) for f in (torch.exp2, torch.exp)}
    results = {name: call() for name, call in calls.items()}
    seconds = _best(calls | floors, repeats)
    rows = []
    for name, call in calls.items():
        with LiveTensors() as live:
            call()
        rows.append({
            "shape": "x".join(map(str, z.shape)), "filter": name, "gradient": z.requires_grad,
            "ms": 1e3 * seconds[name], "speedup": seconds["kornia"] / seconds[name],
            **{f"to_{floor}": seconds[name] / seconds[floor] for floor in floors},
            "extra": live.peak / z.nbytes,
            "difference": float((results[name] - results["kornia"]).abs().max()),
        })  # fmt: skip
    return rows


def _run(run: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """The result; for a z that requires gradients, the gradient of its sum of squares."""
    out = run(z)
    return torch.autograd.grad(out.square().sum(), z)[0] if z.requires_grad else out


def n_pairs(shape: Sequence[int], kernel_size: int) -> int:
    """Unordered pairs of different sites that share a window: the least number of exponentials.

    Reflection at the border adds no new pair.
    """
    f, c, h, w = shape
    r = kernel_size // 2
    steps = [(y, x) for y in range(r + 1) for x in range(-r, r + 1) if (y, x) > (0, 0)]
    return f * c * sum(max(0, h - y) * max(0, w - abs(x)) for y, x in steps)


def _exponentials(function: Callable, shape: Sequence[int], kernel_size: int) -> Callable:
    """A call that takes `n_pairs` exponentials, of numbers that stay in the cache."""
    x = -4 * torch.rand(CHUNK, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(x)

    def take() -> None:
        for _ in range(math.ceil(n_pairs(shape, kernel_size) / CHUNK)):
            function(x, out=out)

    return take


def _best(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Least processor seconds of each call; they take turns, so that other load meets them all."""
    best = dict.fromkeys(calls, math.inf)
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - start)
    return best


if __name__ == "__main__":
    import pandas as pd

    table = pd.DataFrame(filter_costs()).drop(columns="ms")  # a machine's own; ratios are kept
    print(table.to_csv(index=False, float_format="%.6g"), end="")
