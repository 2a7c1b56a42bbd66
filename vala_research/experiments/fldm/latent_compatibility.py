"""Do the image model and the video model share one latent space? (notebook 23)

FLDM (arXiv 2310.16400) states that models of incompatible spaces give incoherent results, and
proposes to normalise latents before fusion; it measures neither. Here the cosine between the
models' latents is measured, and the image model is moved to other spaces on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.benchmark import edited_frames
from vala_research.evaluation.comparison_figures import axis_title, interval_mark, within_clips
from vala_research.evaluation.comparison_tables import METRICS, PLACEMENT, comparison_table
from vala_research.evaluation.edit_settings import EditSetting, equip
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.sheet import strip
from vala_research.evaluation.statistics import paired_gain, summarise
from vala_research.evaluation.verdicts import Claim, completeness
from vala_research.experiments.contract import POINT, part_of
from vala_research.experiments.fldm.foreign_space import (
    OTHER_CLIP,
    SAME,
    UNTRAINED,
    ForeignPlan,
    foreign_plans,
)
from vala_research.experiments.fldm.latent_cosines import EDIT, INVERSION, cosine_rows
from vala_research.experiments.fldm.settings import (
    FUSED_MODELS,
    VIDEO,
    FusionPreset,
    single_models,
)
from vala_research.files import check_output, written_whole
from vala_research.methods.fusion import FusionSchedule

NORMALISED = ", normalised"
PHASES = {INVERSION: "inversion of each model alone", EDIT: "edit of each model alone"}
LINES = {SAME: (COLOURS[0], "-"), UNTRAINED: (COLOURS[6], "-"), OTHER_CLIP: ("#888888", ":")}


@dataclass(frozen=True, kw_only=True)
class Settings(FusionPreset):
    """Parameters of notebook 23."""

    CHOICES = FusionPreset.CHOICES | {"parts": ("controlnet",)}
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": dict(angles=(0, 90), has_untrained=False, n_frames=2, steps=3),
        "sprites": dict(POINT, n_clips=8),
        "paper": FUSED_MODELS | dict(clip_model=None),
    }
    clip_model: str | None = None  # CLIPModel that scores; None: no CLIP columns
    kinds: Sequence[str] = ("several",)  # kinds of edit of sprite clips
    angles: Sequence[float] = (0, 45, 90, 180)  # degrees; the first is 0
    has_untrained: bool = True  # also an untrained image model
    video_weight: float = 0.5  # of the video model, at every step from tau on
    tau: float = 0.0  # fraction of the steps before the first fusion

    def plans(self) -> dict[str, ForeignPlan]:
        """Return one fusion per space of the image model."""
        weights = (self.video_weight, 1 - self.video_weight)
        schedule = FusionSchedule("constant", weights, self.tau)
        return foreign_plans(self.motion, self.angles, self.has_untrained, schedule)


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """Return the video model alone, and each plan with and without normalised latents."""
    sampling = settings.sampling
    fused = {
        name + suffix: EditSetting(fusion=replace(plan, normalise=bool(suffix)), **sampling)
        for name, plan in settings.plans().items()
        for suffix in ("", NORMALISED)
    }
    return {VIDEO: single_models(settings.motion, **sampling)[VIDEO]} | fused


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Make the rows of the edits (part "edits") and of the cosines (part "cosines").

    Kept in `output`/rows.csv and `output`/cosines.csv. The edits resume from an earlier run.
    """
    path = check_output(Path(output) / "cosines.csv", makes_parents=True)
    edits = settings.compare(edit_settings(settings), output)
    pipe = quiet_pipeline(settings.model, settings.dtype)
    equip(pipe, **settings.own_parts)
    cosines = cosine_rows(
        pipe, settings.cases(), settings.plans(), settings.n_frames, settings.size,
        settings.steps, settings.guidance,
    )  # fmt: skip
    with written_whole(path) as unfinished:
        cosines.to_csv(unfinished, index=False)
    return pd.concat([edits.assign(part="edits"), cosines.assign(part="cosines")])


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Make one row per setting and metric: the mean, and the paired gain on the same space."""
    metrics = ("psnr", "success", "warp_error", *PLACEMENT)
    return comparison_table(part_of(rows, "edits"), SAME, metrics)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Judge the assumption of one space, its break condition, and the proposal to normalise.

    Asserted: the edits are complete and have a PSNR; every source's inversion begins at the clip's
    own latents; cosines are cosines.
    """
    edits, cosines = part_of(rows, "edits"), part_of(rows, "cosines")
    facts = [completeness(edits), *_facts(edits, cosines)]
    alike = cosines[cosines.phase == EDIT].pivot_table("centred", "index", "source")
    psnr = edits.pivot_table("psnr", "index", "setting")

    gains = []
    if OTHER_CLIP in alike:
        sentence = "latents of the same frames agree more than those of other clips"
        gain = paired_gain(alike[SAME].to_numpy(), alike[OTHER_CLIP].to_numpy())
        gains.append(Claim.of_gain(sentence, "cosine", gain))

    # (sentence, better, than), as names of settings.
    pairs = [("normalising gains in the same space", SAME + NORMALISED, SAME)]
    for name in _spaces(edits)[1:]:
        pairs += [
            (f"{name} is worse than the same space", SAME, name),
            (f"normalising gains for {name}", name + NORMALISED, name),
            (f"{name}, normalised, is still worse than the same space", SAME, name + NORMALISED),
        ]
    for sentence, better, than in pairs:
        gain = paired_gain(psnr[better].to_numpy(), psnr[than].to_numpy())
        gains.append(Claim.of_gain(sentence, METRICS["psnr"].name, gain))
    return gains + facts


