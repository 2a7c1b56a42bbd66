"""The search for the miniature's default edit, on validation clips (notebook 02).

It starts at a setting that was chosen by hand. Beside it: settings that differ from the start in
one thing, so that the table says what each thing brings and costs, and what wins of it together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from vala_research import chosen_from
from vala_research.adapter.identity import digest
from vala_research.adapter.one_shot import TUNING, tune
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.cases import ClipCase, EditCase, edit_cases
from vala_research.evaluation.comparison_figures import axis_title, gains_figure
from vala_research.evaluation.comparison_tables import METRICS, comparison_table, gain_of, in_units
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.provenance import revision
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments import default_edit
from vala_research.experiments.contract import CLIP, PUBLISHED, EditPreset
from vala_research.experiments.search_settings import TUNED, settings_beside
from vala_research.sprites.edits import EDITS
from vala_research.sprites.scene import WORLD

SHOWN = ("psnr", "path_error", "jitter", "success", "presence")
PLOTTED = ("psnr", "path_error", "jitter")
LOOKS = [(colour, marker) for marker in "s^D" for colour in COLOURS[2:]]  # of points with a name
START = "start"


@dataclass(frozen=True, kw_only=True)
class Settings(EditPreset):
    """Parameters of notebook 02."""

    PRESETS = {
        "smoke": {"shown": ("steps 2", "no parts"), "steps": 3, "n_clips": 1,
                  "kinds": ("several",), "n_frames": 3},
        "sprites": {"n_clips": 6, "kinds": tuple(EDITS), "n_frames": 8, "n_processes": 0,
                    "steps": 15, "guidance": 2.0, "control_scale": 1.5},
        "paper": PUBLISHED | {"steps": 0, "guidance": 0.0, "clip_model": CLIP},
    }  # fmt: skip

    parts: Sequence[str] = ()  # of what the model brings, at the start; (): all
    steps: int = 0  # diffusion steps each way, at the start; 0: the model's own
    guidance: float = 0.0  # at the start; 0: the model's own
    control_scale: float = 0.0  # of the ControlNet, at the start; 0: the model's own
    shown: Sequence[str] = ()  # settings beside the start, such as "steps 10"; (): all
    first_clip: int = 0  # number of the first sprite clip

    def cases(self) -> list[EditCase | ClipCase]:
        """The edits: those of the folder, or of sprite clips of the validation split."""
        if self.clips or self.n_clips < 1:
            return super().cases()
        n = self.first_clip + self.n_clips
        cases = edit_cases(WORLD, "validation", n, self.kinds)
        return [case for case in cases if case.index >= self.first_clip]


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """The start, settings that differ from it in one thing, and several things at once.

    Raises InputError for an unknown name in `shown`.
    """
    of_model = default_edit.Settings(
        model=settings.model, parts=settings.parts, steps=settings.steps, guidance=settings.guidance
    )
    start = default_edit.edit_settings(of_model)[default_edit.DEFAULT]
    if start.controlnet and settings.control_scale:
        start = replace(start, control_scale=settings.control_scale)
    steps = (2,) if settings.preset_name == "smoke" else (5, 10, 25, 50)
    others = settings_beside(start, steps) | {"image model alone, anchors": default_edit.FORMER}
    for name in settings.shown:
        chosen_from("setting", name, others)
    return {START: start} | {name: others[name] for name in settings.shown or others}


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """One row per clip, kind of edit and setting; rows of `comparison.compare`."""
    chosen = edit_settings(settings)
    of_clips = {name: chosen.pop(name) for name in TUNED if name in chosen}
    rows = [settings.compare(chosen, output)]
    if of_clips:
        rows += _tuned_rows(settings, of_clips, output)
    return pd.concat(rows, ignore_index=True)


def _tuned_rows(
    settings: Settings, of_clips: dict[str, EditSetting], output: str | Path
) -> list[pd.DataFrame]:
    """The rows of settings of `TUNED`: the edits of a clip share the adapter that learnt it."""
    pipe, model = quiet_pipeline(settings.model), revision(settings.model)
    clips, rows = {}, []
    for case in settings.cases():
        clips.setdefault((case.index, case.source_prompt), []).append(case)
    for (name, setting), cases in product(of_clips.items(), clips.values()):
        training = replace(TUNING, max_steps=TUNED[name])
        frames = cases[0].material(settings.n_frames, settings.size).frames
        learnt = digest([frames, cases[0].source_prompt, model, training])
        folder = Path(output) / "tuned" / learnt
        adapter = tune(pipe, frames, cases[0].source_prompt, folder, training)
        tuned = {name: replace(setting, adapter=str(adapter))}
        rows.append(settings.compare(tuned, output, cases=cases))
    return rows


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means, gains on the start paired by clip, and evaluations per frame."""
    evaluations = rows.groupby("setting").evaluations.mean()
    compared = comparison_table(rows, START, SHOWN)
    return compared.assign(evaluations=compared.setting.map(evaluations))


