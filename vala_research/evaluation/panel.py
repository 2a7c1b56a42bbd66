"""A panel of ipywidgets: controls above, text and pictures below, redrawn as a control moves."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Mapping
from typing import Any

from vala_research import InputError

Picture = tuple[str, bytes]  # format, such as "png", and content


def panel(
    controls: Callable[[Any], Mapping[str, Any]],
    redraw: Callable[..., tuple[str, list[Picture]]],
    n_pictures: int = 1,
):
    """Build the panel as a VBox: the controls, the text, the pictures.

    controls: takes the module ipywidgets; returns the controls by name.
    redraw: takes the values of the controls by name; returns the text (HTML) and n_pictures.
    An error of redraw is shown as text, because a notebook drops what a callback raises.
    Raises InputError without ipywidgets.
    """
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise InputError(
            "The explorer needs ipywidgets, which is not installed: pip install ipywidgets."
        ) from error
    parts = controls(widgets)
    text, pictures = widgets.HTML(), [widgets.Image(format="png") for _ in range(n_pictures)]

    def update(_=None) -> None:
        start = time.perf_counter()
        try:
            words, drawn = redraw(**{name: part.value for name, part in parts.items()})
            for picture, (kind, content) in zip(pictures, drawn, strict=True):
                picture.format, picture.value = kind, content
            text.value = f"{words}<br>redrawn in {time.perf_counter() - start:.2f} s"
        except Exception as error:  # whatever it is, it is shown: nobody sees it raised
            for picture in pictures:
                picture.value = b""  # an old picture under new settings would be a lie
            text.value = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"

    for part in parts.values():
        part.observe(update, names="value")
    update()
    return widgets.VBox([*parts.values(), text, *pictures])
