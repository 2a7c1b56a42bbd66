"""Colours, patterns and shapes of the sprite world."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

COLOURS = {
    "red": (0.86, 0.12, 0.14),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.90, 0.15),
    "green": (0.12, 0.60, 0.20),
    "cyan": (0.15, 0.80, 0.85),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.50, 0.15, 0.65),
    "pink": (1.00, 0.50, 0.75),
    "brown": (0.45, 0.26, 0.10),
    "white": (0.96, 0.96, 0.96),
    "gray": (0.50, 0.50, 0.50),
    "black": (0.06, 0.06, 0.06),
}
PATTERNS = ("plain", "striped", "checked", "dotted")
PERIOD = 1 / 3  # of a pattern, in frame widths
MIN_CONTRAST = 0.45  # RGB distance that an object keeps from both tones of its background
# (shape, colour) pairs that training never shows.
HELD_OUT = frozenset({("star", "purple"), ("square", "yellow"), ("circle", "green"),
                      ("ring", "blue"), ("heart", "red"), ("moon", "white")})  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")


def tones(colour: str) -> Float[Tensor, "2 3"]:
    """A colour and the second tone of its patterns: darker, or lighter for black."""
    primary = torch.tensor(COLOURS[colour])
    return torch.stack([primary, primary + 0.3 if colour == "black" else 0.62 * primary])


@cache
def contrasts(colour: str, background: str) -> bool:
    """Whether an object of this colour stands out from both tones of the background."""
    gap = torch.tensor(COLOURS[colour]) - tones(background)
    return bool(gap.norm(dim=-1).min() >= MIN_CONTRAST)