def page(rows: pd.DataFrame) -> pd.DataFrame:
    """The table for a reader: a line per setting, best PSNR first, in the metrics' units."""
    numbers = table(rows)
    numbers["evaluations"] = numbers.evaluations.round().astype(int)
    means = numbers.pivot_table("mean", ["setting", "evaluations"], "metric", sort=False)
    shown = [m for m in SHOWN if m in means]
    return in_units(means[shown].sort_values("psnr", ascending=False))


@drawn
def figure(rows: pd.DataFrame) -> Figure:
    """Gains of each setting on the start; beside its name its evaluations over the start's."""
    compared = table(rows)
    relative = compared.set_index("setting").evaluations / compared.evaluations.iloc[0]
    return gains_figure(compared, relative.to_dict(), (*PLOTTED, "success"))


@drawn
def cost_figure(rows: pd.DataFrame) -> Figure:
    """Quality against evaluations: a line through the numbers of steps, and a point per setting.

    Settings that ask as often as the start are drawn without a name; `figure` names them.
    """
    metrics = [m for m in PLOTTED if m in rows and rows[m].notna().any()]
    means = rows.groupby("setting", sort=False)[["evaluations", *metrics]].mean()
    walked = means[[n == START or n.startswith("steps ") for n in means.index]]
    walked = walked.sort_values("evaluations")
    others = means.drop(walked.index)
    is_named = others.evaluations != means.evaluations[START]
    looks = dict(zip(others.index[is_named], LOOKS, strict=False))
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, 2.9))
        axes = fig.subplots(1, len(metrics), squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            factor = METRICS[metric].factor
            ax.plot(others.evaluations[~is_named], factor * others[metric][~is_named], "o",
                    color="#BBBBBB", ms=3, label="as many evaluations")  # fmt: skip
            ax.plot(walked.evaluations, factor * walked[metric], "o-", color=COLOURS[0], ms=3,
                    label="start, other steps")  # fmt: skip
            ax.plot(walked.evaluations[START], factor * walked[metric][START], "*",
                    color=COLOURS[1], ms=10, label=START)  # fmt: skip
            for name, (colour, marker) in looks.items():
                ax.plot(others.evaluations[name], factor * others[metric][name], marker,
                        color=colour, ms=5, label=name)  # fmt: skip
            ax.set(xscale="log", xlabel="evaluations per frame", title=axis_title(metric, rows))
            low, high = means.evaluations.min() / 1.3, means.evaluations.max() * 1.3
            ticks = [t for t in (5, 10, 20, 50, 100, 200) if low < t < high]
            ax.set_xticks(ticks, [str(t) for t in ticks])
            ax.minorticks_off()
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Whether any other setting beats the start, by PSNR; reported, with Bonferroni's p.

    Asserted: the settings differ.
    """
    others = [name for name in dict.fromkeys(rows.setting) if name != START]
    gains = {name: gain_of(rows, "psnr", name, START, 1) for name in others}
    stated = []
    for name in sorted(others, key=lambda name: -gains[name].mean)[:3]:
        corrected = replace(gains[name], p_value=min(1.0, gains[name].p_value * len(others)))
        stated.append(Claim.of_gain(f"{name} beats the start", "PSNR, gain in dB", corrected))
    psnr = rows.groupby("setting").psnr.mean()
    alike = sum(bool(psnr[name] == psnr[START]) for name in others)
    differ = Claim.of_fact("every setting differs from the start", "settings alike", alike,
                           alike == 0, n_clips=int(rows["index"].nunique()))  # fmt: skip
    return [*stated, differ]
