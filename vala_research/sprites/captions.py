"""The language of the sprite world: paraphrased, grammatical captions that parse back."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

from vala_research.sprites.palette import COLOURS, PATTERNS, SHAPES

OPENINGS = ("", "a picture of ", "a clip of ")
WITH_OBJECT = (
    "{object} on {ground}",
    "{object} over {ground}",
    "{object} moving over {ground}",
    "{object} in front of {ground}",
    "{ground} with {object}",
    "{ground} behind {object}",
)
EMPTY = ("{ground}", "{ground} with no object", "nothing but {ground}")
GROUNDS = ("{pattern} {background} background", "{background} {pattern} background")


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(scene: Any) -> str:
    """Describe a Scene. Its `wording` picks the paraphrase; "then" joins its shots."""
    wordings = WORDINGS[scene.shape is None]
    opening, ground_form, form = wordings[scene.wording % len(wordings)]
    ground = ground_form.format(pattern=scene.pattern, background=scene.background)
    thing = f"{scene.colour} {scene.shape}"
    if scene.second:
        thing += f" and {_with_article(f'{scene.second[1]} {scene.second[0]}')}"
    sentence = form.format(object=_with_article(thing), ground=_with_article(ground))
    if scene.then:
        sentence = ", then ".join([sentence, *(caption(s) for s in scene.then)])
    return opening + sentence


WORDINGS = {  # by whether the scene is empty
    True: tuple(product(OPENINGS, GROUNDS, EMPTY)),
    False: tuple(product(OPENINGS, GROUNDS, WITH_OBJECT)),
}


def vocabulary() -> list[str]:
    """Every word a caption can contain, sorted."""
    forms = " ".join((*OPENINGS, *WITH_OBJECT, *EMPTY, *GROUNDS, "an and then"))
    words = re.sub(r"\{\w+\}", " ", forms).split()
    return sorted({*words, *COLOURS, *PATTERNS, *SHAPES})
