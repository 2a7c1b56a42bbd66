"""Notebook 40: how smooth the temporal loss is, and which clips it calls steady.

Frame by frame and with one noise, a clip that flickers between two pictures has no temporal loss,
and the same clip moving has some. With the repaired loss, L + w mean(1 - s_t), the order is right.
`steady_flicker` measures other attention and other noise. L is (22) of GE-Adapter (arXiv
2501.04606), on the features that its training reads. Proofs: theory/README.md, A1 to A6.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from torch import Tensor
from tqdm import tqdm

from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.cases import Case
from vala_research.evaluation.figures import BLUE, GREEN, PAGE, PAPER, RED, STYLE, Picture, drawn
from vala_research.evaluation.probes import decoder_layers, feature_maps, short_name
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import save_rows
from vala_research.experiments.network_preset import NetworkPreset, side_of
from vala_research.experiments.theory.steady_flicker import setting_rows, sprite_flicker
from vala_research.methods.temporal import frame_similarity, temporal_consistency_loss
from vala_research.sprites.scene import WORLD

KINDS = ("moving", "one change", "flicker")
CONSTANTS = ("gradient", "lipschitz", "curvature")  # parts of the theory: C.2, C.3, C.1
LOSSES = {"loss": "paper: $L$", "repaired": r"repaired: $L + w(1-\bar s)$"}


@dataclass(frozen=True, kw_only=True)
class Settings(NetworkPreset):
    """Parameters of notebook 40."""

    n_clips: int = 6  # sprite clips whose features are measured
    n_frames: int = 6  # of a clip
    flicker_weight: float = 1.0  # w of the repaired loss
    times: Sequence[int] = (501, 901)  # timesteps at which each frame gets its own noise
    attacked: Sequence[int] = (3, 4, 5, 6, 8)  # numbers of frames whose curvature is attacked
    known: Sequence[int] = (3, 4, 5, 6, 8, 12, 20, 30, 50)  # where the worst pattern is measured
    norms: Sequence[float] = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # of every frame, to measure 16 / M


def run(settings: Settings, output: str | Path, smoothness: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of `theory.measurements.smoothness`; then parts "flicker" and "setting".

    The latter are of `flicker_rows` and of `setting_rows`.
    """
    pipe = quiet_pipeline(settings.model, settings.dtype)
    clips = sprite_flicker(settings.n_clips, WORLD, settings.n_frames, side_of(pipe))
    measured = flicker_rows(pipe, clips, flicker_weight=settings.flicker_weight)
    parts = {"flicker": measured, "setting": setting_rows(pipe, clips, times=settings.times)}
    tagged = ({"part": part} | row for part, rows in parts.items() for row in rows)
    return save_rows([*smoothness, *tagged], output)


