"""The bilateral filter beside what the memory's bandwidth allows."""

from collections.abc import Iterator

import torch

from vala_research.evaluation.gpu.machine import Machine, attempted
from vala_research.methods.bilateral import bilateral_filter

KERNEL = 5


def filter_speed(machine: Machine) -> Iterator[dict]:
    """Yield one row per shape of latents, float32.

    ms: of one filter. bound: ms to read the latents once and write them once, at the bandwidth
    that a large copy reaches. ratio: ms over bound; smaller is better, 1 is the best.
    """
    source = torch.empty(machine.scale.copied, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    target.copy_(source)
    bandwidth = 2 * source.nbytes / machine.seconds(lambda: target.copy_(source))

    def measured(shape: tuple[int, ...]) -> dict:
        z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(machine.device)

        def run() -> None:
            bilateral_filter(z, KERNEL, 1.0, 1.0)

        run()
        ms, bound = 1e3 * machine.seconds(run), 1e3 * 2 * z.nbytes / bandwidth
        return {"ms": ms, "bound": bound, "ratio": ms / bound, "GB/s copied": bandwidth / 1e9}

    for shape in machine.scale.filtered:
        row = {"latents": "x".join(map(str, shape)), "window": KERNEL}
        yield attempted(row, lambda shape=shape: measured(shape), machine)
