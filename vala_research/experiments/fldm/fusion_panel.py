"""A panel over fusions of one clip: schedule, ratio and tau are moved by hand.

All edits are made beforehand (`fusion_grid`); the panel looks them up.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from io import BytesIO

import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from vala_research.evaluation.comparison_tables import METRICS
from vala_research.evaluation.figures import COLOURS, STYLE
from vala_research.evaluation.panel import panel
from vala_research.experiments.fldm.grid import FusionGrid, Point
from vala_research.methods.fusion import FusionSchedule

PLOTTED = ("warp_error", "clip_t")  # consistency, alignment


def explore_fusion(grid: FusionGrid):
    """Show a panel of ipywidgets: schedule, a and tau by hand; clip and metrics are looked up.

    The clip is a strip of frames, or moves. Raises InputError without ipywidgets.
    """
    kinds, values, taus = (list(dict.fromkeys(axis)) for axis in zip(*grid.edit_of, strict=True))

    def controls(widgets) -> dict:
        style = {"description_width": "11em"}
        look = dict(style=style, continuous_update=True, layout=widgets.Layout(width="36em"))
        return {
            "kind": widgets.ToggleButtons(options=kinds, description="schedule", style=style),
            "a": widgets.SelectionSlider(
                options=values, value=values[len(values) // 2],
                description="video model's share a", **look,
            ),
            "tau": widgets.SelectionSlider(
                options=taus, description="tau (share of the steps)", **look
            ),
            "show": widgets.ToggleButtons(
                options=["strip", "animation"], description="show", style=style
            ),
        }  # fmt: skip

    def redraw(kind: str, a: float, tau: float, show: str):
        point = (kind, a, tau)
        clip = picture(grid, point, show == "animation")
        return summary(grid, point), [clip, ("png", metrics_plot(grid, point))]

    return panel(controls, redraw, n_pictures=2)


def summary(grid: FusionGrid, point: Point) -> str:
    """The two metrics, and what else is known."""
    row = grid.rows[grid.edit_of[point]]
    names = {"success": ("attribute success, %:", 100), "clip_t": ("CLIP-T", 1),
             "warp_error": ("E_warp x 1000:", 1000), "clip_f": ("CLIP-F", 1),
             "jitter": ("jitter, pixels:", 1)}  # fmt: skip

    def told(*metrics: str) -> str:
        known = [(*names[m], row[m]) for m in metrics if m in row]
        return ", ".join(f"{name} {factor * value:.4g}" for name, factor, value in known)

    reference = "the true edit" if grid.truth is not None else "the source"
    return "<br>".join([
        f"<b>{html.escape(grid.prompt)}</b>",
        f"text alignment: {told('success', 'clip_t')}",
        f"temporal consistency: {told('warp_error', 'clip_f', 'jitter')}",
        f"PSNR to {reference}: {row['psnr']:.2f} dB",
        f"rows: source, edit{', true edit' * (grid.truth is not None)}",
    ])  # fmt: skip


def picture(grid: FusionGrid, point: Point, moves: bool, side: int = 96) -> tuple[str, bytes]:
    """Format and bytes: source, edit, true edit; rows of frames, or side by side and moving."""
    clips = [grid.source, grid.frames[grid.edit_of[point]]]
    clips += [] if grid.truth is None else [grid.truth]
    factor = max(1, round(side / grid.source.shape[-1]))
    large = torch.stack(clips).repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    large = F.pad(large, (2, 2, 2, 2), value=255)  # r f c h w
    data = BytesIO()
    if not moves:
        Image.fromarray(rearrange(large, "r f c h w -> (r h) (f w) c").numpy()).save(data, "png")
        return "png", data.getvalue()
    first, *rest = (
        Image.fromarray(x.numpy()) for x in rearrange(large, "r f c h w -> f h (r w) c")
    )
    first.save(data, "gif", save_all=True, append_images=rest, duration=125, loop=0)
    return "gif", data.getvalue()


def metrics_plot(grid: FusionGrid, point: Point) -> bytes:
    """This edit among all of the grid, and the weights that made it; PNG."""
    # Placed by hand: the layout engine would take most of the redraw.
    with rc_context(STYLE | {"figure.constrained_layout.use": False}):
        fig = Figure(figsize=(7.2, 2.3))
        left, right = fig.subplots(1, 2)
        fig.subplots_adjust(left=0.1, right=0.98, bottom=0.22, top=0.88, wspace=0.25)
        _edits_panel(left, grid.rows, grid.edit_of[point])
        _weights_panel(right, point, grid.n_steps)
        data = BytesIO()
        fig.savefig(data, format="png", dpi=100)
    return data.getvalue()


def _edits_panel(ax: Axes, rows: list[Mapping], chosen: int) -> None:
    """All edits in grey, the chosen one in colour."""
    across, up = (m if m in rows[0] else "psnr" for m in PLOTTED)
    x, y = ([METRICS[m].factor * row[m] for row in rows] for m in (across, up))
    ax.plot(x, y, "o", color="#BBBBBB", markersize=3)
    ax.plot(x[chosen], y[chosen], "o", color=COLOURS[1], markersize=7)
    ax.set(xlabel=METRICS[across].axis, ylabel=METRICS[up].axis,
           title="this edit among all, right and up is better")  # fmt: skip
    if METRICS[across].sign < 0:
        ax.invert_xaxis()


def _weights_panel(ax: Axes, point: Point, n_steps: int) -> None:
    kind, a, tau = point
    schedule = FusionSchedule(kind, (a, 1 - a), tau)
    weights = [schedule.weights(step, n_steps) for step in range(n_steps)]
    fused = [(step, w[0]) for step, w in enumerate(weights) if w is not None]
    ax.axvspan(-0.5, schedule.first_step(n_steps) - 0.5, color="#EEEEEE", linewidth=0)
    ax.plot([x for x, _ in fused], [w for _, w in fused], "o-", color=COLOURS[1])
    ax.set(xlabel="step (grey: not mixed yet)", ylim=(-0.05, 1.05), xlim=(-0.5, n_steps - 0.5),
           title="weight of the video model")  # fmt: skip
