"""A panel that redraws the anchors of one clip while their settings are moved."""

from dataclasses import replace
from io import BytesIO
from math import ceil, floor, log10

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vala_research import InputError
from vala_research.evaluation.panel import panel
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


def explore(
    frames: Float[Tensor, "f 3 y x"],
    latents: Float[Tensor, "_ c h w"],
    settings: AnchorSettings = AnchorSettings(),
):
    """Show a panel over one clip: one control per setting; map and key frames are redrawn at once.

    latents: of these frames, as `VideoEditPipeline.encode` gives them. An error, such as one of bad
    latents, is shown as text in the panel.
    Raises InputError for latents of other frames, and without ipywidgets.
    """
    if len(frames) != len(latents):
        raise InputError(
            f"There are {len(frames)} frames and {len(latents)} latents: encode the same frames."
        )
    grid, thumbnails = tuple(latents.shape[-2:]), resized(frames.detach(), 64)
    features = rearrange(latents, "f c h w -> f (h w) c")

    def redraw(n_keyframes: int, **values):
        moved = replace(settings, n_keyframes=n_keyframes or None, **values)
        generator = torch.Generator().manual_seed(0)  # the same on every device
        anchors = assign_anchors(features, moved, generator)
        check_anchors(thumbnails, anchors, grid)
        picture, top_nats = _picture(thumbnails, anchors, grid)
        return _summary(anchors, moved, top_nats), [("png", picture)]

    return panel(lambda widgets: _controls(widgets, settings, len(frames)), redraw)


def _controls(widgets, settings: AnchorSettings, n_frames: int) -> dict:
    """One control per setting, by the setting's name; a control acts when it is released."""
    look = dict(
        continuous_update=False,
        style={"description_width": "11em"},
        layout=widgets.Layout(width="36em"),
    )
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
            style=look["style"],
        ),
        "n_keyframes": slider("key frames (0: auto)", settings.n_keyframes or 0, 0, n_frames),
    }  # fmt: skip


def _summary(anchors: Anchors, settings: AnchorSettings, top_nats: float) -> str:
    k = anchors.responsibilities.shape[-1]
    lines = [
        f"<b>key frames: {', '.join(map(str, anchors.keyframes))}</b>",
        f"effective anchors: {anchors.n_effective} of {k}; objective "
        f"{anchors.objective[-1]:.4f} nats per token after {len(anchors.objective)} sweeps",
        "rows: frames (key frames in black), anchors, entropy from 0 (dark) to "
        f"{top_nats:.2f} nats (bright), what frames attend to",
    ]
    if settings.contrastive_weight and not settings.refinement_steps:
        lines[1] += " (the contrastive weight acts through refinement steps)"
    return "<br>".join(lines)


def _picture(frames: Float[Tensor, "f 3 y x"], anchors: Anchors, grid: tuple[int, int]):
    """The panel's rows as PNG bytes, and the upper end of the entropy's scale in nats."""
    uncertain, top_nats = entropy_map(anchors, grid)
    black, white = torch.zeros(3), torch.ones(3)
    borders = [black if i in anchors.keyframes else white for i in range(len(frames))]
    rows = [_bordered(frames, torch.stack(borders))]
    for pictures in (responsibility_map(anchors, grid), uncertain):
        enlarged = F.interpolate(pictures, frames.shape[-2:], mode="nearest-exact")
        rows.append(_bordered(enlarged, torch.ones(len(frames), 3)))
    width = rows[0].shape[-1]
    rows += _sites(frames, anchors, grid, width) if anchors.granularity == "site" else [
        _band(frames, anchors, grid, width)
    ]  # fmt: skip
    sheet = torch.cat(rows, 1).mul(255).round().byte()
    data = BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy()).save(data, format="png")
    return data.getvalue(), top_nats


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
