"""The temporal loss descended twice: in the features, as the theory does, and in an adapter's LoRA.

In the features no minimum is false and a step of 1 / L_s never rises (theory/README.md, A5). A LoRA
moves all features at once, along a curved set of few dimensions: nothing of that is promised there.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from matplotlib import rc_context
from torch import Tensor
from tqdm import trange

from vala_research import InputError
from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter, temporal_features
from vala_research.evaluation.cases import Case
from vala_research.evaluation.figures import (
    BLUE,
    COLOURS,
    PAPER,
    RED,
    STYLE,
    Picture,
    check_tables,
    panels,
)
from vala_research.evaluation.probes import View, short_name
from vala_research.methods.temporal import frame_similarity, temporal_consistency_loss

Features = Mapping[str, Tensor]  # of every site: a feature a frame
SMOOTH = 32.0  # L_s <= SMOOTH / ((T-1) m^2), m the least norm of a frame


def descents(
    pipe: Any, case: Case, t: int, n_steps: int = 40, rank: int = 8, flicker_weight: float = 0.0
) -> list[dict]:
    """One row a step and space, "features" or "LoRA": loss and similarity, means over hook sites.

    Both start from the clip noised to timestep t as in training, a noise for each frame, and the
    features that the bare model has of it. The pipeline must have no adapter: a new one is attached
    for the descent and taken out again. Raises InputError when it has one.
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
    """What the temporal loss reads, with gradients: outputs of self-attention at the hook sites."""
    text = view.text.expand(len(view.z), -1, -1)
    with adapter.active(True), temporal_features(view.unet) as features:
        view.unet(view.z, view.t, text, return_dict=False)
    return {name: x.float() for name, x in features.items()}


def feature_descent(start: Features, n_steps: int, flicker_weight: float = 0.0) -> list[dict]:
    """Steps of 1 / L_s on the features of each site, a site by itself; float64."""
    sites = {n: x.double().flatten(1) for n, x in start.items()}
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
    """Steps on the LoRA of the mean loss of all sites, as long as they go down.

    Its smoothness is not known: a step is halved until the loss falls by half of what its slope
    promises (Armijo), and the next one starts twice as long. Where no step does, the path stays.
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
    """Move the weights; returns the step, 0 (and no move) when 40 halvings do not help."""
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


def descent_figure(
    paths: list[dict], rate: list[dict], chord: list[dict], line: list[dict]
) -> Picture:
    """C.4 and C.5: the loss over steps of several sizes, along a chord, along a line of adapters.

    paths, rate: steps (in units of 1 / L_s), step, loss; rate is what A5.4 promises of some sizes.
    chord: u, loss. line: theta, loss, and minimum (true at the false bottom).
    """
    check_tables(paths, rate, chord, line)
    with rc_context(STYLE):
        fig, (a, b, c) = panels(3)
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

    check_tables(rows)
    names = {"loss": "$L$, mean over sites", "similarity": r"mean similarity $\bar s$"}
    table = pd.DataFrame(rows).groupby(["space", "step"])[list(names)].mean().reset_index()
    with rc_context(STYLE):
        fig, axes = panels(2, 2.2)
        for ax, (name, words) in zip(axes, names.items(), strict=True):
            sns.lineplot(table, x="step", y=name, hue="space", palette=[BLUE, RED], ax=ax,
                         hue_order=["features", "LoRA"], legend=name == "loss")  # fmt: skip
            ax.set(ylabel=words)
        axes[0].set(yscale="log")
        axes[0].legend(title="descent in the")
    return fig
