"""Notebook 44: bounds of attention beside what they bound, and how near learnt tokens can come.

GE-Adapter (arXiv 2501.04606), appendix C, C.10, C.14, C.15.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.cases import edit_cases, folder_cases
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import save_rows
from vala_research.experiments.network_preset import NetworkPreset, side_of
from vala_research.experiments.theory.attention_heads import Judge, head_rows
from vala_research.sprites.edits import EDITS
from vala_research.sprites.scene import WORLD

MEASURED = {"paper": "difference", "F": "difference", "R": "row"}  # bound: what it bounds
BOUNDS = {"paper": COLOURS[1], "F": COLOURS[0], "R": COLOURS[2]}
LABELS = {"paper": "paper's γ", "F": "(F), all rows", "R": "(R), worst row"}
EDGES = np.linspace(-4, 4, 41)  # log10 of the ratios shown; what lies beyond is drawn at the edge
APPROACHES = ("frame", "step")  # pairs whose tokens come nearer to the ideal ones


@dataclass(frozen=True, kw_only=True)
class Settings(NetworkPreset):
    """Parameters of notebook 44; `seed` is that of random heads and tokens."""

    CHOICES = {"kinds": EDITS}

    folder: str = ""  # of clips, with edits.csv: clip, source_prompt, prompt; "": sprite clips
    n_clips: int = 1  # sprite clips of each kind of edit
    kinds: Sequence[str] = ("shape", "colour")  # of the sprites' edits
    timesteps: Sequence[int] = (101, 501, 901)
    shares: Sequence[float] = (1.0, 0.1, 0.01, 0.001, 0.0)  # of the way to the ideal tokens
    size: int = 0  # side of the square frames, in pixels; 0: the model's own
    n_random: int = 20000  # random heads
    n_steps: int = 200  # of each ascent
    width: int = 4  # d of the tokens that are learnt


def run(
    settings: Settings, output: str | Path, bounds: Sequence[Mapping], judge: Judge
) -> pd.DataFrame:
    """Rows of `head_rows`, part "layers", after those of `theory.measurements.attention_bounds`.

    judge: `theory.attention.judged`. Noise on clip i has seed i.
    """
    pipe = quiet_pipeline(settings.model, settings.dtype)
    if settings.folder:
        cases = folder_cases(settings.folder)
    else:
        cases = edit_cases(WORLD, "test", settings.n_clips, settings.kinds)
    size = settings.size or side_of(pipe)
    rows = head_rows(pipe, cases, settings.timesteps, judge, size, shares=settings.shares)
    return save_rows([*bounds, *({"part": "layers"} | row for row in rows)], output)


def layer_ratios(layers: pd.DataFrame) -> dict[str, np.ndarray]:
    """Measured over bound, by bound, for rows of the part "layers".

    Infinite where the bound is 0 and what it bounds is not; left out where both are 0.
    """
    ratios = {}
    for name, column in MEASURED.items():
        measured, bound = (layers[k].to_numpy(float) for k in (column, name))
        says_something = (measured > 0) | (bound > 0)
        with np.errstate(divide="ignore"):
            ratios[name] = measured[says_something] / bound[says_something]
    return ratios


def random_ratios(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Measured over bound at random heads, by bound."""
    heads = rows[rows.part == "random"]
    return {name: heads[f"ratio_{name}"].to_numpy(float) for name in BOUNDS}


def approach(layers: pd.DataFrame) -> pd.DataFrame:
    """Measured over bound as tokens come near the ideal ones: share, bound, low, median, high.

    The queries differ, the tokens are Z* + share dZ. Quantiles .05, .5 and .95 over layers, heads,
    clips and timesteps.
    """
    near, quantiles = layers[layers.pair.isin(APPROACHES)], []
    for share, part in sorted(near.groupby("share"), reverse=True):
        for name, values in layer_ratios(part).items():
            low, median, high = np.quantile(values, (0.05, 0.5, 0.95), method="lower").tolist()
            place = {"share": share, "bound": name, "n": len(values)}
            quantiles.append(place | {"low": low, "median": median, "high": high})
    return pd.DataFrame(quantiles)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Per pair and share: how often the paper's bound breaks, the largest ratios, ||P||_2."""
    layers = rows[rows.part == "layers"]
    return pd.DataFrame({
        "paper's broken": layers.difference > layers.paper, "F ratio": layers.difference / layers.F,
        "R ratio": layers.row / layers.R, "||P||_2": layers.norm,
    }).groupby([layers.pair, layers.share]).agg(
        {"paper's broken": "mean", "F ratio": "max", "R ratio": "max", "||P||_2": "median"}
    )  # fmt: skip


