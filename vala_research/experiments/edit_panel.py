"""A panel that edits a clip: your own or a sprite clip, by any policy, host and adapter setting.

The quickstart shows it. Edits are kept while the panel lives: what was seen comes at once.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, read_clip, write_clip
from vala_research.editing.hosts import HOSTS
from vala_research.evaluation.cases import edit_cases
from vala_research.evaluation.panel import (
    LOOK,
    WIDE,
    buttons,
    ipywidgets,
    papermill_line,
    uploaded_file,
)
from vala_research.evaluation.sheet import strip
from vala_research.experiments.contract import ATTENTIONS
from vala_research.files import check_output, written_whole
from vala_research.sprites.scene import WORLD

OWN, NONE, DEMO = "the model's own", "none", "demo clip"
KINDS = ("colour", "shape", "background")  # of the sprite clips in the menu
Frames = Float[Tensor, "f 3 h w"]


class Progress:
    """Stands in for the pipeline's progress bar: moves a widget, and says which part it is in."""

    def __init__(self, panel: EditPanel, iterable: Iterable | None = None, total: int = 0):
        self.panel, self.steps = panel, list(iterable or ())
        self.label = "inverting the clip" if self.steps else "sampling the edit"
        self.n, self.total = 0, len(self.steps) or total

    def __iter__(self) -> Iterator[Any]:
        for step in self.steps:
            yield step
            self.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def update(self, n: int = 1) -> None:
        """Show n more steps."""
        self.n += n
        bar = self.panel.progress
        bar.max, bar.value = self.total, self.n
        self.panel.said.value = f"{self.label}: step {self.n} of {self.total}"


