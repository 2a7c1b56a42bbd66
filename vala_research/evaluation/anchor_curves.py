"""How many anchors a clip is worth, and what its key frames lose: curves over their tables.

Effective numbers of anchors against the Dirichlet prior; D(S) of key frames against the best set.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import Tensor

from vala_research import InputError
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.methods.anchors import AnchorSettings, assign_anchors


def effective_anchors(
    clips: Iterable[Float[Tensor, "f n d"]],
    priors: Iterable[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    n_anchors: Iterable[int] = (4, 8, 16),
    settings: AnchorSettings = AnchorSettings(),  # noqa: B008 - frozen
) -> list[dict]:
    """Rows of clip, n_anchors (the upper bound), dirichlet (the prior a0) and n_effective."""
    rows = []
    for clip, features in enumerate(clips):
        for k, a0 in product(n_anchors, priors):
            given = replace(settings, n_anchors=k, dirichlet=a0)
            found = assign_anchors(features, given).n_effective
            rows.append({"clip": clip, "n_anchors": k, "dirichlet": a0, "n_effective": found})
    return rows


def effective_anchors_curve(rows: list[dict], ax: Axes, n_shots: float | None = None) -> None:
    """Effective number of anchors against the prior, a line for each bound; grey: the shots.

    Mean and 95% bootstrap interval over clips. Where bounds agree, the tighter is the wider line.
    """
    import seaborn as sns

    if not rows:
        raise InputError("There are no rows: give those of effective_anchors.")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    bounds = sorted(set(columns["n_anchors"]))
    sns.lineplot(columns, x="dirichlet", y="n_effective", hue="n_anchors", size="n_anchors",
                 palette=COLOURS[: len(bounds)], sizes=np.geomspace(4, 1, len(bounds)).tolist(),
                 size_order=bounds, marker="o", seed=0, ax=ax)  # fmt: skip
    if n_shots is not None:
        ax.axhline(n_shots, color="#999999", linewidth=7, zorder=0, alpha=0.4, label="shots")
    ax.set(xscale="log", xlabel="prior a0", ylabel="effective anchors", ylim=(0, 1.1 * bounds[-1]))
    ax.minorticks_off()
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.legend(title="at most")


def keyframe_excess_strip(rows: list[dict], ax: Axes) -> None:
    """Excess of D(S) over the best set in percent, a dot a clip and method; the bar is the median.

    rows: of `anchor_quality.keyframe_excess`, which name clip, method and excess. The axis is
    linear up to 1%.
    """
    import seaborn as sns

    if not rows:
        raise InputError("There are no rows: give those of keyframe_excess.")
    percent: dict[str, list[float]] = {}
    for row in rows:
        percent.setdefault(row["method"], []).append(100 * row["excess"])
    columns = {"method": [name for name, values in percent.items() for _ in values],
               "excess": [value for values in percent.values() for value in values]}  # fmt: skip
    sns.stripplot(columns, x="excess", y="method", size=2.5, alpha=0.5, color=COLOURS[0],
                  jitter=0.25, ax=ax)  # fmt: skip
    medians = [float(np.median(values)) for values in percent.values()]
    ax.scatter(medians, range(len(medians)), marker="|", s=120, color="black", zorder=5)
    ax.set_xscale("symlog", linthresh=1)
    ax.set(xlabel="D(S) above the best set, %", ylabel="", xlim=(-0.3, None))


def counted(
    effective: Mapping[str, list[dict]], excess: list[dict], n_shots: float | None = None
) -> Picture:
    """Effective anchors of each kind of descriptor beside the excess of key frames.

    effective: title -> rows of `effective_anchors`; n_shots belongs to the first.
    """
    with rc_context(STYLE):
        fig = Picture(figsize=(2.3 * (len(effective) + 1), 2.3), layout="constrained")
        *axes, last = fig.subplots(1, len(effective) + 1)
        for i, (ax, (title, rows)) in enumerate(zip(axes, effective.items(), strict=True)):
            effective_anchors_curve(rows, ax, None if i else n_shots)
            ax.set_title(title)
            if i:  # the colours are the first panel's
                ax.get_legend().remove()
                ax.set_ylabel("")
        keyframe_excess_strip(excess, last)
        last.set_title("key frames")
    return fig
