"""Picture for a paper: bounds of attention beside what they bound, and how near tokens can come.

GE-Adapter's theory (arXiv 2504.16016), C.10, C.14, C.15.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from vala_research import InputError
from vala_research.evaluation.figures import COLOURS, STYLE, Picture

BOUNDS = {"paper": COLOURS[1], "F": COLOURS[0], "R": COLOURS[2]}
LABELS = {"paper": "paper's γ", "F": "(F), all rows", "R": "(R), worst row"}
LEFT, RIGHT = 1e-4, 1e4  # of the ratios shown; what lies beyond is drawn at the edge
APPROACHES = ("frame", "step")  # pairs whose tokens come nearer to the ideal ones


def layer_ratios(rows: Sequence[Mapping]) -> dict[str, list[float]]:
    """lhs / rhs of each bound over rows of `cross_attention.head_rows`.

    Infinite where the bound is 0 and what it bounds is not; left out where both are.
    """
    lhs, worst = (np.array([row[k] for row in rows]) for k in ("difference", "row"))
    ratios = {}
    for name, measured in (("paper", lhs), ("F", lhs), ("R", worst)):
        bound = np.array([row[name] for row in rows])
        is_met = bound > 0
        broken = np.full((~is_met & (measured > 0)).sum(), np.inf)
        ratios[name] = [*(measured[is_met] / bound[is_met]).tolist(), *broken.tolist()]
    return ratios


def approach(rows: Sequence[Mapping]) -> list[dict]:
    """Rows of share, bound, low, median, high: lhs / rhs as tokens come near the ideal ones.

    Other queries, tokens at Z* + share dZ: quantiles .05, .5, .95 over layers, heads, clips, times.
    """
    table = []
    for share in sorted({row["share"] for row in rows if row["pair"] in APPROACHES}, reverse=True):
        chosen = [row for row in rows if row["pair"] in APPROACHES and row["share"] == share]
        for name, values in layer_ratios(chosen).items():
            low, median, high = np.quantile(values, (0.05, 0.5, 0.95), method="lower").tolist()
            place = {"share": share, "bound": name, "n": len(values)}
            table.append(place | {"low": low, "median": median, "high": high})
    return table


def attention_bounds(
    random: Mapping[str, list[float]], best: Mapping[str, float], rows: Sequence[Mapping],
    tokens: Sequence[Mapping], width: int,
) -> tuple[Picture, list[dict]]:  # fmt: skip
    """Left: lhs / rhs of three bounds. Middle: as tokens approach. Right: how near they can come.

    random: lhs / rhs at random heads, by bound. best: what an ascent found. rows: of
    `cross_attention.head_rows`. tokens: rows of n_unshared, distance, bias. width: d of those.
    Returns the picture and every number of it, histograms as counts.
    """
    if not rows or not tokens:
        raise InputError("There are no rows: give those of head_rows, and distances of tokens.")
    near = approach(rows)
    with rc_context(STYLE):
        fig = Picture(figsize=(7.0, 2.7), layout="constrained")
        grid = fig.add_gridspec(2, 3, width_ratios=(1.25, 1, 1))
        above = fig.add_subplot(grid[0, 0])
        below = fig.add_subplot(grid[1, 0], sharex=above)
        apart = [row for row in rows if row["share"] > 0]  # of equal tokens the middle panel tells
        counts = [_histogram(above, random, "random heads"),
                  _histogram(below, layer_ratios(apart), "a network's layers")]  # fmt: skip
        for height, (name, value) in zip((0.3, 0.12), best.items(), strict=False):
            style = {"color": BOUNDS[name], "markeredgecolor": "white", "markersize": 5.5}
            where = above.get_xaxis_transform()
            above.plot(value, height, "v", transform=where, zorder=5, **style)
        above.tick_params(labelbottom=False)
        above.set_title("measured / bound")
        below.set_xlabel("ratio; right of 1 the bound is broken")
        _approach(fig.add_subplot(grid[:, 1]), near)
        _tokens(fig.add_subplot(grid[:, 2]), tokens, width)
    table = [{"panel": "ratios", "source": s} | c for s, part in zip(("random", "layers"), counts,
             strict=True) for c in part]  # fmt: skip
    table += [{"panel": "ascent", "bound": k, "ratio": v} for k, v in best.items()]
    table += [{"panel": "approach"} | row for row in near]
    return fig, table + [{"panel": "tokens"} | dict(row) for row in tokens]


def _histogram(ax: Axes, ratios: Mapping[str, list[float]], words: str) -> list[dict]:
    """Shares of points a bin of log10, as outlines; returns the bins."""
    edges, table, highest = np.linspace(np.log10(LEFT), np.log10(RIGHT), 41), [], 0.0
    ax.axvspan(1, RIGHT, color="#F6E3D8", zorder=0, linewidth=0)
    ax.axvline(1, color="black", linewidth=0.8)
    for name, values in ratios.items():
        with np.errstate(divide="ignore"):
            inside = np.log10(values).clip(edges[0], edges[-1])
        shares = np.histogram(inside, edges)[0] / max(1, len(values))
        highest = max(highest, shares.max())
        ax.stairs(shares, 10**edges, color=BOUNDS[name], fill=True, alpha=0.25)
        ax.stairs(shares, 10**edges, color=BOUNDS[name], label=LABELS[name], linewidth=1.1)
        table += [{"bound": name, "from": 10**a, "to": 10**b, "share": s, "n": len(values)}
                  for a, b, s in zip(edges[:-1], edges[1:], shares, strict=True)]  # fmt: skip
    broken = np.mean(np.array(ratios["paper"]) > 1)
    style = {"transform": ax.transAxes, "va": "top", "fontsize": 6.5}
    ax.set(xscale="log", xlim=(LEFT, RIGHT), ylim=(0, 1.3 * highest), yticks=[])
    ax.set_ylabel("share")
    ax.minorticks_off()
    ax.text(0.02, 0.95, words, ha="left", **style)
    ax.text(
        0.98, 0.95, f"paper's γ\nbroken: {broken:.0%}", ha="right", color=BOUNDS["paper"], **style
    )
    return table


def _approach(ax: Axes, near: Sequence[Mapping]) -> None:
    """Medians and ranges; what is infinite stands at the top edge."""
    shares = list(dict.fromkeys(row["share"] for row in near))
    top = 10 * max(1.0, *(row["high"] for row in near if np.isfinite(row["high"])))
    for shift, (name, colour) in zip((-0.14, 0, 0.14), BOUNDS.items(), strict=True):
        rows = [row for row in near if row["bound"] == name]
        x = np.arange(len(rows)) + shift
        low, mid, high = (np.minimum([row[k] for row in rows], top)
                          for k in ("low", "median", "high"))  # fmt: skip
        ax.vlines(x, low, high, color=colour, alpha=0.45, linewidth=2.5)
        is_finite = mid < top
        ax.plot(x[is_finite], mid[is_finite], color=colour, marker="o", label=LABELS[name])
        for i in x[~is_finite]:
            ax.plot(i, top, "^", color=colour, clip_on=False)
            ax.annotate(
                "∞", (i, top), (-6, -3), textcoords="offset points", color=colour, ha="right"
            )
    ax.axhspan(1, top, color="#F6E3D8", zorder=0, linewidth=0)
    ax.axhline(1, color="black", linewidth=0.8)
    ax.set(yscale="log", ylim=(1e-4, top), title="tokens come nearer")
    ax.set_xticks(range(len(shares)), [f"{share:g}" for share in shares])
    ax.set(xlabel="‖ΔZ‖ / ‖ΔZ‖ of an edit", ylabel="measured / bound")
    ax.minorticks_off()
    ax.grid(visible=False, axis="x")
    ax.legend(loc="upper left", handlelength=1.4, bbox_to_anchor=(0, 0.97))


def _tokens(ax: Axes, tokens: Sequence[Mapping], width: int) -> None:
    marks = ((False, COLOURS[0], "o", "W"), (True, COLOURS[5], "s", "W and a bias"))
    for has_bias, colour, mark, words in marks:
        rows = [row for row in tokens if row["bias"] == has_bias]
        x, free = [row["n_unshared"] for row in rows], width + has_bias
        fine = np.linspace(min(x), max(x), 400)
        ax.plot(fine, np.sqrt(np.clip(fine - free, 0, None) * width), color=colour, linewidth=1)
        ax.plot(x, [row["distance"] for row in rows], mark, color=colour, label=words)
    end = max(row["n_unshared"] for row in tokens)
    ax.plot([width, end], [0, 0], color=BOUNDS["paper"], linestyle="--", label="paper, from d on")
    ax.axvline(width, color="#999999", linewidth=0.8, linestyle=":")
    ax.text(
        width - 0.25, 0.6, "$d$", transform=ax.get_xaxis_transform(), color="#555555", ha="right"
    )
    ax.set(xlabel="frame tokens $N_u$", ylabel="least ‖ΔZ‖", title="what learning can reach")
    ax.legend(loc="upper left", handlelength=1.6, frameon=True, framealpha=1, edgecolor="none")
