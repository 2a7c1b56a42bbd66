"""A panel that redraws the anchors of one clip while their settings are moved."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from io import BytesIO
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from vala_research import InputError
from vala_research.evaluation.panel import LOOK, WIDE, panel, papermill_line
from vala_research.experiments.vala.anchor_figures import (
    anchor_colours,
    check_anchors,
    entropy_map,
    pseudo_frames,
    resized,
    responsibility_map,
    shares,
    token_swatches,
)
from vala_research.methods.anchors import GRANULARITIES, Anchors, AnchorSettings, assign_anchors

BORDER = 4  # pixels around every picture: black marks a key frame
LABELS = 76  # pixels at the left, for the names of the rows
Clip = Callable[[], tuple[Tensor, Tensor]]  # returns frames and latents


def explore(
    frames: Float[Tensor, "f 3 y x"],
    latents: Float[Tensor, "_ c h w"],
    settings: AnchorSettings = AnchorSettings(),
    clips: Mapping[str, Clip] | None = None,
    output: str | Path = "runs",
):
    """Show a panel over one clip: one control per setting; map and key frames are redrawn at once.

    latents: of these frames, as `VideoEditPipeline.encode` gives them. clips: further clips, by the
    names in a menu; each is a function that returns frames and latents when it is chosen. An error,
    such as one of bad latents, is shown as text in the panel.
    The row "change" shows where anchors differ from those of the panel's first settings.
    Raises InputError for latents of other frames, and without ipywidgets.
    """
    if len(frames) != len(latents):
        raise InputError(
            f"There are {len(frames)} frames and {len(latents)} latents: encode the same frames."
        )
    known: dict[str, Clip] = {"this clip": lambda: (frames, latents)} | dict(clips or {})
    loaded, starts = {}, {}

    def redraw(n_keyframes: int, clip: str = "this clip", **values):
        if clip not in loaded:
            loaded[clip] = known[clip]()
        shown, z = loaded[clip]
        thumbnails, grid = resized(shown.detach(), 64), tuple(z.shape[-2:])
        moved = replace(settings, n_keyframes=n_keyframes or None, **values)
        anchors = _assigned(z, moved)
        check_anchors(thumbnails, anchors, grid)
        if (clip, anchors.granularity) not in starts:
            starts[clip, anchors.granularity] = anchors.responsibilities
        changed = _change(anchors.responsibilities, starts[clip, anchors.granularity])
        picture, top_nats = _picture(thumbnails, anchors, grid, changed)
        return _summary(anchors, moved, top_nats, changed), [("png", picture)]

    def command(values: Mapping[str, Any]) -> str:
        return papermill_line("10_vala_anchors", {k: v for k, v in values.items() if k != "clip"})

    menu = list(known) if clips else ()
    return panel(
        lambda widgets: _controls(widgets, settings, len(frames)), redraw, clips=menu,
        command=command, name="vala_anchors_explorer", output=output,
    )  # fmt: skip


def other_clips(pictured: Any, settings: Any, n: int = 6) -> dict[str, Clip]:
    """The first clips of notebook 10's table by name; each is encoded when it is chosen.

    pictured, settings: of `experiments.vala.anchors`.
    """

    def encoded(i: int) -> tuple[Tensor, Tensor]:
        frames, _ = settings.frames(i, pictured.size)
        return frames, pictured.pipe.encode(frames).float().cpu()

    n = min(n, len(settings.files()) or n)
    return {f"clip {i}": partial(encoded, i) for i in range(n)}


def _assigned(latents: Float[Tensor, "f c h w"], settings: AnchorSettings) -> Anchors:
    """Anchors of a clip, with the same draws on every device."""
    features = rearrange(latents, "f c h w -> f (h w) c")
    return assign_anchors(features, settings, torch.Generator().manual_seed(0))


def _change(
    now: Float[Tensor, "f n k"], start: Float[Tensor, "f n k0"]
) -> Float[Tensor, "f n"]:
    """Total variation between two assignments of each token, 0 to 1; anchors match by rank."""
    k = max(now.shape[-1], start.shape[-1])
    one, two = (F.pad(r.detach().float().cpu(), (0, k - r.shape[-1])) for r in (now, start))
    return (one - two).abs().sum(-1) / 2


def _controls(widgets, settings: AnchorSettings, n_frames: int) -> dict:
    """One control per setting, by the setting's name; a control acts when it is released."""
    look = dict(continuous_update=False, style=LOOK, layout=widgets.Layout(width=WIDE))
    exponent = log10(settings.dirichlet)

    def slider(description: str, value: int, low: int, high: int):
        return widgets.IntSlider(value, low, max(high, value), description=description, **look)

    return {
        "n_anchors": slider("anchors, at most", settings.n_anchors, 1, 16),
        "dirichlet": widgets.FloatLogSlider(
            settings.dirichlet, base=10, min=min(-3, floor(exponent)), max=max(1, ceil(exponent)),
            description="prior a0", **look,
        ),
        "contrastive_weight": widgets.FloatSlider(
            settings.contrastive_weight, min=0.0, max=max(2.0, settings.contrastive_weight),
            step=0.05, description="contrastive weight", **look,
        ),
        "refinement_steps": slider("refinement steps", settings.refinement_steps, 0, 30),
        "granularity": widgets.ToggleButtons(
            options=GRANULARITIES, value=settings.granularity, description="granularity",
            style=LOOK | {"button_width": "5em"},
        ),
        "n_keyframes": slider("key frames (0: auto)", settings.n_keyframes or 0, 0, n_frames),
    }  # fmt: skip