def flicker_rows(
    pipe: Any, clips: Iterable[Mapping[str, Case]], t: int = 1, flicker_weight: float = 1.0
) -> list[dict]:
    """Measure loss, repaired loss and mean similarity: one row per clip, kind and hook site.

    t: timestep of the noise. All frames of a clip get one noise, so that they differ by the clip
    alone. flicker_weight: w of the repaired loss.
    """
    rows, weights = [], (0.0, flicker_weight)
    for i, kinds in enumerate(tqdm(list(clips), "clips", disable=None)):
        for kind, case in kinds.items():
            view = case.views(pipe, t, "shared")["without"]
            sites = list(decoder_layers(view.unet).values())
            for site, x in feature_maps(view, sites).items():
                x = x.flatten(1).cpu().double()
                losses = [temporal_consistency_loss(x, flicker_weight=w).item() for w in weights]
                row = {"clip": i, "kind": kind, "site": short_name(site)}
                row |= dict(zip(LOSSES, losses, strict=True))
                rows.append(row | {"similarity": frame_similarity(x).mean().item()})
    return rows


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over clips and hook sites, one row per kind of clip."""
    measured = rows[rows.part == "flicker"]
    return measured.groupby("kind")[[*LOSSES, "similarity"]].mean().reindex(KINDS)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """The constants are attained and hold; the paper's fail; L prefers flicker, repaired not."""
    gradient, chords, curvature, measured = (
        rows[rows.part == part] for part in (*CONSTANTS, "flicker")
    )
    means = measured.groupby(["clip", "kind"])[list(LOSSES)].mean().unstack()
    (moving, change, flicker), n = (means.repaired[kind] for kind in KINDS), len(means)
    is_steadier = means.loss.flicker < means.loss.moving
    is_ordered = (moving < change) & (change < flicker)
    identity = (gradient["product"] ** 2 + gradient.s**2 - 1).abs().max()
    pattern = (curvature.pattern / curvature.constant - 1).abs().max()
    attack = (curvature.attacked / curvature.constant).max()
    n_broken, ours = int((chords.ratio > chords.paper).sum()), (chords.ratio / chords.ours).max()
    return [
        Claim.of_fact("frame by frame, one noise: L is lower for flicker than for each moving clip",
                      "share of clips", is_steadier.mean(), is_steadier.all(), n),
        Claim.of_fact("repaired, it orders moving < one change < flicker, clip by clip",
                      "share of clips", is_ordered.mean(), is_ordered.all(), n),
        Claim.of_fact("the gradient of a similarity is sqrt(1 - s^2) / |F|",
                      "largest deviation of the squares", identity, identity < 1e-9),
        Claim.of_fact("c_T is attained at every number of frames",
                      "largest relative deviation", pattern, pattern < 1e-9),
        Claim.of_fact("no attack exceeds c_T", "largest attacked / c_T", attack,
                      not attack > 1 + 1e-9),
        Claim.of_fact("the paper's 16 / M is exceeded", "norms", n_broken, n_broken > 0),
        Claim.of_fact("6 / m^2 is not exceeded", "largest measured / bound", ours,
                      ours <= 1 + 1e-9),
    ]  # fmt: skip


def pictured(n_frames: int) -> dict[str, Float[Tensor, "f 3 y x"]]:
    """Frames of each kind of the first clip, for the figure."""
    return {kind: case.frames for kind, case in sprite_flicker(1, n_frames=n_frames)[0].items()}


@drawn
def figure(rows: pd.DataFrame, n_frames: int) -> Picture:
    """Draw the constants C.2, C.3 and C.1; below, each kind of clip with its losses.

    n_frames: of the clips, which `pictured` renders. A loss of exactly 0 stands at the left end of
    its axis.
    """
    with rc_context(STYLE):
        picture = Picture(figsize=(PAGE, 4.5), layout="constrained")
        above, below = picture.subfigures(2, 1)
        _constants(above, rows)
        _flicker(below, rows[rows.part == "flicker"], pictured(n_frames))
    return picture


