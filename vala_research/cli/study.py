"""`vala study make` and `vala study analyse`: a blind study of pairs of clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vala_research.cli.options import option

Pairs = Annotated[
    Path,
    typer.Argument(
        metavar="PAIRS", help="Read this csv: prompt, a, video_a, b, video_b[, source, group]."
    ),
]
AnswersPath = Annotated[
    Path, typer.Argument(metavar="ANSWERS", help="Read the raters' files in this folder.")
]
Output = option(Path, "Write into this folder.", "-o", "--output")
Checks = option(float, "Add so many checks of attention of each kind, as a share of the pairs.")
Seed = option(int, "Seed sides, order and checks.", min=0, max=2**63 - 1)
OfStudy = option(Path, "Find study.json in this folder.", "--study")
MostFailed = option(float, "Leave raters out who failed more than this share of identical pairs.")
CountRepeats = option(bool, "Let repeats that were answered otherwise count too.", "--repeats")

study = typer.Typer(no_args_is_help=True, help="Ask people which of two clips is better.")


@study.command()
def make(pairs: Pairs, output: Output, checks: Checks = 0.1, seed: Seed = 0) -> None:
    """Write the page for raters, one file without a network, and the key, which stays with you."""
    from vala_research.evaluation.study.page import write_study
    from vala_research.evaluation.study.trials import draw_study, read_pairs

    drawn = draw_study(read_pairs(pairs), checks, seed)
    page, key = write_study(drawn, output)
    typer.echo(
        f"{len(drawn.pairs)} pairs, {len(drawn.trials)} screens. Give {page} to the raters, and "
        f"keep {key}: it says which clip is whose."
    )


@study.command()
def analyse(
    answers: AnswersPath, study_folder: OfStudy, output: Output, most_failed: MostFailed = 0.34,
    repeats: CountRepeats = False,
) -> None:  # fmt: skip
    """Write preferences with intervals, strengths of the editors, agreement, and a figure."""
    from vala_research.evaluation.figures import emit
    from vala_research.evaluation.study import answers as given
    from vala_research.evaluation.study import preferences
    from vala_research.evaluation.study.trials import Study
    from vala_research.files import check_output, write_rows

    check_output(output / "preferences.csv", makes_parents=True)
    known = Study.load(study_folder)
    rows = given.read_answers(answers, known)
    left, excluded = given.kept(rows, most_failed, repeats)
    table = preferences.shares(left)
    parameters = {
        "study": known.name, "raters": int(left.rater.nunique()), "excluded": list(excluded),
        "most_failed": most_failed, "agreement": preferences.agreement(left),
    }  # fmt: skip
    paths = emit("preferences", preferences.figure(table), table, parameters, output)
    strengths = preferences.strengths(left)
    write_rows(output / "strengths.csv", strengths.to_dict("records"))
    shown = table[["group", "a", "b", "question", "share", "low", "high", "p", "same"]]
    typer.echo(shown.round(3).to_string(index=False))
    typer.echo(strengths.round(3).to_string(index=False))
    typer.echo(
        f"{parameters['raters']} raters, {len(excluded)} left out for failed checks; agreement "
        f"(Krippendorff's alpha) {parameters['agreement']:.2f}.\nwrote "
        + ", ".join(typer.format_filename(p) for p in (*paths.values(), output / "strengths.csv"))
    )
