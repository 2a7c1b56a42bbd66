"""A clip that flickers steadily has less temporal loss than the same clip moving; repaired, more.

The loss is (22) of arXiv 2504.16016, of features that the training of GE-Adapter (arXiv 2501.04606)
reads; repaired, it is L + w mean(1 - s_t). Why: theory/README.md, A6.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

from vala_research import InputError
from vala_research.evaluation.cases import Case
from vala_research.evaluation.figures import (
    BLUE,
    GREEN,
    PAPER,
    RED,
    STYLE,
    Picture,
    check_tables,
    panels,
)
from vala_research.evaluation.probes import decoder_layers, feature_maps, short_name
from vala_research.evaluation.sheet import AS_PLACED
from vala_research.methods.temporal import frame_similarity, temporal_consistency_loss
from vala_research.sprites.render import render
from vala_research.sprites.scene import World, random_scene, split_generator

KINDS = ("moving", "one change", "flicker")


def flicker_kinds(
    clip: Float[Tensor, "f 3 y x"], other: Float[Tensor, "f_ 3 y_ x_"]
) -> dict[str, Float[Tensor, "f 3 y x"]]:
    """The clip; the clip with its second half edited; its first frame, edited in every other frame.

    other: the same frames, edited. Raises InputError for shapes that differ or fewer than 3 frames.
    """
    if clip.shape != other.shape or len(clip) < 3:
        raise InputError(
            f"A clip of shape {tuple(clip.shape)} and an edit of shape {tuple(other.shape)}: give "
            "two of one shape, of at least 3 frames."
        )
    number = torch.arange(len(clip), device=clip.device)[:, None, None, None]
    return {
        "moving": clip,
        "one change": torch.where(number < len(clip) // 2, clip, other),
        "flicker": torch.where(number % 2 == 0, clip[:1], other[:1]),
    }


def sprite_flicker(
    n: int, world: World, n_frames: int = 8, size: int = 64
) -> list[dict[str, Case]]:
    """`flicker_kinds` of test clips of the sprite world; edited: the background, white or blue."""
    cases = []
    for i in range(n):
        scene = random_scene(split_generator("test", i), world=replace(world, empty=0.0))
        colour = "blue" if scene.background == "white" else "white"
        pair = (scene, scene.edited(background=colour, pattern="plain"))
        clip, other = (render(s, n_frames, size).frames for s in pair)
        kinds = flicker_kinds(clip, other)
        cases.append({k: Case(x, scene.caption, "", seed=i) for k, x in kinds.items()})
    return cases


def flicker_rows(
    pipe: Any, clips: Iterable[Mapping[str, Case]], t: int = 1, flicker_weight: float = 1.0
) -> list[dict]:
    """One row a clip, kind and hook site: loss, repaired loss, mean similarity of its features.

    t: of the noise added, one noise for all frames: so that frames differ by the clip alone.
    """
    rows = []
    for i, kinds in enumerate(tqdm(list(clips), "clips", disable=None)):
        for kind, case in kinds.items():
            view = case.views(pipe, t, "shared")["without"]
            sites = list(decoder_layers(view.unet).values())
            for site, x in feature_maps(view, sites).items():
                x = x.flatten(1).double()
                paper, repaired = (
                    temporal_consistency_loss(x, flicker_weight=w).item()
                    for w in (0.0, flicker_weight)
                )
                similarity = frame_similarity(x).mean().item()
                rows.append(
                    {"clip": i, "kind": kind, "site": short_name(site), "loss": paper,
                     "repaired": repaired, "similarity": similarity}
                )  # fmt: skip
    return rows


def constants_figure(gradient: list[dict], chords: list[dict], curvature: list[dict]) -> Picture:
    """C.2, C.3 and C.1: the gradient of a similarity, the gradient's Lipschitz constant, its T.

    gradient: s, product (|grad| |F|). chords: M, ratio (measured), paper, ours. curvature:
    n_frames, attacked (or nan), pattern, constant.
    """
    import seaborn as sns

    check_tables(gradient, chords, curvature)
    with rc_context(STYLE):
        fig, (a, b, c) = panels(3)
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
    check_tables(rows)
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