def _constants(page: SubFigure, rows: pd.DataFrame) -> None:
    left, middle, right = page.subplots(1, 3)
    points, chords, curvature = (rows[rows.part == part] for part in CONSTANTS)
    dots = {"color": BLUE, "linestyle": "", "marker": "o", "markersize": 4}

    # C.2: points of many dimensions lie on one curve.
    s = np.linspace(-1, 1, 201)
    left.axhline(2, **PAPER, label="paper: 2 (for $|F| = M$)")
    left.plot(s, np.sqrt(1 - s**2), color=RED, label=r"ours: $\sqrt{1-s^2}$", zorder=4)
    left.plot(points.s, points["product"], **dots | {"markersize": 3}, alpha=0.3, label="measured",
              markeredgewidth=0)  # fmt: skip
    left.set(xlabel="similarity $s$", ylabel=r"$|\nabla_F\,$Sim$|\;|F|$", ylim=(0, 3.3),
             title="C.2 gradient")  # fmt: skip

    # C.3: the curvature grows as the square of 1 / |F|.
    middle.plot(chords.M, chords.paper, **PAPER, label="paper: $16/M$")
    middle.plot(chords.M, chords.ours, color=RED, label="ours: $6/m^2$")
    middle.plot(chords.M, chords.ratio, **dots, label="measured")
    middle.set(xscale="log", yscale="log", xlabel="norm of every frame, $m = M$",
               ylabel=r"$|\nabla L(F) - \nabla L(G)|\,/\,|F-G|$",
               title="C.3 Lipschitz constant")  # fmt: skip

    # C.1: the constant of every number of frames, below its limit.
    right.axhline(16, color=GREEN, linewidth=1, linestyle=":", label="limit 16")
    right.plot(curvature.n_frames, curvature.constant, color=RED, label="ours: $c_T$")
    right.plot(curvature.n_frames, curvature.attacked, **dots, label="attack", zorder=4)
    right.plot(curvature.n_frames, curvature.pattern, "kx", markersize=6, markeredgewidth=0.8,
               label="$e,-e,-e,e,e$, ...", zorder=3)  # fmt: skip
    right.set(xscale="log", xlabel="frames $T$", ylim=(0, 18), title="C.1 curvature",
              ylabel=r"$|\nabla^2L|\,(T-1)\,m^2\,/\,2$")  # fmt: skip
    right.set_xticks((3, 5, 10, 20, 50), ("3", "5", "10", "20", "50"))
    right.minorticks_off()
    for axes, place in ((left, "upper left"), (middle, "lower left"), (right, "lower right")):
        axes.legend(loc=place, handlelength=1.6, borderaxespad=0.2)


def _flicker(
    page: SubFigure, measured: pd.DataFrame, frames: Mapping[str, Float[Tensor, "f 3 y x"]]
) -> None:
    """One row per kind: its frames, and beside them both losses of all clips."""
    n_frames = len(next(iter(frames.values())))
    grid = page.add_gridspec(len(frames), n_frames + 2, width_ratios=[1] * n_frames + [3.2] * 2)
    for i, (kind, clip) in enumerate(frames.items()):
        row = [page.add_subplot(grid[i, f]) for f in range(n_frames)]
        for axes, frame in zip(row, clip, strict=True):
            axes.imshow(frame.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="none")
            axes.set_axis_off()
        similarity = measured[measured.kind == kind].similarity.mean()
        row[0].text(-0.15, 0.5, f"{kind}\n$\\bar s$ = {similarity:.2f}", ha="right", va="center",
                    transform=row[0].transAxes)  # fmt: skip
    for j, (name, title) in enumerate(LOSSES.items()):
        axes = page.add_subplot(grid[:, n_frames + j])
        _dots(axes, measured, name, list(frames))
        axes.set_title(title)


def _dots(axes: Axes, measured: pd.DataFrame, name: str, kinds: list[str]) -> None:
    """One dot per clip and site, one row per kind; a bar at the median; the left end is 0."""
    import seaborn as sns

    floor = 10 ** np.floor(np.log10(measured[name][measured[name] > 0].min()) - 1.5)
    shown = measured.assign(value=measured[name].clip(lower=floor))
    sns.stripplot(shown, x="value", y="kind", hue="kind", order=kinds, hue_order=kinds, size=2.8,
                  palette=[GREEN, BLUE, RED][: len(kinds)], jitter=0.22, alpha=0.6, ax=axes,
                  legend=False)  # fmt: skip
    medians = [shown[shown.kind == kind].value.median() for kind in kinds]
    axes.scatter(medians, range(len(kinds)), marker="|", s=130, color="black", zorder=5)
    axes.set(xscale="log", xlabel="", ylabel="", yticks=[], xlim=(floor / 2, 6))
    axes.set_ylim(len(kinds) - 0.5, -0.5)  # each row beside its frames

    # Ticks at every third power of ten, and at the left end.
    powers = [10.0**e for e in range(round(np.log10(floor)) + 2, 1) if e % 3 == 0]
    end = "0" if (measured[name] == 0).any() else ""
    axes.set_xticks([floor, *powers], [end, *(f"$10^{{{np.log10(x):.0f}}}$" for x in powers)])
    axes.minorticks_off()
