"""One file per notebook, one room per paper; `sweep` runs a notebook over a grid of parameters."""


def __getattr__(name: str):
    """Import `sweep`, `Cluster` and `results` when they are first used: they need pandas."""
    from importlib import import_module

    homes = {"sweep": "batch", "results": "results", "Cluster": "clusters"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.batches.{homes[name]}"), name)
