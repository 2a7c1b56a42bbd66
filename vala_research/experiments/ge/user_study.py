"""Notebook 39: a blind study with simulated raters, whose preferences are known, is recovered.

The protocol of GE-Adapter's user study (arXiv 2501.04606, Fig. 6): pairs of edits without and with
the adapter by four editors. No person was asked: raters are drawn, to test page and analysis.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vala_research import InputError
from vala_research.data.clips import write_clip
from vala_research.evaluation.figures import drawn
from vala_research.evaluation.statistics import Gain
from vala_research.evaluation.study import answers, preferences
from vala_research.evaluation.study.page import write_study
from vala_research.evaluation.study.trials import (
    IDENTICAL,
    QUESTIONS,
    Study,
    draw_study,
    read_pairs,
)
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import Preset, save_rows
from vala_research.files import write_rows
from vala_research.sprites.render import render
from vala_research.sprites.scene import WORLD, random_scene, split_generator

EDITORS = ("Text2Video-Zero", "TokenFlow", "vid2vid-zero", "VidToMe")
WITHOUT, WITH = "without", "with adapter"
# True log odds that the clip with the adapter is preferred, by question; made up.
TRUE = {"text": 0.0, "quality": 0.4, "consistency": 0.8, "overall": 0.6}
ALIKE = 0.15  # probability that a careful rater sees no difference


@dataclass(frozen=True, kw_only=True)
class Settings(Preset):
    """Parameters of notebook 39."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"n_raters": 12, "n_pairs": 3},
        "sprites": {},
        "paper": {"n_raters": 0},
    }
    CHOICES: ClassVar[dict[str, Collection]] = {"editors": EDITORS}

    study: str = ""  # the folder of your own study, which `vala study make` wrote
    given: str = ""  # the folder of its answers; "": raters are simulated
    editors: Sequence[str] = EDITORS  # one group of pairs each
    n_pairs: int = 10  # of clips, per editor
    n_raters: int = 67  # simulated ones
    careless: float = 0.1  # share of raters who answer by chance
    checks: float = 0.1  # identical pairs, and as many repeats, as a share of the pairs
    most_failed: float = answers.MOST_FAILED  # of identical pairs, by a rater who is kept
    seed: int = 0  # of everything random


def make_study(settings: Settings, output: str | Path) -> Study:
    """Write pairs of sprite clips, which stand for edits, and their study; return the study."""
    folder = Path(output) / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(settings.n_pairs):
        scene = random_scene(split_generator("test", i), world=replace(WORLD, empty=0.0))
        video = write_clip(folder / f"{i}.mp4", render(scene, 2, 64).frames, 8.0)
        clip = f"clips/{video.name}"
        lines += [
            {"prompt": scene.caption, "a": WITHOUT, "video_a": clip, "b": WITH, "video_b": clip,
             "group": editor}
            for editor in settings.editors
        ]  # fmt: skip
    listing = write_rows(Path(output) / "pairs.csv", lines)
    study = draw_study(read_pairs(listing), settings.checks, settings.seed)
    write_study(study, Path(output) / "study")
    return study


def simulated(study: Study, settings: Settings) -> list[dict]:
    """Answers of raters with the preferences `TRUE`, in the form that the page saves."""
    draw = np.random.default_rng(settings.seed)
    n_careless = round(settings.careless * settings.n_raters)
    return [
        _rater(study, f"rater {i}", draw, i < n_careless) for i in range(settings.n_raters)
    ]


def _rater(study: Study, name: str, draw: np.random.Generator, is_careless: bool) -> dict:
    number = study.order_of(name)
    given: dict[str, dict] = {}
    for i, is_swapped in study.orders[number]:
        trial = study.trials[i]
        choices = {}
        for question, odds in TRUE.items():
            if is_careless:
                choices[question] = str(draw.choice(["left", "same", "right"]))
            elif trial.kind == IDENTICAL or draw.random() < ALIKE:
                choices[question] = "same"
            else:
                prefers_b = draw.random() < 1 / (1 + math.exp(-odds))
                is_second = prefers_b == (trial.first == "a")
                choices[question] = "right" if is_second != is_swapped else "left"
        given[str(i)] = {"swapped": is_swapped, "choices": choices, "seconds": 5.0}
    return {"study": study.name, "rater": name, "order": number, "answers": given}


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Read the answers, or make a study and simulate them: one row each, in rows.csv."""
    if settings.given:
        own = answers.read_answers(settings.given, Study.load(settings.study))
        return save_rows(own.to_dict("records"), output)
    if settings.n_raters < 1:
        raise InputError("There are no answers: give study and given, or n_raters to simulate.")
    study = make_study(settings, output)
    given = simulated(study, settings)
    return save_rows([row for rater in given for row in answers.answer_rows(rater, study)], output)


def table(rows: pd.DataFrame, most_failed: float = answers.MOST_FAILED) -> pd.DataFrame:
    """`preferences.shares` of the raters who kept attention, by editor and question."""
    return preferences.shares(answers.kept(rows, most_failed)[0])


@drawn
def figure(rows: pd.DataFrame, most_failed: float = answers.MOST_FAILED) -> Figure:
    """Shares of answers by editor and question."""
    return preferences.figure(table(rows, most_failed))


def claims(rows: pd.DataFrame, settings: Settings) -> list[Claim]:
    """What raters prefer; of simulated ones, that the analysis finds what they were given."""
    left, excluded = answers.kept(rows, settings.most_failed)
    whole = preferences.shares(left.assign(group=""))
    if settings.given:
        return [
            Claim.of_gain(
                f"{line.question}: {line.b} is preferred to {line.a}", "(b - a) / answers",
                Gain(line.by_rater, line.by_rater_low, line.by_rater_high, line.raters,
                     line.by_rater_p),
            )
            for line in whole.itertuples()
        ]  # fmt: skip
    whole = whole.set_index("question")
    true = {question: 1 / (1 + math.exp(-odds)) for question, odds in TRUE.items()}
    missed = [q for q in QUESTIONS if not whole.low[q] <= true[q] <= whole.high[q]]
    far = max(abs(whole.share[q] - true[q]) for q in QUESTIONS)
    n_careless = round(settings.careless * settings.n_raters)
    names = {f"rater {i}" for i in range(n_careless)}
    wrong = len(set(excluded) - names)
    overall = preferences.strengths(left).set_index("editor")
    odds = overall.strength[WITH] - overall.strength[WITHOUT]
    return [
        Claim.of_fact("at most one true share lies outside its interval", "questions", len(missed),
                      len(missed) <= 1),
        Claim.of_fact("shares are near the true ones", "largest distance", far, far < 0.1),
        Claim.of_fact("no careful rater is left out", "careful raters left out", wrong, wrong == 0),
        Claim.of_fact("most careless raters are left out", "careless raters left out",
                      len(excluded), len(excluded) >= n_careless / 2),
        Claim.of_fact("the overall preference is found", "log odds", odds, odds > 0),
    ]  # fmt: skip