def claims(rows: pd.DataFrame) -> list[Claim]:
    """(F) and (R) hold and are attained; the paper's breaks; tokens leave zero at the width."""
    verdicts, ascent, tokens, layers = (
        rows[rows.part == part] for part in ("verdict", "ascent", "tokens", "layers")
    )
    places = {"random heads": random_ratios(rows), "layers": layer_ratios(layers)}
    is_sound, best = verdicts.reproduced.astype(bool), ascent.set_index("name").ratio
    is_free = tokens.n_unshared <= tokens.width + tokens.bias.astype(bool)
    is_reached = (tokens.distance < 1e-9) == is_free
    return [
        Claim.of_fact("the ascents and the counterexamples reproduce", "share of verdicts",
                      is_sound.mean(), is_sound.all()),
        *(Claim.of_fact(f"({name}) holds in all {place}", "largest measured / bound",
                        ratios[name].max(), ratios[name].max() <= 1 + 1e-6, len(ratios[name]))
          for place, ratios in places.items() for name in ("F", "R")),
        *(Claim.of_fact(f"ascent attains ({name}) and does not exceed it", "measured / bound",
                        best[name], 0.999 <= best[name] <= 1 + 1e-6) for name in ("F", "R")),
        *(Claim.of_fact(f"the paper's bound is broken in {place}", "largest measured / bound",
                        ratios["paper"].max(), ratios["paper"].max() > 1, len(ratios["paper"]))
          for place, ratios in places.items()),
        Claim.of_fact("the least distance of tokens leaves zero at their width", "share of counts",
                      is_reached.mean(), is_reached.all(), len(tokens)),
    ]  # fmt: skip


@drawn(claim="the paper's bound is broken")
def figure(rows: pd.DataFrame) -> Picture:
    """Draw measured over bound, the same as tokens approach, and how near tokens can come.

    Left, above: random heads, with triangles at the most that ascent finds; below: all pairs but
    those of equal tokens, which the middle panel shows.
    """
    ascent, tokens, layers = (rows[rows.part == part] for part in ("ascent", "tokens", "layers"))
    with rc_context(STYLE):
        picture = Picture(figsize=(PAGE, 2.7), layout="constrained")
        grid = picture.add_gridspec(2, 3, width_ratios=(1.25, 1, 1))
        above = picture.add_subplot(grid[0, 0])
        below = picture.add_subplot(grid[1, 0], sharex=above)
        _histograms(above, random_ratios(rows), "random heads")
        _histograms(below, layer_ratios(layers[layers.share > 0]), "a network's layers")
        for height, best in zip((0.3, 0.12), ascent.itertuples(), strict=False):
            above.plot(best.ratio, height, "v", transform=above.get_xaxis_transform(), zorder=5,
                       color=BOUNDS[best.name], markeredgecolor="white",
                       markersize=5.5)  # fmt: skip
        above.tick_params(labelbottom=False)
        above.set_title("measured / bound")
        below.set_xlabel("ratio; right of 1 the bound is broken")
        _approach(picture.add_subplot(grid[:, 1]), approach(layers))
        _tokens(picture.add_subplot(grid[:, 2]), tokens)
    return picture


def histogram(ratios: np.ndarray) -> np.ndarray:
    """Share of the ratios per bin of log10, with all that lie beyond in the outermost bins."""
    with np.errstate(divide="ignore"):
        inside = np.log10(ratios).clip(EDGES[0], EDGES[-1])
    return np.histogram(inside, EDGES)[0] / max(1, len(ratios))


