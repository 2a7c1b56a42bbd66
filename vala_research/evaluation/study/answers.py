"""The answers of raters: read them, tell which editor was preferred, leave careless raters out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vala_research import InputError
from vala_research.evaluation.study.trials import (
    ANSWERS,
    IDENTICAL,
    PAIR,
    QUESTIONS,
    REPEAT,
    Study,
)

SAME = "same"
MOST_FAILED = 0.34  # of a rater's identical pairs


def read_answers(folder: str | Path, study: Study) -> pd.DataFrame:
    """One row per rater, trial and question, from the files *.json of a folder.

    Columns: those of `answer_rows`. Raises InputError for a folder without answers, a file that is
    none, answers to another study, and two files of one rater.
    """
    paths = sorted(p for p in Path(folder).glob("*.json") if not p.name.startswith("."))
    if not paths:
        raise InputError(f"{folder} holds no answers (*.json): put the raters' files there.")
    rows, seen = [], {}
    for path in paths:
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            name, rater = given["study"], given["rater"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} holds no answers of a rater: leave it out.") from error
        if name != study.name:
            raise InputError(f"{path} answers another study, {name}: leave it out.")
        if rater in seen:
            raise InputError(f"{path} and {seen[rater]} are both of {rater}: keep one.")
        seen[rater] = path
        try:
            rows += answer_rows(given, study)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise InputError(f"{path} does not fit the study ({error}): leave it out.") from error
    if not rows:
        raise InputError(f"{folder} holds raters without an answer: put answers there.")
    return pd.DataFrame(rows)


def answer_rows(given: Mapping[str, Any], study: Study) -> list[dict]:
    """The answers of one rater, as the page saves them.

    Columns: rater; trial, pair, kind, group; question; a, b: the editors; choice: the name of the
    preferred one, or "same"; side: "left", "same" or "right"; seconds, of the whole trial.
    """
    rows, order = [], dict(study.orders[given["order"]])
    for number, answer in given["answers"].items():
        number = int(number)
        trial = study.trials[number]
        pair, names = study.pairs[trial.pair], study.names_of(trial)
        if answer["swapped"] != order[number]:
            raise ValueError(f"trial {number} was shown in another order")
        for question, side in answer["choices"].items():
            if question not in QUESTIONS or side not in ANSWERS:
                raise ValueError(f"{question} is answered by {side}")
            is_second = (side == "right") != order[number]
            rows.append({
                "rater": str(given["rater"]), "trial": number, "pair": trial.pair,
                "kind": trial.kind, "group": pair.group, "question": question, "a": pair.a,
                "b": pair.b, "choice": SAME if side == SAME else names[is_second], "side": side,
                "seconds": float(answer.get("seconds", 0)),
            })  # fmt: skip
    return rows


def failed_checks(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per rater: identical pairs and how many failed; repeats and how many changed.

    An identical pair fails where any question finds a difference. A repeat is changed where the
    overall question prefers the other editor than at first; "no difference" once is no change.
    share: of the identical pairs that failed. Careful raters change where they hardly see a
    difference, so repeats are reported, and `kept` counts them only if asked to.
    """
    none = dict.fromkeys(("identical", "failed", "repeats", "changed"), 0)
    found = rows[["rater"]].drop_duplicates().set_index("rater").assign(**none)
    for (rater, _), trial in rows[rows.kind == IDENTICAL].groupby(["rater", "trial"]):
        found.loc[rater, "identical"] += 1
        found.loc[rater, "failed"] += int((trial.choice != SAME).any())

    overall = rows[rows.question == "overall"]
    firsts = overall[overall.kind == PAIR].set_index(["rater", "pair"]).choice
    for line in overall[overall.kind == REPEAT].itertuples():
        before = firsts.get((line.rater, line.pair))
        if before is not None:
            found.loc[line.rater, "repeats"] += 1
            found.loc[line.rater, "changed"] += int(
                SAME not in (before, line.choice) and before != line.choice
            )
    return found.assign(share=found.failed / found.identical.clip(lower=1)).reset_index()


def kept(
    rows: pd.DataFrame, most_failed: float = MOST_FAILED, counts_repeats: bool = False
) -> tuple[pd.DataFrame, Sequence[str]]:
    """The answers to pairs by raters who failed at most this share of their checks; who did not.

    counts_repeats: changed repeats are failed checks too. Raises InputError when nobody is left.
    """
    checks = failed_checks(rows)
    share = checks.share
    if counts_repeats:
        share = (checks.failed + checks.changed) / (checks.identical + checks.repeats).clip(lower=1)
    excluded = checks.rater[share > most_failed].tolist()
    left = rows[(rows.kind == PAIR) & ~rows.rater.isin(excluded)]
    if left.empty:
        raise InputError(
            f"All {len(checks)} raters failed more than {most_failed:.0%} of their checks: ask "
            "others, or raise most_failed."
        )
    return left, excluded
