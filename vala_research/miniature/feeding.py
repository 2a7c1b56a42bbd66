"""What a recipe feeds its network with: the device, and batches that are made while it computes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

N_WORKERS = 12  # at most, beside a GPU


def n_cores() -> int:
    """Cores that this process may use."""
    own = getattr(os, "sched_getaffinity", None)
    return (len(own(0)) if own else os.cpu_count()) or 1


def accelerator_on(device: str) -> Accelerator:
    """Accelerate for a recipe: bfloat16 beside float32 weights on a GPU, float32 on a CPU."""
    torch.set_flush_denormal(True)  # 5% of the time of a CPU
    views = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    is_cpu = device == "cpu"
    precision = "no" if is_cpu else "bf16"
    return Accelerator(cpu=is_cpu, mixed_precision=precision, kwargs_handlers=[views])


class Batches(IterableDataset):
    """Batches without an end, each of them `sample(size, generator, progress)`.

    progress: share of the training that is done. Batches that were made ahead know an older one.
    """

    def __init__(self, sample: Callable, size: int):
        self.sample, self.size, self.progress = sample, size, torch.zeros(()).share_memory_()

    def drawn(self, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """Batches on the CPU, one after another."""
        while True:
            yield self.sample(self.size, generator, self.progress.item())

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Batches of this worker, from a seed of its own."""
        return self.drawn(torch.Generator().manual_seed(torch.initial_seed()))

    def on(
        self, device: torch.device, seed: int, n_workers: int | None = None
    ) -> Iterator[tuple[Tensor, ...]]:
        """Batches on a device.

        n_workers: processes that make them meanwhile. None is none for a CPU, and for a GPU as many
        as there are cores, where the system can fork.
        """
        generator = torch.Generator().manual_seed(seed)
        if n_workers is None:
            can_fork = "fork" in multiprocessing.get_all_start_methods()
            is_fed = device.type != "cpu" and can_fork
            n_workers = min(N_WORKERS, n_cores() - 1) if is_fed else 0
        made = self.drawn(generator)
        if n_workers:
            made = DataLoader(
                self, None, num_workers=n_workers, pin_memory=device.type == "cuda",
                prefetch_factor=4, multiprocessing_context="fork", generator=generator,
            )  # fmt: skip
        for batch in made:
            yield tuple(x.to(device, non_blocking=True) for x in batch)