def _histograms(axes: Axes, ratios: Mapping[str, np.ndarray], words: str) -> None:
    shares = {name: histogram(values) for name, values in ratios.items()}
    axes.axvspan(1, 10 ** EDGES[-1], color="#F6E3D8", zorder=0, linewidth=0)
    axes.axvline(1, color="black", linewidth=0.8)
    for name, share in shares.items():
        axes.stairs(share, 10**EDGES, color=BOUNDS[name], fill=True, alpha=0.25)
        axes.stairs(share, 10**EDGES, color=BOUNDS[name], label=LABELS[name], linewidth=1.1)
    axes.set(xscale="log", xlim=(10 ** EDGES[0], 10 ** EDGES[-1]), ylabel="share", yticks=[],
             ylim=(0, 1.3 * max(share.max() for share in shares.values())))  # fmt: skip
    axes.minorticks_off()

    broken = f"paper's γ\nbroken: {np.mean(ratios['paper'] > 1):.0%}"
    style = {"transform": axes.transAxes, "va": "top", "fontsize": 7}
    axes.text(0.02, 0.95, words, ha="left", **style)
    axes.text(0.98, 0.95, broken, ha="right", color=BOUNDS["paper"], **style)


def _approach(axes: Axes, near: pd.DataFrame) -> None:
    """Medians and ranges; infinite ones stand at the top edge."""
    shares = list(dict.fromkeys(near.share))
    top = 10 * max(1.0, near.high[np.isfinite(near.high)].max())
    for shift, (name, colour) in zip((-0.14, 0, 0.14), BOUNDS.items(), strict=True):
        part = near[near.bound == name]
        x = np.arange(len(part)) + shift
        low, mid, high = (part[k].clip(upper=top).to_numpy() for k in ("low", "median", "high"))
        axes.vlines(x, low, high, color=colour, alpha=0.45, linewidth=2.5)
        is_finite = mid < top
        axes.plot(x[is_finite], mid[is_finite], color=colour, marker="o", label=LABELS[name])
        for i in x[~is_finite]:
            axes.plot(i, top, "^", color=colour, clip_on=False)
            axes.annotate("∞", (i, top), (-6, -3), textcoords="offset points", color=colour,
                          ha="right")  # fmt: skip
    axes.axhspan(1, top, color="#F6E3D8", zorder=0, linewidth=0)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(yscale="log", ylim=(1e-4, top), title="tokens come nearer")
    axes.set_xticks(range(len(shares)), [f"{share:g}" for share in shares])
    axes.set(xlabel="‖ΔZ‖ / ‖ΔZ‖ of an edit", ylabel="measured / bound")
    axes.minorticks_off()
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper left", handlelength=1.4, bbox_to_anchor=(0, 0.97))


def _tokens(axes: Axes, tokens: pd.DataFrame) -> None:
    """Least distances, and the curves sqrt((N_u - d) d), with a bias from d + 1 on."""
    width, n, has_bias = tokens.width.iloc[0], tokens.n_unshared, tokens.bias.astype(bool)
    fine = np.linspace(n.min(), n.max(), 400)
    marks = ((0, COLOURS[0], "o", "W"), (1, COLOURS[5], "s", "W and a bias"))
    for bias, colour, mark, words in marks:
        axes.plot(fine, np.sqrt(np.clip(fine - width - bias, 0, None) * width), color=colour,
                  linewidth=1)  # fmt: skip
        part = tokens[has_bias == bias]
        axes.plot(part.n_unshared, part.distance, mark, color=colour, label=words)
    axes.plot([width, n.max()], [0, 0], color=BOUNDS["paper"], linestyle="--",
              label="paper, from d on")  # fmt: skip
    axes.axvline(width, color="#999999", linewidth=0.8, linestyle=":")
    axes.text(width - 0.25, 0.6, "$d$", transform=axes.get_xaxis_transform(), color="#555555",
              ha="right")  # fmt: skip
    axes.set(xlabel="frame tokens $N_u$", ylabel="least ‖ΔZ‖", title="what learning can reach")
    axes.legend(loc="upper left", handlelength=1.6, frameon=True, framealpha=1, edgecolor="none")
