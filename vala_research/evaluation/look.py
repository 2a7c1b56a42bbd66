"""How figures look in a paper: width, font and file formats, in place of the usual style."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from matplotlib.figure import Figure

from vala_research import InputError, chosen_from
from vala_research.evaluation.figures import COLUMN, PAGE, STYLE

FORMATS = ("pdf", "png", "svg")
WIDTHS = {"column": COLUMN, "page": PAGE}


@dataclass(frozen=True)
class Look:
    """Changes of the style; the usual one by default.

    width: in inches; height follows. font: a family that matplotlib finds, such as "serif".
    size: of the text in points. formats: the files that are written.
    """

    width: float | None = None
    font: str = ""
    size: float | None = None
    formats: tuple[str, ...] = ("pdf", "png")

    @classmethod
    def from_text(cls, text: str) -> Look:
        """Read "width=column,font=serif,size=8,format=svg+pdf"."""
        given = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, _, value = (word.strip() for word in part.partition("="))
            chosen_from("style", key, ("width", "font", "size", "format"))
            if key == "format":
                for name in value.split("+"):
                    chosen_from("format", name, FORMATS)
                given["formats"] = tuple(value.split("+"))
            elif key == "font":
                given["font"] = value
            else:
                given[key] = WIDTHS.get(value) or _inches(key, value)
        return cls(**given)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Draw figures in this look inside the block."""
        usual = dict(STYLE)
        if self.font:
            STYLE["font.family"] = self.font
        if self.size:
            changed = self.size - usual["font.size"]
            STYLE.update({k: v + changed for k, v in usual.items()
                          if k.endswith("size") and k.startswith(
                              ("font", "axes", "xtick", "ytick", "legend"))})  # fmt: skip
        try:
            yield
        finally:
            STYLE.update(usual)

    def fit(self, figure: Figure) -> None:
        """Give a figure this width, and a height in proportion."""
        if self.width:
            width, height = figure.get_size_inches()
            figure.set_size_inches(self.width, height * self.width / width)


def _inches(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < 100:
        raise InputError(f"{key} is {value!r}: give inches or points, or width=column or page.")
    return number
