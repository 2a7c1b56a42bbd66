"""`vala figures`: every figure and table of the four papers, and a gallery of them."""

from __future__ import annotations

from pathlib import Path

import typer

from vala_research.cli.options import option

Preset = option(str, "Run this preset: smoke, sprites or paper.")
Only = option(str, "Run these notebooks, such as 20,31.", default="all")
Jobs = option(int | None, "Run so many notebooks at once.", default="one per core or GPU", min=1)
Output = option(Path, "Write into this folder, and resume from it.", "-o", "--output")
Redraw = option(bool, "Draw the figures in --output again from their csv; run nothing.", "--redraw")
Style = option(
    str, "Change the look: width=column (or page, or inches), font=serif, size=8, format=pdf+svg.",
    default="usual",
)  # fmt: skip
Notebooks = option(Path | None, "Find the notebooks here.", default="the checkout's")
Retry = option(bool, "Run notebooks again that failed.", "--retry")


def figures(
    preset: Preset = "smoke", only: Only = "", jobs: Jobs = None, output: Output = Path("figures"),
    redraw: Redraw = False, style: Style = "", notebooks: Notebooks = None, retry: Retry = False,
) -> None:  # fmt: skip
    """Run the notebooks and collect their figures and tables in a gallery, or draw them again."""
    from vala_research.experiments.batches.clusters import Cluster, check_installed

    check_installed()
    from vala_research.evaluation.look import Look
    from vala_research.experiments.batches import redraw as drawing
    from vala_research.experiments.batches.make_figures import figures as make

    look = Look.from_text(style)
    if redraw:
        drawn, left = drawing.redraw(output, look)
        for path in drawn:
            typer.echo(f"drew {path}")
        for path in left:
            typer.echo(f"kept {path}: it shows frames, which its notebook makes again")
        return
    chosen = [name.strip() for name in only.split(",") if name.strip()]
    try:
        table = make(output, preset, chosen, Cluster(jobs), look, notebooks, retry)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the same command goes on from {output}", err=True)
        raise typer.Exit(130) from None
    for row in table[table.status != "done"].itertuples():
        typer.echo(f"{row.status}: {row.notebook}: {row.error}")
    n_done = int((table.status == "done").sum())
    typer.echo(f"{n_done} of {len(table)} notebooks; see {output}/index.html")
    if n_done < len(table):
        raise typer.Exit(1)