def _facts(edits: pd.DataFrame, cosines: pd.DataFrame) -> list[Claim]:
    """Claim what must hold of any run."""
    n_unknown = int(edits.psnr.isna().sum())
    is_clean = (cosines.phase == INVERSION) & (cosines.t == 0) & (cosines.source != OTHER_CLIP)
    lowest, largest = float(cosines.raw[is_clean].min()), float(cosines.raw.abs().max())
    return [
        Claim.of_fact("every edit has a PSNR", "edits without", n_unknown, n_unknown == 0),
        Claim.of_fact("every inversion begins at the clip's own latents", "lowest cosine", lowest,
                      lowest > 0.999),
        Claim.of_fact("no cosine exceeds 1", "largest", largest, largest < 1.001),
    ]  # fmt: skip


def _spaces(edits: pd.DataFrame) -> list[str]:
    """Return the names of the image model's spaces, the same space first."""
    names = dict.fromkeys(edits.setting)
    return [name for name in names if name != VIDEO and not name.endswith(NORMALISED)]


# --- pictures -----------------------------------------------------------------------------------


def picture(settings: Settings) -> Picture:
    """Draw the first case: source, true edit if known, and its edits but for 45 and 180 degrees."""
    pipe, case = quiet_pipeline(settings.model, settings.dtype), settings.cases()[0]
    shown = {n: s for n, s in edit_settings(settings).items() if "45" not in n and "180" not in n}
    material = case.material(settings.n_frames, settings.size)
    lines = {"source": material.frames}
    lines |= {} if material.truth is None else {"true edit": material.truth}
    edits = edited_frames(pipe, case, shown, settings.n_frames, settings.size)
    lines |= {name.replace(", ", ",\n"): frames for name, frames in edits.items()}
    return strip(lines, 6, f"{case.source_prompt}  ->  {case.prompt}", 96)


@drawn
def figure(rows: pd.DataFrame, measure: str = "centred") -> Picture:
    """Draw the cosine of each source to the video model over t, and what its fusion is worth.

    measure: the cosine drawn, of `latent_cosines`. Intervals of the right panel are within clips.
    """
    edits, cosines = part_of(rows, "edits"), part_of(rows, "cosines")
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, 2.7))
        left, middle, right = fig.subplots(1, 3, width_ratios=(1, 1, 1.15))
        middle.sharey(left)
        rest = iter((COLOURS[5], COLOURS[3], COLOURS[4], *COLOURS[1:3]))
        looks = {n: LINES.get(n) or (next(rest), "-") for n in dict.fromkeys(cosines.source)}
        for ax, (phase, title) in zip((left, middle), PHASES.items(), strict=True):
            of_phase = cosines[cosines.phase == phase]
            for name, look in looks.items():
                _band(ax, of_phase[of_phase.source == name], measure, *look)
            ax.set(title=title, xlabel="diffusion step t")
        left.set_ylabel("cosine to the video model")
        fig.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3,
                   title=f"image model ({measure} latents):")  # fmt: skip

        _worth(right, edits)
        fig.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=1)
    return fig


def _band(ax: Axes, of_source: pd.DataFrame, measure: str, colour: str, line: str) -> None:
    """Draw the mean over clips at each t, with its interval."""
    name = of_source.source.iloc[0]
    levels = {t: summarise(at_t.groupby("index")[measure].mean().to_numpy())
              for t, at_t in of_source.groupby("t")}  # fmt: skip
    times = list(levels)
    ax.plot(times, [s.mean for s in levels.values()], color=colour, linestyle=line, label=name)
    low, high = ([getattr(s, end) for s in levels.values()] for end in ("low", "high"))
    ax.fill_between(times, low, high, color=colour, alpha=0.2, linewidth=0)


def _worth(ax: Axes, edits: pd.DataFrame) -> None:
    """Draw the PSNR of each space, as it is and normalised, and of the video model alone."""
    means = within_clips(edits, ["psnr"]).set_index("setting")
    names, colour = _spaces(edits), COLOURS[2]
    for suffix, face, shift in (("", colour, -0.1), (NORMALISED, "white", 0.1)):
        for x, name in enumerate(names):
            row = means.loc[name + suffix]
            label = f"fused{suffix}" if x == 0 else None
            interval_mark(ax, x + shift, row["mean"], colour, y_ends=(row.low, row.high),
                          markerfacecolor=face, label=label)  # fmt: skip
    ax.axhline(means.loc[VIDEO]["mean"], color=COLOURS[1], linestyle="--", label=VIDEO)

    labels = [n.replace("rotated by ", "").replace(SAME, "0") for n in names]
    labels = [f"{label}°" if label.isdigit() else label for label in labels]
    ax.set_xticks(range(len(names)), labels)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set(title=axis_title("psnr", edits), xlabel="rotation of the image model's space")
