"""A panel over fusions of one clip: schedule, ratio and tau are moved by hand.

All edits are made beforehand (`fusion_grid`); the panel looks them up.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from vala_research import InputError
from vala_research.evaluation.comparison_tables import METRICS
from vala_research.evaluation.figures import COLOURS, STYLE
from vala_research.evaluation.panel import LOOK, WIDE, panel, papermill_line
from vala_research.experiments.fldm.grid import FusionGrid, Point
from vala_research.methods.fusion import FusionSchedule

PLOTTED = ("warp_error", "clip_t")  # consistency, alignment


def explore_fusion(grid: FusionGrid | Mapping[str, FusionGrid], output: str | Path = "runs"):
    """Show a panel of ipywidgets: schedule, a and tau by hand; clip and metrics are looked up.

    grid: or several, by the names in a menu of clips; all of the same points. The clip is a strip
    of frames, or moves. Raises InputError without ipywidgets, and for grids of different points.
    """
    grids = {"": grid} if isinstance(grid, FusionGrid) else dict(grid)
    first = next(iter(grids.values()))
    if any(set(other.edit_of) != set(first.edit_of) for other in grids.values()):
        raise InputError("The grids have different points: show grids of the same settings.")
    kinds, values, taus = (list(dict.fromkeys(axis)) for axis in zip(*first.edit_of, strict=True))

    def controls(widgets) -> dict:
        look = dict(style=LOOK, continuous_update=True, layout=widgets.Layout(width=WIDE))
        return {
            "kind": widgets.Dropdown(options=kinds, description="schedule", style=LOOK,
                                     layout=widgets.Layout(width=WIDE)),
            "a": widgets.SelectionSlider(
                options=values, value=values[len(values) // 2],
                description="video's share a", **look,
            ),
            "tau": widgets.SelectionSlider(options=taus, description="tau", **look),
            "show": widgets.ToggleButtons(
                options=["strip", "animation"], description="show",
                style=LOOK | {"button_width": "6em"},
            ),
        }  # fmt: skip

    def redraw(kind: str, a: float, tau: float, show: str, clip: str = next(iter(grids))):
        point, shown = (kind, a, tau), grids[clip]
        strip = picture(shown, point, show == "animation")
        return summary(shown, point), [strip, ("png", metrics_plot(shown, point))]

    def command(at: Mapping[str, Any]) -> str:
        shown = {"schedules": at["kind"], "ratios": at["a"], "taus": at["tau"]}
        return papermill_line("27_fldm_explorer", shown)

    menu = list(grids) if len(grids) > 1 else ()
    return panel(controls, redraw, 2, menu, command, "fldm_explorer", output)


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
        fig = Figure(figsize=(6.4, 1.9))
        left, right = fig.subplots(1, 2)
        fig.subplots_adjust(left=0.1, right=0.98, bottom=0.25, top=0.86, wspace=0.25)
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
