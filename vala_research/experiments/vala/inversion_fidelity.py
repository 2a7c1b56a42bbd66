"""What an inversion keeps of a clip, and what that costs: method x attention x steps.

Reconstruction under the source prompt: at guidance 1, and guided, as every edit samples (there
null-text inversion has its place; Mokady et al. 2022).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from vala_research import InputError
from vala_research.diffusion.attention import ANCHORS
from vala_research.diffusion.fixed_point import QUICK, ExactSettings
from vala_research.evaluation.figures import COLOURS, STYLE
from vala_research.evaluation.metrics import inversion_psnr
from vala_research.methods.anchors import AnchorSettings

ATTENTIONS = {
    "own": {"attention": "own"},
    "anchors, site": {"attention": "anchors", "anchors": ANCHORS},
    "anchors, token": {"attention": "anchors", "anchors": AnchorSettings(256, granularity="token")},
}


@dataclass(frozen=True)
class Way:
    """A named way there and back: inversion, and the guidance of the reconstruction."""

    inversion: str
    guidance_scale: float = 1.0
    exact_settings: ExactSettings = ExactSettings()


WAYS = {
    "ddim": Way("ddim"),
    "exact, quick": Way("exact", exact_settings=QUICK),
    "exact": Way("exact"),
    "ddim, guided": Way("ddim", 2.0),
    "null text, guided": Way("null_text", 2.0),
}


def fidelity_row(
    pipe, frames: Float[Tensor, "f c h w"], caption: str, way: Way, n_steps: int, attention: dict
) -> dict:
    """evaluations (forward passes of the inversion), backward passes, PSNR in dB there and back.

    to_vae: to decode(encode(clip)), the inversion alone; to_source: bounded by the VAE.
    """
    found = pipe.invert(
        frames, caption, n_steps, way.inversion, **attention, return_inversion=True,
        guidance_scale=way.guidance_scale, exact_settings=way.exact_settings,
    )  # fmt: skip
    again = pipe(
        None, caption, caption, num_inference_steps=n_steps, guidance_scale=way.guidance_scale,
        latents=found, attention=attention["attention"], output_type="pt",
    ).frames[0]  # fmt: skip
    cost = {"evaluations": found.n_evaluations, "backward": found.n_backward}
    return cost | inversion_psnr(again, frames, pipe.decode(pipe.encode(frames)))


def fidelity(
    pipe,
    clips: dict[str, tuple[Float[Tensor, "f c h w"], str]],
    steps: Iterable[int] = (10, 25, 50),
    ways: Iterable[str] = tuple(WAYS),
    attentions: Iterable[str] = tuple(ATTENTIONS),
) -> list[dict]:
    """One row a clip, attention, way and number of steps.

    clips: name -> (frames, caption). Raises InputError for an unknown way or attention.
    """
    steps, ways, attentions = list(steps), list(ways), list(attentions)
    for given, known in ((ways, WAYS), (attentions, ATTENTIONS)):
        if set(given) - set(known):
            raise InputError(f"{given} is not all known: choose from {', '.join(known)}.")
    rows = []
    for name, (frames, caption) in tqdm(clips.items(), "clips", disable=None):
        for attention in attentions:
            for way in ways:
                for n in steps:
                    row = fidelity_row(pipe, frames, caption, WAYS[way], n, ATTENTIONS[attention])
                    rows.append({"clip": name, "method": way, "attention": attention,
                                 "steps": n} | row)  # fmt: skip
    return rows


def mean_rows(rows: list[dict]) -> list[dict]:
    """Means over the clips, one row a method, attention and number of steps; n_clips beside."""
    keys = ("method", "attention", "steps")
    values = ("evaluations", "backward", "to_vae", "to_source")
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    return [
        dict(zip(keys, group, strict=True))
        | {v: sum(r[v] for r in found) / len(found) for v in values}
        | {"worst_to_vae": min(r["to_vae"] for r in found), "n_clips": len(found)}
        for group, found in groups.items()
    ]


def fidelity_figure(means: list[dict]) -> Figure:
    """PSNR to the VAE round trip against network passes: one line a method and attention."""
    markers = dict(zip(ATTENTIONS, ("o", "s", "^"), strict=True))
    lines = dict(zip(ATTENTIONS, ("-", "--", ":"), strict=True))
    colours = dict(zip(WAYS, COLOURS, strict=False))
    with rc_context(STYLE):
        fig = Figure(figsize=(5.2, 2.9))
        axes = fig.add_subplot(
            xscale="log", xlabel="network passes of the inversion, forward and backward",
            ylabel="PSNR to the VAE round trip (dB)",
        )  # fmt: skip
        for method in dict.fromkeys(r["method"] for r in means):
            for attention in dict.fromkeys(r["attention"] for r in means):
                found = [r for r in means if (r["method"], r["attention"]) == (method, attention)]
                axes.plot(
                    [r["evaluations"] + r["backward"] for r in found],
                    [r["to_vae"] for r in found],
                    color=colours[method], marker=markers[attention], ls=lines[attention],
                    markerfacecolor=colours[method] if attention == "own" else "white",
                )  # fmt: skip
        axes.axhline(60, color="#555555", lw=0.8)
        axes.text(axes.get_xlim()[1], 60.6, "60 dB", ha="right", fontsize=7, color="#555555")
        axes.set_xticks(ticks := [10, 25, 50, 100, 250, 500], [str(t) for t in ticks])
        axes.minorticks_off()
        _legend(fig, axes, means, colours, markers, lines)
    return fig


def _legend(fig, axes, means, colours, markers, lines) -> None:
    """Colour is the method, marker and dash the attention: named apart, beside the axes."""
    present = dict.fromkeys(r["method"] for r in means)
    handles = [axes.plot([], [], color=colours[m], label=m)[0] for m in present]
    for a in dict.fromkeys(r["attention"] for r in means):
        face = "#555555" if a == "own" else "white"
        style = dict(color="#555555", marker=markers[a], ls=lines[a], markerfacecolor=face)
        handles.append(axes.plot([], [], label=a, **style)[0])
    fig.legend(handles=handles, loc="outside right center")
