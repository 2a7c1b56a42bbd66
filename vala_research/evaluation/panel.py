"""One frame for all explorers: controls left, pictures right, redrawn as a control moves.

Below the controls: whether it works, buttons to save the figure and to get the command that makes
the same settings without the panel.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vala_research import InputError
from vala_research.files import written_whole

Picture = tuple[str, bytes]  # format, such as "png", and content
Command = Callable[[Mapping[str, Any]], str]
LOOK = {"description_width": "9.5em"}
WIDE = "22em"  # of a control
AS_IT_IS = {"max_width": "100%", "align_self": "flex-start"}  # a picture is not stretched


def ipywidgets() -> Any:
    """The module; raises InputError where it is not installed."""
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise InputError(
            "The explorer needs ipywidgets, which is not installed: pip install ipywidgets."
        ) from error
    return widgets


def uploaded_file(value: Any) -> tuple[str, bytes]:
    """Name and content of the file in a FileUpload's value.

    ipywidgets 8 has a tuple of files; 7, which Colab has, a dict of files by name.
    """
    if isinstance(value, Mapping):
        name, file = next(iter(value.items()))
    else:
        (file, *_) = value
        name = file["name"]
    return name, bytes(file["content"])


def panel(
    controls: Callable[[Any], Mapping[str, Any]],
    redraw: Callable[..., tuple[str, list[Picture]]],
    n_pictures: int = 1,
    clips: Sequence[str] = (),
    command: Command | None = None,
    name: str = "explorer",
    output: str | Path = "runs",
):
    """Build the explorer: an HBox of controls and pictures.

    controls: takes the module ipywidgets; returns the controls by name.
    redraw: takes the values of the controls by name; returns the text (HTML) and n_pictures.
    clips: names for a menu of clips; redraw then takes `clip` too.
    command: takes the values; returns the line that a button shows and copies.
    name, output: the figure is saved as output/name.png, or .gif.
    An error of redraw is shown as text, because a notebook drops what a callback raises. The box
    has the parts as attributes: controls, text, pictures, busy, save, copy.
    Raises InputError without ipywidgets.
    """
    widgets = ipywidgets()
    parts = dict(controls(widgets))
    if clips:
        menu = widgets.Dropdown(options=list(clips), description="clip", style=LOOK,
                                layout=widgets.Layout(width=WIDE))  # fmt: skip
        parts = {"clip": menu} | parts
    text, busy = widgets.HTML(), widgets.HTML()
    pictures = [widgets.Image(format="png", layout=widgets.Layout(**AS_IT_IS))
                for _ in range(n_pictures)]  # fmt: skip

    def values() -> dict[str, Any]:
        return {name: part.value for name, part in parts.items()}

    def update(_=None) -> None:
        start, busy.value = time.perf_counter(), "<b style='color:#b3470f'>working ...</b>"
        try:
            words, drawn = redraw(**values())
            for picture, (kind, content) in zip(pictures, drawn, strict=True):
                picture.format, picture.value = kind, content
            text.value = f"{words}<br>redrawn in {time.perf_counter() - start:.2f} s"
        except Exception as error:  # whatever it is, it is shown: nobody sees it raised
            for picture in pictures:
                picture.value = b""  # an old picture under new settings would be a lie
            text.value = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"
        busy.value = ""

    for part in parts.values():
        part.observe(update, names="value")
    save, copy = buttons(widgets, busy, pictures, values, command, name, Path(output))
    update()
    left = widgets.VBox([*parts.values(), widgets.HBox([save, copy]), busy],
                        layout=widgets.Layout(flex="0 0 25em"))  # fmt: skip
    box = widgets.HBox([left, widgets.VBox([text, *pictures])])
    box.controls, box.text, box.pictures = parts, text, pictures
    box.busy, box.save, box.copy = busy, save, copy
    return box


def buttons(
    widgets, said, pictures: Sequence, values: Callable, command: Command | None, name: str,
    output: Path,
) -> tuple[Any, Any]:  # fmt: skip
    """The buttons that save the pictures, and show the command; what they did is `said`."""
    half = widgets.Layout(width="11.5em")
    save = widgets.Button(description="save figure", icon="save", layout=half)
    copy = widgets.Button(description="command", icon="copy", layout=half,
                          disabled=command is None)  # fmt: skip

    def write(_=None) -> None:
        try:
            told = []
            for i, picture in enumerate(pictures):
                if picture.value:
                    tail = f"_{i + 1}" if i else ""
                    path = output / f"{name}{tail}.{picture.format}"
                    with written_whole(path) as unfinished:
                        unfinished.write_bytes(picture.value)
                    told.append(html.escape(str(path)))
            said.value = "saved " + ", ".join(told) if told else "there is no picture to save"
        except InputError as error:
            said.value = html.escape(str(error))

    def show(_=None) -> None:
        line = command(values())
        put = html.escape(f"navigator.clipboard.writeText({json.dumps(line)})", quote=True)
        said.value = (
            f'<pre style="white-space:pre-wrap;max-width:{WIDE}">{html.escape(line)}</pre>'
            f'<button onclick="{put}">copy</button>'
        )

    save.on_click(write)
    copy.on_click(show)
    return save, copy


def papermill_line(notebook: str, parameters: Mapping[str, Any]) -> str:
    """The command that runs a notebook with these parameters, from the repository's root."""
    import shlex

    words = ["papermill", f"notebooks/{notebook}.ipynb", "run.ipynb", "--cwd", "notebooks"]
    for key, value in parameters.items():
        text = ";".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
        words += ["-p", key, text]
    return shlex.join(words)
