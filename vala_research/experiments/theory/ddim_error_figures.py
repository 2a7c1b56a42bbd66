"""Pictures for a paper: how errors may grow, by which bound, and how they do.

Theory of GE-Adapter (arXiv 2504.16016), C.6 to C.9; the tables are those of `error_growth` and of
the theory's closed forms.
"""

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vala_research.evaluation.figures import COLOURS, STYLE

PAPER, PROVED = COLOURS[1], "black"
STYLES = {  # series: colour, line
    "paper": (PAPER, "--"), "update, closed form": (COLOURS[3], "-"),
    "update, product of C_t": (COLOURS[3], "-"), "DDIM, closed form": (COLOURS[0], "-"),
    "DDIM, product": (COLOURS[0], "-"),
}  # fmt: skip

NOISES = {  # series: label, colour, line, marker
    "sums of norms": ("paper: norms add up", PAPER, "--", "o"),
    "roots of squares": ("true: squares add up", COLOURS[0], "-", "o"),
    "closed forms": ("closed form", PROVED, ":", ""),
}
LABELS = {"worst": "worst direction", "random": "random direction", "filtered": "filtered"}


def bounds_figure(rows: Sequence[Mapping], noises: Sequence[Mapping]) -> Figure:
    """Left: what an error of 1 at the start may have become, by step. Right: what noise adds.

    rows: series (of STYLES), step, growth. noises: series (of NOISES), steps, size.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.8))
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        for series in dict.fromkeys(row["series"] for row in rows):
            colour, line = STYLES[series]
            chosen = [row for row in rows if row["series"] == series]
            name = "paper: C to the power of steps" if series == "paper" else series
            is_closed = "closed" in series  # nearly what it bounds: drawn around it
            left.plot([r["step"] for r in chosen], [r["growth"] for r in chosen], line,
                      color=colour, label=name, alpha=0.3 if is_closed else 1,
                      linewidth=5 if is_closed else 1.4)  # fmt: skip
        left.set(yscale="log", xlabel="steps taken", ylabel="error / first error",
                 title="One schedule, all bounds")  # fmt: skip
        left.legend(loc="upper left", bbox_to_anchor=(0, 1.03), handlelength=1.8, labelspacing=0.3)
        for series, (label, colour, line, marker) in NOISES.items():
            chosen = [row for row in noises if row["series"] == series]
            right.plot([r["steps"] for r in chosen], [r["size"] for r in chosen], line,
                       color=colour, marker=marker, label=label)  # fmt: skip
        right.set(xscale="log", yscale="log", xlabel="steps of the same path",
                  ylabel="noise at the end / sqrt(N)", title="What the noise adds")  # fmt: skip
        right.legend(loc="upper left", handlelength=1.8)
    return figure


def growth_figure(rows: Sequence[Mapping]) -> Figure:
    """A panel for each (model, way): measured errors over the first, and the bounds on them.

    rows: of `study`, with model. The product is drawn wide: measured errors may lie on it.
    """
    panels = list(dict.fromkeys((row["model"], row["way"]) for row in rows))
    names = {"ddim": "denoising", "inversion": "inversion", "update": "update (53)"}
    with rc_context(STYLE):
        figure = Figure(figsize=(1.75 * len(panels) + 0.4, 3.1))
        for axes, (model, way) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            chosen = [row for row in rows if (row["model"], row["way"]) == (model, way)]
            _panel(axes, chosen)
            axes.set(yscale="log", xlabel="steps taken", title=f"{model},\n{names[way]}")
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes = figure.axes[0]
        axes.set_ylabel("error / first error")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, handlelength=1.8)
    return figure


def _panel(axes: Axes, rows: Sequence[Mapping]) -> None:
    worst = [row for row in rows if row["start"] == "worst"]
    first, steps = worst[0]["error"], [row["step"] for row in worst]
    axes.plot(steps, [r["paper"] / first for r in worst], "--", color=PAPER,
              label="paper: C to the power of steps")  # fmt: skip
    axes.plot(steps, [r["product"] / first for r in worst], color=PROVED, alpha=0.3,
              linewidth=5, label="product of A + |B| L")  # fmt: skip
    filtered = [row for row in rows if row["start"] == "filtered"]
    if filtered:
        axes.plot(steps, [r["product"] / r0["error"] for r0 in filtered[:1] for r in filtered],
                  color=COLOURS[2], alpha=0.3, linewidth=5,
                  label="the same, with the filter's bias")  # fmt: skip
    series = {
        "worst": (COLOURS[0], "o"),
        "random": (COLOURS[5], "s"),
        "filtered": (COLOURS[2], "^"),
    }
    for start, (colour, marker) in series.items():
        chosen = [row for row in rows if row["start"] == start]
        if not chosen:
            continue
        axes.plot([r["step"] for r in chosen], [r["error"] / chosen[0]["error"] for r in chosen],
                  color=colour, marker=marker, markersize=3,
                  label="measured, " + LABELS[start])  # fmt: skip