class EditPanel:
    """Widgets around one pipeline; a notebook shows the panel as it is.

    settings: of the quickstart, from which the panel starts. pipe: a VideoEditPipeline.
    output: the folder of uploads, the video and saved figures.
    Raises InputError without ipywidgets.
    """

    def __init__(self, pipe: Any, settings: Any, output: str | Path):
        self.pipe, self.settings, self.output = pipe, settings, Path(output)
        self.kept: dict[tuple[str, ...], Frames] = {}
        cases = edit_cases(WORLD, "test", 2, KINDS)
        self.cases = {f"sprite clip {case.index}, {case.kind}": case for case in cases}
        widgets = ipywidgets()
        self.controls = self._clip_controls(widgets) | self._edit_controls(widgets)
        self.controls["clip"].observe(self._chose, names="value")
        self.progress = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width=WIDE))
        self.said = widgets.HTML()
        self.picture = widgets.Image(layout=widgets.Layout(max_width="100%"))
        self.video = widgets.Video(layout=widgets.Layout(max_width="100%", display="none"))
        edit = widgets.Button(description="edit", button_style="primary", layout={"width": "auto"})
        edit.on_click(lambda _: self.run())
        save, copy = buttons(
            widgets, self.said, [self.picture], self.shown, self.command, "strip", self.output
        )
        self.buttons = {"edit": edit, "save figure": save, "papermill command": copy}
        left = widgets.VBox(
            [*self.controls.values(), widgets.HBox([*self.buttons.values()]), self.progress,
             self.said], layout=widgets.Layout(flex="0 0 25em"),
        )  # fmt: skip
        self.widget = widgets.HBox([left, widgets.VBox([self.picture, self.video])])

    def _clip_controls(self, widgets: Any) -> dict[str, Any]:
        """Which clip, and what it shows."""
        look, s = dict(style=LOOK, layout=widgets.Layout(width=WIDE)), self.settings
        return {
            "clip": widgets.Dropdown(options=[DEMO, *self.cases], description="clip", **look),
            "upload": widgets.FileUpload(description="or upload one", accept="video/*,.gif",
                                         layout=look["layout"]),
            "path": widgets.Text("", description="or its path", **look),
            "source_prompt": widgets.Textarea(s.source_prompt, description="it shows", **look),
            "prompt": widgets.Textarea(s.prompt, description="it shall show", **look),
            "n_frames": widgets.IntSlider(s.n_frames, 1, max(64, s.n_frames),
                                          description="frames, at most", **look),
        }  # fmt: skip

    def _edit_controls(self, widgets: Any) -> dict[str, Any]:
        """How it is edited. Adapter controls are there where the model has an adapter."""
        look, s = dict(style=LOOK, layout=widgets.Layout(width=WIDE)), self.settings
        steps = s.steps or self.pipe.edit_defaults.num_inference_steps
        controls = {
            "attention": widgets.Dropdown(
                options=[OWN, *ATTENTIONS], value=s.attention or OWN, description="attention",
                **look,
            ),
            "host": widgets.Dropdown(
                options=[NONE, *HOSTS], value=s.host or NONE, description="host", **look
            ),
            "steps": widgets.IntSlider(steps, 1, max(100, steps), description="steps", **look),
        }  # fmt: skip
        if self.pipe.adapter is not None:
            own = self.pipe.adapter.settings
            controls["adapter_scale"] = widgets.FloatSlider(
                1.0, min=0.0, max=2.0, step=0.1, description="adapter scale", **look
            )
            controls["adapter_interval"] = widgets.FloatRangeSlider(
                value=own.interval, min=0.0, max=1.0, step=0.02, description="adapter acts", **look
            )
        return controls

    def _chose(self, change: Mapping[str, Any]) -> None:
        """Fill in the prompts of a clip of the menu."""
        case = self.cases.get(change["new"])
        of = case or self.settings
        self.controls["source_prompt"].value, self.controls["prompt"].value = (
            of.source_prompt, of.prompt,
        )  # fmt: skip

    def source(self) -> tuple[str, Frames, float]:
        """The chosen clip's name, frames and frames per second: upload, path or menu."""
        n, side = self.controls["n_frames"].value, self.settings.side(self.pipe)
        typed, name = self.controls["path"].value.strip(), self.controls["clip"].value
        if uploaded := self.controls["upload"].value:
            file, content = uploaded_file(uploaded)
            path = self.output / "uploads" / Path(file).name
            with written_whole(check_output(path, makes_parents=True)) as unfinished:
                unfinished.write_bytes(content)
        elif typed or name == DEMO:
            path = Path(typed or self.settings.clip)
        else:
            return name, self.cases[name].material(n, side).frames, 8.0
        clip = read_clip(path, n_frames=n, size=side)
        return str(path), clip.frames, clip.fps

    def run(self) -> None:
        """Edit as the controls say, and show strip and video; an error is one sentence."""
        self.buttons["edit"].disabled, start = True, time.perf_counter()
        self.said.value = "reading the clip ..."
        try:
            name, frames, fps = self.source()
            values = [str(c.value) for key, c in self.controls.items() if key != "upload"]
            key = (name, *values)
            if key not in self.kept:
                self.kept[key] = self._edited(frames)
            self._show(frames, self.kept[key], fps)
            self.said.value = f"done in {time.perf_counter() - start:.1f} s"
        except Exception as error:  # shown, because a notebook drops what a callback raises
            kind = "" if isinstance(error, InputError) else f"<b>{type(error).__name__}</b>: "
            self.said.value = f"{kind}{html.escape(str(error))}"
            self.picture.value = b""  # an old picture under new settings would be a lie
            self.video.layout.display = "none"
        self.buttons["edit"].disabled, self.progress.value = False, 0

    def _edited(self, frames: Frames) -> Frames:
        """Edit by the pipeline, which reports every step to the panel."""
        values, s = {name: control.value for name, control in self.controls.items()}, self.settings
        pipe = copy(self.pipe)  # of the same networks
        pipe.progress_bar = lambda *steps, total=0: Progress(self, *steps, total=total)
        adapter = {k: values[k] for k in ("adapter_scale", "adapter_interval") if k in values}
        return pipe(
            frames, values["prompt"], values["source_prompt"], num_inference_steps=values["steps"],
            attention=None if values["attention"] == OWN else values["attention"],
            host=None if values["host"] == NONE else values["host"], guidance_scale=s.guidance,
            inversion=s.inversion, injection=s.injection, output_type="pt", **adapter,
            generator=torch.Generator().manual_seed(s.seed),
        ).frames[0].float().cpu()  # fmt: skip

    def _show(self, source: Frames, edited: Frames, fps: float) -> None:
        """The strip, and source and edit side by side as a video that plays."""
        self.picture.value = strip({"source": source, "edit": edited}, 6, cell=96)._repr_png_()
        both = torch.stack([source, edited]).clamp(0, 1)
        scale = max(1, round(256 / both.shape[-1]))
        large = both.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
        path = check_output(self.output / "side_by_side.mp4", makes_parents=True)
        write_clip(path, rearrange(large, "r f c h w -> f c h (r w)"), fps)
        self.video.value, self.video.layout.display = path.read_bytes(), None

    def shown(self) -> dict[str, Any]:
        """What the controls say, as parameters of the quickstart."""
        names = ("source_prompt", "prompt", "attention", "host", "steps", "n_frames")
        values = {name: self.controls[name].value for name in names}
        typed = {"clip": self.controls["path"].value.strip()}
        return {k: v for k, v in (values | typed).items() if v not in (OWN, NONE, "")}

    def command(self, parameters: Mapping[str, Any]) -> str:
        """The line that makes this edit without the panel."""
        return papermill_line("00_quickstart", parameters)

    @property
    def _repr_mimebundle_(self) -> Any:  # how ipywidgets 8 shows itself
        return self.widget._repr_mimebundle_

    @property
    def _ipython_display_(self) -> Any:  # how ipywidgets 7 does, which Colab has
        return self.widget._ipython_display_
