"""`vala sweep`: run a notebook over a grid of parameters, on every core, GPU or cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vala_research import InputError
from vala_research.cli.options import option

Notebook = Annotated[
    str | None, typer.Argument(metavar="NOTEBOOK", help="Run this .ipynb, or a number such as 21.")
]
Grid = option(
    Path | None, "Read this YAML file: lists are crossed, zip: pairs them.", default="one cell"
)
Output = option(Path | None, "Write into this folder, and resume from it.", "-o", "--output",
                default="runs/sweep_NOTEBOOK")  # fmt: skip
Workers = option(int | None, "Run so many cells at once.", default="one per core or GPU", min=1)
Scheduler = option(str | None, "Use the workers of this Dask scheduler, tcp://HOST:PORT.",
                   default="none")  # fmt: skip
Slurm = option(
    str | None, "Ask Slurm for workers, such as partition=gpu,jobs=4,cores=4,memory=16GB.",
    default="none",
)  # fmt: skip
Retry = option(bool, "Run failed cells again.", "--retry")
Show = option(Path | None, "Print the results in this folder, and run nothing.", default="none")


def sweep(
    notebook: Notebook = None, grid: Grid = None, output: Output = None, workers: Workers = None,
    scheduler: Scheduler = None, slurm: Slurm = None, retry: Retry = False, show: Show = None,
) -> None:  # fmt: skip
    """Run a notebook over a grid of parameters; finished cells are kept, killed runs resume."""
    from vala_research.experiments.batches.clusters import Cluster, check_installed, slurm_options

    check_installed()
    from vala_research.experiments.batches.batch import sweep as run
    from vala_research.experiments.batches.inspection import find_notebook
    from vala_research.experiments.batches.results import results

    if show is not None:
        report(results(show), show)
        return
    if notebook is None:
        raise InputError("No notebook is given: name one, or --show a folder.")
    folder = output or Path("runs") / f"sweep_{find_notebook(notebook).stem}"
    cluster = Cluster(workers, scheduler, slurm_options(slurm) if slurm else None)
    try:
        table = run(notebook, grid or {}, folder, cluster, retry)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on from {folder}", err=True)
        raise typer.Exit(130) from None
    report(table, folder)
    if (table.status != "done").any():
        raise typer.Exit(1)


def report(table, folder: Path) -> None:
    """Print one line per cell, the errors, and where the results are."""
    n_failed = int((table.status == "failed").sum())
    n_open = len(table) - n_failed - int((table.status == "done").sum())
    typer.echo(table.drop(columns=["notebook", "error"]).to_string(index=False, max_colwidth=40))
    for cell, error in table.loc[table.error.fillna("") != "", ["cell", "error"]].to_numpy():
        typer.echo(f"failed: {folder}/cells/{cell}/run.ipynb: {error}")
    again = " (--retry runs them again)" if n_failed else ""
    typer.echo(
        f"{len(table) - n_failed - n_open} done, {n_failed} failed{again}, {n_open} not run; "
        f"{folder}/results.csv"
    )
