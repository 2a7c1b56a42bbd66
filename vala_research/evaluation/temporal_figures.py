"""Pictures for a paper: constants of the temporal loss, what it calls steady, how it is descended.

Appendix C.1 of GE-Adapter (arXiv 2501.04606); theorems 4.1 to 4.5 of arXiv 2504.16016. Every plot
takes numbers alone; the paper's lines are grey and dashed.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import Tensor

from vala_research import InputError
from vala_research.evaluation.figures import AS_PLACED, COLOURS, STYLE, Picture

PAPER = {"color": "#777777", "linestyle": "--", "linewidth": 1.0}
BLUE, RED, GREEN = COLOURS[:3]


def _panels(n: int, width: float = 2.35, height: float = 2.3) -> tuple[Picture, Sequence[Axes]]:
    fig = Picture(figsize=(n * width, height), layout="constrained")
    return fig, fig.subplots(1, n, squeeze=False)[0]


def constants_figure(gradient: list[dict], chords: list[dict], curvature: list[dict]) -> Picture:
    """C.2, C.3 and C.1: the gradient of a similarity, the gradient's Lipschitz constant, its T.

    gradient: s, product (|grad| |F|). chords: M, ratio (measured), paper, ours. curvature:
    n_frames, attacked (or nan), pattern, constant.
    """
    import seaborn as sns

    _need(gradient, chords, curvature)
    with rc_context(STYLE):
        fig, (a, b, c) = _panels(3)
        points = pd.DataFrame(gradient)
        s = np.linspace(-1, 1, 201)
        a.axhline(2, **PAPER, label="paper: 2 (for $|F| = M$)")
        a.plot(s, np.sqrt(1 - s**2), color=RED, label=r"ours: $\sqrt{1-s^2}$", zorder=4)
        sns.scatterplot(points, x="s", y="product", s=14, alpha=0.3, linewidth=0, color=BLUE, ax=a,
                        label="measured", zorder=3)  # fmt: skip
        a.set(xlabel="similarity $s$", ylabel=r"$|\nabla_F\,$Sim$|\;|F|$", ylim=(0, 3.3),
              title="C.2 gradient")  # fmt: skip
        lines = pd.DataFrame(chords)
        b.plot(lines.M, lines.paper, **PAPER, label="paper: $16/M$")
        b.plot(lines.M, lines.ours, color=RED, label="ours: $6/m^2$")
        sns.scatterplot(lines, x="M", y="ratio", s=22, color=BLUE, ax=b, label="measured", zorder=3)
        b.set(xscale="log", yscale="log", xlabel="norm of every frame, $m = M$",
              ylabel=r"$|\nabla L(F) - \nabla L(G)|\,/\,|F-G|$",
              title="C.3 Lipschitz constant")  # fmt: skip
        table = pd.DataFrame(curvature)
        c.axhline(16, color=GREEN, linewidth=1, linestyle=":", label="limit 16")
        c.plot(table.n_frames, table.constant, color=RED, label="ours: $c_T$")
        sns.scatterplot(table, x="n_frames", y="attacked", s=22, color=BLUE, ax=c, zorder=4,
                        label="attack")  # fmt: skip
        sns.scatterplot(table, x="n_frames", y="pattern", s=40, marker="x", color="black", ax=c,
                        linewidth=0.8, label="$e,-e,-e,e,e$, ...", zorder=3)  # fmt: skip
        c.set(xscale="log", xlabel="frames $T$", ylim=(0, 18), title="C.1 curvature",
              ylabel=r"$|\nabla^2L|\,(T-1)\,m^2\,/\,2$")  # fmt: skip
        ticks = (3, 5, 10, 20, 50)
        c.set_xticks(ticks, [str(n) for n in ticks])
        c.minorticks_off()
        for ax, place in ((a, "upper left"), (b, "lower left"), (c, "lower right")):
            ax.legend(loc=place, handlelength=1.6, borderaxespad=0.2)
    return fig


def flicker_figure(
    frames: Mapping[str, Float[Tensor, "f 3 y x"]], rows: list[dict], flicker_weight: float
) -> Picture:
    """Kinds of clip under one another: frames, the paper's loss of all clips, the repaired one.

    rows: of `flicker.flicker_rows`. A loss of exactly 0 stands at the left end of its axis.
    """
    _need(rows)
    table = pd.DataFrame(rows)
    cell, gap, top, left, plot = 0.44, 0.03, 0.3, 0.78, 1.45
    n_frames = len(next(iter(frames.values())))
    start = left + n_frames * (cell + gap)
    w, h = start + 2 * (plot + 0.22), top + len(frames) * (cell + 0.12) + 0.2
    with rc_context(STYLE):
        fig = Picture(figsize=(w, h), layout=AS_PLACED)
        for i, (kind, clip) in enumerate(frames.items()):
            y = top + i * (cell + 0.12)
            mean = table[table.kind == kind].similarity.mean()
            fig.text((left - 0.1) / w, 1 - (y + cell / 2) / h, f"{kind}\n$\\bar s$ = {mean:.2f}",
                     ha="right", va="center", fontsize=7.5)  # fmt: skip
            for f, frame in enumerate(clip):
                x = left + f * (cell + gap)
                ax = fig.add_axes((x / w, 1 - (y + cell) / h, cell / w, cell / h))
                image = frame.detach().float().cpu().permute(1, 2, 0).clamp(0, 1).numpy()
                ax.imshow(image, interpolation="none")
                ax.set_axis_off()
        titles = {"loss": "paper: $L$", "repaired": f"$L + w(1-\\bar s)$, $w = {flicker_weight:g}$"}
        for j, (name, title) in enumerate(titles.items()):
            x, height = start + 0.2 + j * (plot + 0.2), len(frames) * (cell + 0.12)
            ax = fig.add_axes((x / w, 1 - (top - 0.06 + height) / h, plot / w, height / h))
            _dots(ax, table, name, list(frames))
            ax.set_title(title)
    return fig


def _dots(ax: Axes, table: pd.DataFrame, name: str, kinds: list[str]) -> None:
    """A dot a clip and site, a row a kind, on a log axis whose left end is 0; a bar, the median."""
    import seaborn as sns

    floor = 10 ** np.floor(np.log10(table[name][table[name] > 0].min()) - 1.5)
    shown = table.assign(value=table[name].clip(lower=floor))
    sns.stripplot(shown, x="value", y="kind", hue="kind", order=kinds, hue_order=kinds, size=2.8,
                  palette=[GREEN, BLUE, RED][: len(kinds)], jitter=0.22, alpha=0.6, ax=ax,
                  legend=False)  # fmt: skip
    medians = [shown[shown.kind == k].value.median() for k in kinds]
    ax.scatter(medians, range(len(kinds)), marker="|", s=130, color="black", zorder=5)
    ax.set(xscale="log", xlabel="", ylabel="", yticks=[], xlim=(floor / 2, 6))
    ax.set_ylim(len(kinds) - 0.5, -0.5)  # each row beside its frames
    exponents = np.arange(int(np.log10(floor)), 1)
    exponents = exponents[(exponents % 3 == 0) | (exponents == exponents[0])]
    if len(exponents) > 1 and exponents[1] - exponents[0] < 2:
        exponents = np.delete(exponents, 1)
    has_zero = (table[name] == 0).any()
    labels = ["0" if has_zero and i == 0 else f"$10^{{{e}}}$" for i, e in enumerate(exponents)]
    ax.set_xticks([10.0**e for e in exponents], labels)
    ax.minorticks_off()


def descent_figure(
    paths: list[dict], rate: list[dict], chord: list[dict], line: list[dict]
) -> Picture:
    """C.4 and C.5: the loss over steps of several sizes, along a chord, along a line of adapters.

    paths, rate: steps (in units of 1 / L_s), step, loss; rate is what A5.4 promises of some sizes.
    chord: u, loss. line: theta, loss, and minimum (true at the false bottom).
    """
    _need(paths, rate, chord, line)
    with rc_context(STYLE):
        fig, (a, b, c) = _panels(3)
        table = pd.DataFrame(paths)
        sizes = sorted(set(table.steps))
        colours = dict(zip(sizes, COLOURS[: len(sizes)], strict=True))
        for size, path in table.groupby("steps"):
            a.plot(path.step, path.loss, color=colours[size], label=f"$\\eta = {size:g}/L_s$")
        for size, path in pd.DataFrame(rate).groupby("steps"):
            a.plot(path.step, path.loss, color=colours[size], linewidth=1.1, linestyle=":",
                   label=f"promised, {size:g}")  # fmt: skip
        a.set(yscale="log", xlabel="step", ylabel="$L$", title="C.4 descent in features")
        a.set_ylim(max(table.loss[table.loss > 0].min(), 1e-16), None)
        a.legend(handlelength=1.4)
        along = pd.DataFrame(chord)
        b.plot([0, 1], 1e3 * along.loss.iloc[[0, -1]], **PAPER, label="if convex: not above")
        b.plot(along.u, 1e3 * along.loss, color=COLOURS[0], label="measured")
        b.set(xlabel="from $A$ to $B$", ylabel=r"$10^3 L$", title="C.5 in features",
              ylim=(-0.05, 1.35e3 * along.loss.max()))  # fmt: skip
        b.legend(loc="upper left", handlelength=1.6)
        values = pd.DataFrame(line)
        c.plot(values.theta, values.loss, color=BLUE)
        false = values[values.minimum]
        c.scatter(false.theta, false.loss, color=RED, zorder=3, s=22)
        spot = (float(false.theta.iloc[0]), float(false.loss.iloc[0]))
        c.annotate(f"false bottom\n$L = {spot[1]:.3f}$", spot, (-52, 40),
                   textcoords="offset points", fontsize=7, color=RED,
                   arrowprops={"arrowstyle": "-", "color": RED, "lw": 0.7})  # fmt: skip
        c.set(xlabel=r"$\theta$", ylabel=r"$L(A + \theta B)$", title="C.4 in parameters")
    return fig


def adapter_figure(rows: list[dict]) -> Picture:
    """Loss and mean similarity over steps, in the features and in the LoRA; means over sites."""
    import seaborn as sns

    _need(rows)
    names = {"loss": "$L$, mean over sites", "similarity": r"mean similarity $\bar s$"}
    table = pd.DataFrame(rows).groupby(["space", "step"])[list(names)].mean().reset_index()
    with rc_context(STYLE):
        fig, axes = _panels(2, 2.2)
        for ax, (name, words) in zip(axes, names.items(), strict=True):
            sns.lineplot(table, x="step", y=name, hue="space", palette=[BLUE, RED], ax=ax,
                         hue_order=["features", "LoRA"], legend=name == "loss")  # fmt: skip
            ax.set(ylabel=words)
        axes[0].set(yscale="log")
        axes[0].legend(title="descent in the")
    return fig


def _need(*tables: list[dict]) -> None:
    if not all(tables):
        raise InputError("A table is empty: give the numbers that are to be plotted.")
