"""The blind study in a notebook: the questions of the page, as widgets that save every answer."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vala_research import InputError
from vala_research.evaluation.study.page import as_mp4
from vala_research.evaluation.study.trials import ANSWERS, QUESTIONS, Study
from vala_research.files import write_json

LABELS = {"left": "left", "same": "no difference", "right": "right"}


@dataclass
class Session:
    """One rater's way through a study. Every answer is saved, and the same name goes on.

    folder: of the answers. place: of the screen in the rater's order.
    """

    study: Study
    folder: Path
    rater: str
    place: int = 0
    answers: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self):
        if not self.rater.strip():
            raise InputError("The rater has no name: give a name or a number.")
        if self.path.exists():
            try:
                held = json.loads(self.path.read_text(encoding="utf-8"))
                known, self.answers = held["study"], held["answers"]
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise InputError(f"{self.path} holds no answers: move it away.") from error
            if known != self.study.name:
                raise InputError(f"{self.path} answers another study: give another folder.")
        self.place = next(
            (i for i in range(len(self.order)) if self.open_question(i)), len(self.order)
        )

    @property
    def path(self) -> Path:
        return Path(self.folder) / f"answers_{re.sub(r'[^A-Za-z0-9_-]+', '_', self.rater)}.json"

    @cached_property
    def order(self) -> tuple[tuple[int, bool], ...]:
        return self.study.orders[self.study.order_of(self.rater)]

    def clips(self) -> tuple[str, str]:
        """The files on the left and on the right of this screen."""
        number, is_swapped = self.order[self.place]
        first, second = self.study.clips_of(self.study.trials[number])
        return (second, first) if is_swapped else (first, second)

    def open_question(self, place: int) -> str | None:
        """The first question without an answer on a screen."""
        choices = self.answers.get(str(self.order[place][0]), {}).get("choices", {})
        return next((q for q in QUESTIONS if q not in choices), None)

    def answer(self, question: str, side: str, seconds: float = 0.0) -> None:
        """Answer a question of this screen, and save."""
        number, is_swapped = self.order[self.place]
        held = self.answers.setdefault(
            str(number), {"swapped": is_swapped, "choices": {}, "seconds": 0.0}
        )
        held["choices"][question] = side
        held["seconds"] += seconds
        order = self.study.order_of(self.rater)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"study": self.study.name, "rater": self.rater, "order": order,
                               "answers": self.answers})  # fmt: skip


def study_panel(study: Study, folder: str | Path, rater: str) -> Any:
    """A VBox of ipywidgets: two clips, the questions, back and next; answers lie in `folder`.

    Raises InputError without ipywidgets, and for answers to another study.
    """
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise InputError(
            "The panel needs ipywidgets, which is not installed: pip install ipywidgets."
        ) from error
    session, since = Session(study, Path(folder), rater), [time.monotonic()]
    prompt, bar = widgets.HTML(), widgets.IntProgress(max=len(session.order))
    clips = [widgets.Video(autoplay=True, loop=True, controls=False) for _ in range(2)]
    asked = {
        question: widgets.ToggleButtons(options=[(LABELS[a], a) for a in ANSWERS], value=None)
        for question in QUESTIONS
    }
    back, ahead = widgets.Button(description="Back"), widgets.Button(description="Next")
    lines = [widgets.VBox([widgets.Label(QUESTIONS[q]), box]) for q, box in asked.items()]
    is_drawing = [False]

    def draw() -> None:
        is_done = session.place >= len(session.order)
        bar.value, back.disabled = session.place, session.place == 0
        for part in (*clips, *lines, ahead):
            part.layout.display = "none" if is_done else None
        if is_done:
            prompt.value = f"Thank you. All answers are in {session.path}."
            return
        number, _ = session.order[session.place]
        prompt.value = f"<b>Text:</b> {study.pairs[study.trials[number].pair].prompt}"
        for widget, path in zip(clips, session.clips(), strict=True):
            widget.value = as_mp4(path)
        choices = session.answers.get(str(number), {}).get("choices", {})
        is_drawing[0] = True
        for question, box in asked.items():
            box.value = choices.get(question)
        is_drawing[0] = False
        ahead.disabled = session.open_question(session.place) is not None
        since[0] = time.monotonic()

    def choose(question: str, side: str | None) -> None:
        if is_drawing[0] or side is None:
            return
        now = time.monotonic()
        session.answer(question, side, now - since[0])
        since[0], ahead.disabled = now, session.open_question(session.place) is not None

    def go(step: int) -> None:
        session.place = max(0, session.place + step)
        draw()

    for question, box in asked.items():
        box.observe(lambda change, q=question: choose(q, change["new"]), names="value")
    back.on_click(lambda _: go(-1))
    ahead.on_click(lambda _: go(1))
    draw()
    return widgets.VBox([bar, prompt, widgets.HBox(clips), *lines, widgets.HBox([back, ahead])])
