"""Where the cells of a batch run: on this machine, by Slurm, or on any Dask cluster."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from vala_research import InputError

SLURM = ("partition", "jobs", "cores", "memory", "walltime", "account")
PATIENCE = 10  # seconds that a scheduler may take to answer


@dataclass(frozen=True)
class Cluster:
    """Workers for a batch; at most one of scheduler and slurm.

    workers: processes on this machine; by default one per core, or one per CUDA device.
    scheduler: address of a running Dask scheduler, such as "tcp://host:8786". Its workers see the
    same files and have the same library.
    slurm: options of dask-jobqueue, such as {"partition": "gpu", "jobs": 4}; see `SLURM`.
    """

    workers: int | None = None
    scheduler: str | None = None
    slurm: Mapping[str, str] | None = None

    def __post_init__(self):
        if self.scheduler and self.slurm:
            raise InputError("Both a scheduler and slurm are given: choose one of them.")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers is {self.workers}: give 1 or more.")
        for name in self.slurm or {}:
            if name not in SLURM:
                raise InputError(f"slurm has no {name!r} here: choose of {', '.join(SLURM)}.")


def slurm_options(text: str) -> dict[str, str]:
    """Read "partition=gpu,jobs=4"."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not pairs or not all(sign and value.strip() for _, sign, value in pairs):
        raise InputError(f"slurm is {text!r}: give it as partition=gpu,jobs=4.")
    return {key.strip(): value.strip() for key, _, value in pairs}


def extra(module: str, name: str) -> ModuleType:
    """Import a package of an extra; `name`: of the extra that brings it."""
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0].replace("_", "-")
        raise InputError(
            f"This needs {package}: pip install 'vala-research[{name}]' brings it."
        ) from None


def check_installed() -> None:
    """Raise InputError unless the packages of the extra `batch` are there."""
    for package in ("pandas", "pyarrow", "papermill", "distributed"):
        extra(package, "batch")


@contextmanager
def connected(where: Cluster, n_cells: int) -> Iterator[Any]:
    """Yield a `distributed.Client` of workers; those that were started here end with it.

    Raises InputError if a package is missing or a scheduler cannot be reached.
    """
    distributed = extra("distributed", "batch")
    if where.scheduler:
        try:
            client = distributed.Client(where.scheduler, timeout=PATIENCE)
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(
                f"The scheduler {where.scheduler} does not answer: start one by 'dask scheduler', "
                "or check its address."
            ) from error
        with client:
            yield client
        return
    with started(where, n_cells, distributed) as cluster, distributed.Client(cluster) as client:
        yield client


def started(where: Cluster, n_cells: int, distributed: ModuleType) -> Any:
    """Start a cluster of our own: Slurm's jobs, one process per CUDA device, or one per core."""
    import torch

    if where.slurm is not None:
        options = dict(where.slurm)
        jobs = int(options.pop("jobs", 1))
        queue = {"queue": options.pop("partition")} if "partition" in options else {}
        cores = int(options.pop("cores", 1))
        cluster = extra("dask_jobqueue", "slurm").SLURMCluster(
            cores=cores, processes=1, memory=options.pop("memory", "16GB"), **queue, **options
        )
        cluster.scale(jobs=jobs)
        return cluster

    # Cells run in kernels, which the workers' own limit of memory does not see.
    common = dict(threads_per_worker=1, memory_limit=0, silence_logs=logging.CRITICAL,
                  preload=["vala_research.experiments.batches.execution"])  # fmt: skip
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    n = min(where.workers or devices or extra("dask.system", "batch").CPU_COUNT, max(n_cells, 1))
    if devices > 1:
        return extra("dask_cuda", "cuda").LocalCUDACluster(n_workers=min(n, devices), **common)
    return distributed.LocalCluster(n_workers=n, processes=True, **common)
