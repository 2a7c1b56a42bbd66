"""Notebook 41: the temporal loss descended in the features, and in the LoRA of an adapter.

In the features no minimum is false, and a step of 1 / L_s never raises the loss (theory/README.md,
A5). A LoRA moves all features at once, along a curved set of few dimensions: no proof is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.figure import SubFigure
from torch import Tensor
from tqdm import trange

from vala_research import InputError
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter, temporal_features
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.cases import Case
from vala_research.evaluation.figures import BLUE, COLOURS, PAGE, PAPER, RED, STYLE, Picture, drawn
from vala_research.evaluation.probes import View, short_name
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import save_rows
from vala_research.experiments.network_preset import ClipPreset
from vala_research.methods.temporal import frame_similarity, temporal_consistency_loss

Features = Mapping[str, Tensor]  # of every site: one feature per frame
PARTS = ("descent", "promised", "chord", "line", "total")  # of the theory
SMOOTH = 32.0  # L_s <= SMOOTH / ((T-1) m^2), m the least norm of a frame


@dataclass(frozen=True, kw_only=True)
class Settings(ClipPreset):
    """Parameters of notebook 41; `seed` is that of the noise and the LoRA."""

    prompt: str = ""  # what your clip shows
    t: int = 541  # timestep of the noised clip
    rank: int = 8  # of the LoRA
    n_steps: int = 12  # on the features of the model and on its LoRA
    steps: Sequence[float] = (1.0, 1.9, 2.1)  # step sizes, in units of 1 / L_s, at T = 3
    n_free: int = 60  # steps of each size on three vectors


def run(settings: Settings, output: str | Path, descent: Sequence[Mapping]) -> pd.DataFrame:
    """Rows of `descents`, part "adapter", after those of `theory.measurements.descent`."""
    pipe = quiet_pipeline(settings.model)
    case = settings.case(pipe, settings.prompt)
    measured = descents(pipe, case, settings.t, settings.n_steps, settings.rank)
    return save_rows([*descent, *({"part": "adapter"} | row for row in measured)], output)


def descents(
    pipe: Any, case: Case, t: int, n_steps: int = 40, rank: int = 8, flicker_weight: float = 0.0
) -> list[dict]:
    """Descend in both spaces, "features" and "LoRA": one row per step, space and hook site.

    Both start from the features that the bare model has of the clip, noised to timestep t as in
    training, with noise of its own for each frame. A new adapter is attached for the descent and
    taken out again. Raises InputError for a pipeline that has an adapter.
    """
    if pipe.adapter is not None:
        raise InputError("The pipeline has an adapter: unload it, a new one is to be trained.")
    view = case.views(pipe, t)["without"]
    settings = AdapterSettings(rank=rank, alpha=rank, n_shared=0, uses_frame_tokens=False)
    generator = torch.Generator().manual_seed(case.seed)
    adapter = TemporalAdapter.attach(pipe.unet, settings, generator=generator)
    try:
        with torch.no_grad():
            start = {n: x.clone() for n, x in features_of(view, adapter).items()}
        rows = feature_descent(start, n_steps, flicker_weight)
        return rows + lora_descent(view, adapter, n_steps, flicker_weight)
    finally:
        adapter.detach()


def features_of(view: View, adapter: TemporalAdapter) -> dict[str, Tensor]:
    """Compute, with gradients, what the temporal loss reads: self-attention at the hook sites."""
    text = view.text.expand(len(view.z), -1, -1)
    with adapter.active(True), temporal_features(view.unet) as features:
        view.unet(view.z, view.t, text, return_dict=False)
    return {name: x.float() for name, x in features.items()}


def feature_descent(start: Features, n_steps: int, flicker_weight: float = 0.0) -> list[dict]:
    """Step by 1 / L_s on the features of each site by itself, in float64."""
    sites = {n: x.cpu().double().flatten(1) for n, x in start.items()}
    smooth = {
        n: (SMOOTH + 4 * flicker_weight) / ((len(x) - 1) * x.norm(dim=1).min().item() ** 2)
        for n, x in sites.items()
    }

    rows = []
    for step in range(n_steps + 1):
        sites = {n: x.detach().requires_grad_() for n, x in sites.items()}
        losses = {n: _loss(x, flicker_weight) for n, x in sites.items()}
        rows += _rows("features", step, sites, losses)
        if step < n_steps:
            grads = torch.autograd.grad(sum(losses.values()), list(sites.values()))
            steps = zip(sites.items(), grads, strict=True)
            sites = {n: x - g / smooth[n] for (n, x), g in steps}
    return rows


def lora_descent(
    view: View, adapter: TemporalAdapter, n_steps: int, flicker_weight: float = 0.0
) -> list[dict]:
    """Step down the mean loss of all sites, on the weights of the LoRA.

    The smoothness is not known there. So a step is halved until the loss falls by half of what its
    slope promises (Armijo), and the next step starts twice as long. Where no step lowers the loss,
    the path stays.
    """
    weights = [p for _, p in adapter.lora_parameters()]
    rows, rate, moves = [], 16.0, True
    for step in trange(n_steps + 1, desc="LoRA", disable=None):
        sites = features_of(view, adapter)
        losses = {n: _loss(x, flicker_weight) for n, x in sites.items()}
        rows += _rows("LoRA", step, sites, losses)
        if step == n_steps or not moves:
            continue
        total = torch.stack(list(losses.values())).mean()
        grads = torch.autograd.grad(total, weights, materialize_grads=True)  # some come later
        rate = _armijo(view, adapter, weights, grads, total.item(), 2 * rate, flicker_weight)
        moves = rate > 0
    return rows


@torch.no_grad()
def _armijo(view, adapter, weights, grads, before: float, rate: float, flicker_weight) -> float:
    """Move the weights by the longest step that helps; return it, or 0 after 40 halvings."""
    # What the loss falls by, to first order, is the step times the gradient's square.
    square = sum(g.square().sum().item() for g in grads)
    start = [p.clone() for p in weights]
    for _ in range(40):
        for p, old, g in zip(weights, start, grads, strict=True):
            p.copy_(old - rate * g)
        sites = features_of(view, adapter).values()
        after = torch.stack([_loss(x, flicker_weight) for x in sites]).mean().item()
        if after < before - 0.5 * rate * square:
            return rate
        rate /= 2
    for p, old in zip(weights, start, strict=True):
        p.copy_(old)
    return 0.0


def _loss(x: Tensor, flicker_weight: float) -> Tensor:
    return temporal_consistency_loss(x, flicker_weight=flicker_weight)


def _rows(space: str, step: int, sites: Features, losses: Mapping[str, Tensor]) -> list[dict]:
    return [
        {"space": space, "step": step, "site": short_name(name), "loss": loss.item(),
         "similarity": frame_similarity(sites[name].detach()).mean().item()}
        for name, loss in losses.items()
    ]  # fmt: skip


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Loss and similarity at the first and the last step, means over hook sites, per space."""
    means = _means(rows)
    return means[means.step.isin((0, means.step.max()))].set_index(["space", "step"])


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Descent goes down below 2 / L_s, at the promised rate; not beyond, nor on the total loss."""
    free, promised, chord, line, total = (rows[rows.part == part] for part in PARTS)
    means, runs = _means(rows), free.groupby("steps").loss
    ends = {space: path.loss.iloc[-1] / path.loss.iloc[0] for space, path in means.groupby("space")}
    falls = means.groupby("space").loss.apply(lambda loss: loss.is_monotonic_decreasing)
    is_falling = runs.apply(lambda loss: loss.is_monotonic_decreasing)
    below, beyond = is_falling[is_falling.index < 2], is_falling[is_falling.index > 2]
    both = promised.merge(free, on=["steps", "step"], suffixes=("_promised", ""))
    rate = (both.loss / both.loss_promised).max()
    bulge = chord.loss.max() - chord.loss.iloc[[0, -1]].max()
    depth, least = line.loss[line.minimum.astype(bool)].min(), line.loss.min()
    step = total.iloc[0]
    return [
        *(Claim.of_fact(f"descent in the {space} never raises L, and lowers it",
                        "last / first loss", ends[space], falls[space] and ends[space] < 1)
          for space in ends),
        Claim.of_fact("steps below 2 / L_s never raise L", "step sizes", len(below), below.all()),
        Claim.of_fact("steps beyond 2 / L_s raise L at some step", "step sizes", len(beyond),
                      not beyond.any()),
        Claim.of_fact("L falls at the promised linear rate", "largest loss / promised", rate,
                      not rate > 1 + 1e-9),
        Claim.of_fact("L is not convex in the features", "height above the chord's ends", bulge,
                      bulge > 1e-3),
        Claim.of_fact("in parameters there is a false bottom", "its loss", depth,
                      depth > 0.3 and least < 0.01),
        Claim.of_fact("a step on the total loss can raise L", "rise of L", step.after - step.before,
                      step.after > step.before and step.total_after < step.total_before),
    ]  # fmt: skip


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    by_step = rows[rows.part == "adapter"].groupby(["space", "step"])
    return by_step[["loss", "similarity"]].mean().reset_index()


@drawn(claim="never raise L")
def figure(rows: pd.DataFrame) -> Picture:
    """Draw C.4 and C.5 on small vectors; below, the descents of a network, means over sites."""
    names = {"loss": "$L$, mean over sites", "similarity": r"mean similarity $\bar s$"}
    with rc_context(STYLE):
        picture = Picture(figsize=(PAGE, 4.5), layout="constrained")
        above, below = picture.subfigures(2, 1)
        _theory(above, rows)
        paths = _means(rows).groupby("space")
        for axes, (name, words) in zip(below.subplots(1, 2), names.items(), strict=True):
            for (space, path), colour in zip(paths, (RED, BLUE), strict=True):
                axes.plot(path.step, path[name], color=colour, label=space)
            axes.set(xlabel="step", ylabel=words, yscale="log" if name == "loss" else "linear")
        below.axes[0].legend(title="descent in the")
    return picture


def _theory(page: SubFigure, rows: pd.DataFrame) -> None:
    """Loss over steps of several sizes, along a chord, and along a line of adapters."""
    left, middle, right = page.subplots(1, 3)
    free, promised, chord, line, _ = (rows[rows.part == part] for part in PARTS)

    # A run and what is promised of it share a colour.
    runs, rates = free.groupby("steps"), dict(list(promised.groupby("steps")))
    for (size, path), colour in zip(runs, COLOURS, strict=False):
        left.plot(path.step, path.loss, color=colour, label=f"$\\eta = {size:g}/L_s$")
        if size in rates:
            left.plot(rates[size].step, rates[size].loss, color=colour, linewidth=1.1,
                      linestyle=":", label=f"promised, {size:g}")  # fmt: skip
    left.set(yscale="log", xlabel="step", ylabel="$L$", title="C.4 descent in features")
    left.set_ylim(max(free.loss[free.loss > 0].min(), 1e-16), None)
    left.legend(handlelength=1.4)

    middle.plot([0, 1], 1e3 * chord.loss.iloc[[0, -1]], **PAPER, label="if convex: not above")
    middle.plot(chord.u, 1e3 * chord.loss, color=BLUE, label="measured")
    middle.set(xlabel="from $A$ to $B$", ylabel=r"$10^3 L$", title="C.5 in features",
               ylim=(-0.05, 1.35e3 * chord.loss.max()))  # fmt: skip
    middle.legend(loc="upper left", handlelength=1.6)

    right.plot(line.theta, line.loss, color=BLUE)
    bottom = line[line.minimum.astype(bool)].iloc[0]
    right.plot(bottom.theta, bottom.loss, "o", color=RED, zorder=3)
    right.annotate(f"false bottom\n$L = {bottom.loss:.3f}$", (bottom.theta, bottom.loss),
                   (-52, 40), textcoords="offset points", fontsize=7, color=RED,
                   arrowprops={"arrowstyle": "-", "color": RED, "lw": 0.7})  # fmt: skip
    right.set(xlabel=r"$\theta$", ylabel=r"$L(A + \theta B)$", title="C.4 in parameters")