def _summary(
    anchors: Anchors, settings: AnchorSettings, top_nats: float, changed: Float[Tensor, "f n"]
) -> str:
    k = anchors.responsibilities.shape[-1]
    lines = [
        f"<b>key frames: {', '.join(map(str, anchors.keyframes))}</b>",
        f"effective anchors: {anchors.n_effective} of {k}; objective "
        f"{anchors.objective[-1]:.4f} nats per token after {len(anchors.objective)} sweeps",
        f"entropy from 0 (dark) to {top_nats:.2f} nats (bright); tokens that the settings move to "
        f"other anchors, against the first settings: {100 * float(changed.mean()):.1f}%",
    ]
    if settings.contrastive_weight and not settings.refinement_steps:
        lines[1] += " (the contrastive weight acts through refinement steps)"
    return "<br>".join(lines)


def _picture(
    frames: Float[Tensor, "f 3 y x"], anchors: Anchors, grid: tuple[int, int],
    changed: Float[Tensor, "f n"],
):  # fmt: skip
    """The panel's labelled rows as PNG bytes, and the end of the entropy's scale in nats."""
    uncertain, top_nats = entropy_map(anchors, grid)
    black, white = torch.zeros(3), torch.ones(3)
    borders = [black if i in anchors.keyframes else white for i in range(len(frames))]
    rows = {"frames (key: black)": _bordered(frames, torch.stack(borders))}
    moved = rearrange(changed, "f (h w) -> f 1 h w", h=grid[0]).expand(-1, 3, -1, -1)
    maps = {"anchors": responsibility_map(anchors, grid), "entropy": uncertain,
            "change": moved.clamp(0, 1)}  # fmt: skip
    for name, pictures in maps.items():
        enlarged = F.interpolate(pictures, frames.shape[-2:], mode="nearest-exact")
        rows[name] = _bordered(enlarged, torch.ones(len(frames), 3))
    width = rows["anchors"].shape[-1]
    attended = _sites(frames, anchors, grid, width) if anchors.granularity == "site" else [
        _band(frames, anchors, grid, width)
    ]  # fmt: skip
    rows |= {"attended" + " " * i: row for i, row in enumerate(attended)}
    data = BytesIO()
    _labelled(rows).save(data, format="png")
    return data.getvalue(), top_nats


def _labelled(rows: Mapping[str, Float[Tensor, "3 h w"]]) -> Image.Image:
    """The rows below each other, each with its name at the left."""
    sheet = torch.cat(list(rows.values()), 1).mul(255).round().byte()
    sheet = F.pad(sheet, (LABELS, 0), value=255)
    picture = Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
    draw, y = ImageDraw.Draw(picture), 0
    for name, row in rows.items():
        words = "\n".join(name.split(" ", 1)).strip()
        draw.multiline_text((4, y + row.shape[1] // 2), words, fill="#333333", anchor="lm",
                            font_size=11)  # fmt: skip
        y += row.shape[1]
    return picture


def _bordered(
    pictures: Float[Tensor, "i 3 y x"], colours: Float[Tensor, "i 3"]
) -> Float[Tensor, "3 h w"]:
    """Pictures side by side, each in a border of its colour, white between them."""
    _, _, h, w = pictures.shape
    framed = colours[:, :, None, None].repeat(1, 1, h + 2 * BORDER, w + 2 * BORDER)
    framed[..., BORDER : BORDER + h, BORDER : BORDER + w] = pictures
    return rearrange(F.pad(framed, (1, 1, 1, 1), value=1.0), "i c h w -> c h (i w)")


def _sites(frames: Tensor, anchors: Anchors, grid, width: int) -> list[Float[Tensor, "3 h w"]]:
    """The pseudo-frames of the anchors in use, in as many rows as they need."""
    k = max(1, anchors.n_effective)
    pictures, colours = pseudo_frames(frames, anchors, grid)[:k], anchor_colours(k)
    rows = map(_bordered, pictures.split(len(frames)), colours.split(len(frames)))
    return [F.pad(row, (0, width - row.shape[-1]), value=1.0) for row in rows]


def _band(frames: Tensor, anchors: Anchors, grid, width: int) -> Float[Tensor, "3 h w"]:
    """The mean colour of each token anchor, as wide as its share, under a bar of its own colour."""
    ends = torch.tensor(shares(anchors)).cumsum(0) * width
    owner = torch.searchsorted(ends, torch.arange(width) + 0.5).clamp_max(len(ends) - 1)
    means, colours = token_swatches(frames, anchors, grid), anchor_colours(len(ends))
    bars = {BORDER: torch.ones(len(ends), 3), 2 * BORDER: colours, frames.shape[-2] // 2: means}
    return torch.cat([bar[owner].T[:, None].repeat(1, h, 1) for h, bar in bars.items()], 1)
