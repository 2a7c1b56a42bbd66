"""The language of the sprite world: paraphrased, grammatical captions that parse back."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

from vala_research import InputError
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
    wordings = _WORDINGS[scene.shape is None]
    opening, ground_form, form = wordings[scene.wording % len(wordings)]
    ground = ground_form.format(pattern=scene.pattern, background=scene.background)
    thing = f"{scene.colour} {scene.shape}"
    if scene.second:
        thing += f" and {_with_article(f'{scene.second[1]} {scene.second[0]}')}"
    sentence = form.format(object=_with_article(thing), ground=_with_article(ground))
    if scene.then:
        sentence = ", then ".join([sentence, *(caption(s) for s in scene.then)])
    return opening + sentence


_WORDINGS = {  # by whether the scene is empty
    True: tuple(product(OPENINGS, GROUNDS, EMPTY)),
    False: tuple(product(OPENINGS, GROUNDS, WITH_OBJECT)),
}


def n_wordings(empty: bool = False) -> int:
    """Number of paraphrases of a scene."""
    return len(_WORDINGS[empty])


def parse_caption(text: str) -> dict[str, str | None]:
    """Read the attributes of the first shot's first object from a caption.

    An empty scene has shape and colour None. Raises InputError when no background is named.
    """
    first = text.lower().split(", then ")[0]
    colours, patterns, shapes = ("|".join(words) for words in (COLOURS, PATTERNS, SHAPES))
    ground = re.search(
        rf"\b(?:(?P<p1>{patterns}) (?P<b1>{colours})|(?P<b2>{colours}) (?P<p2>{patterns}))"
        r" background\b", first
    )  # fmt: skip
    if not ground:
        raise InputError(
            f"Caption {text!r} names no background: say e.g. 'a red circle on a plain blue "
            "background'."
        )
    thing = re.search(rf"\b(?P<colour>{colours}) (?P<shape>{shapes})\b", first)
    return {
        "shape": thing and thing["shape"],
        "colour": thing and thing["colour"],
        "background": ground["b1"] or ground["b2"],
        "pattern": ground["p1"] or ground["p2"],
    }


def vocabulary() -> list[str]:
    """Every word a caption can contain, sorted."""
    forms = " ".join((*OPENINGS, *WITH_OBJECT, *EMPTY, *GROUNDS, "an and then"))
    words = re.sub(r"\{\w+\}", " ", forms).split()
    return sorted({*words, *COLOURS, *PATTERNS, *SHAPES})
