"""Fusions of more than two models: whether another source makes a better edit (notebook 25).

FLDM (arXiv 2310.16400) says that any two or more models of one latent space can be fused, and shows
two. Here sources are added one by one, under two rules for their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes

from vala_research.editing.fusion import Fusion
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.editing.plan import Plan
from vala_research.editing.source import Source
from vala_research.evaluation.comparison_figures import (
    axis_title,
    end_at_100,
    interval_mark,
    within_clips,
)
from vala_research.evaluation.comparison_tables import METRICS, PLACEMENT, per_clip
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.flops import meta_policy, relative
from vala_research.evaluation.verdicts import Claim, Hypothesis, tested
from vala_research.evaluation.weightless import weightless
from vala_research.experiments.contract import (
    MOTION_MODULES,
    POINT,
    PUBLISHED,
    EditPreset,
    save_rows,
)
from vala_research.experiments.fldm.edit_costs import cost_rows
from vala_research.experiments.fldm.settings import (
    IMAGE,
    NEVER,
    SHARED,
    VIDEO,
    single_models,
)
from vala_research.methods.fusion import FusionSchedule

# Source, attention, guidance relative to the edit's: in the order in which they join.
SOURCES = (
    ("video", "own", 1.0),
    ("image", "own", 1.0),
    ("image", "anchors", 1.0),
    ("video", "own", 2.0),
)
RELEASED, EQUAL = "released", "equal"
TWIN = "2 sources, one twice, released"
SHOWN = ("psnr", "success", "warp_error")


@dataclass(frozen=True, kw_only=True)
class Settings(EditPreset):
    """Parameters of notebook 25."""

    PRESETS = {
        "smoke": {"n_clips": 1, "n_frames": 2, "steps": 2},
        "sprites": POINT | {"rules": (RELEASED, EQUAL), "n_clips": 6},
        "paper": {
            **PUBLISHED, "motion": MOTION_MODULES, "rules": (RELEASED, EQUAL),
        },
    }  # fmt: skip

    CHOICES = EditPreset.CHOICES | {
        "parts": SHARED, "rules": (RELEASED, EQUAL), "numbers": (2, 3, 4),
    }  # fmt: skip

    motion: str = "miniature"  # motion modules: or a folder or a hub id
    clip_model: str = ""  # CLIPModel that scores; "": no CLIP scores
    numbers: Sequence[int] = (2, 3, 4)  # of sources
    rules: Sequence[str] = (RELEASED,)  # of weights
    kinds: Sequence[str] = ("several",)  # kinds of edit of sprite clips
    steps: int = 5  # diffusion steps each way


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """The single models, and fusions of the first 2, 3, 4 of `SOURCES` under each rule.

    `TWIN` fuses the first two, the second given twice with half its weight each. It makes the same
    edit at the price of three: only another model makes a difference.
    """
    fusions = {
        source_name(m, rule): (SOURCES[:m], rule)
        for rule in settings.rules
        for m in settings.numbers
    }
    fusions[TWIN] = ((*SOURCES[:2], SOURCES[1]), RELEASED)
    plans = {
        name: many_plan(sources, rule, settings.guidance, settings.motion)
        for name, (sources, rule) in fusions.items()
    }
    fused = {name: EditSetting(fusion=plan, **settings.sampling) for name, plan in plans.items()}
    return single_models(settings.motion, **settings.sampling) | fused


def many_plan(
    sources: Sequence[tuple[str, str, float]], weights: str = RELEASED, guidance: float = 2.0,
    motion: str = "miniature",
) -> Plan:  # fmt: skip
    """Plan a fusion of these sources.

    weights: "released", source 0 begins with 0.7 at half the steps and rises to 1, the others share
    the rest equally; "equal", 1/M for each from half the steps on.
    """
    m = len(sources)
    if weights == EQUAL:
        schedule = FusionSchedule("constant", (1 / m,) * m)
    else:
        schedule = FusionSchedule("decay_image", (0.7, *(0.3 / (m - 1),) * (m - 1)))
    kinds, attentions, scales = zip(*sources, strict=True)
    guidances = tuple(guidance * scale for scale in scales)
    return Plan(kinds, attentions, schedule, motion, guidances=guidances)


def source_name(m: int, rule: str) -> str:
    return f"{m} sources, {rule}"


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Edit every clip with every number of sources; resumes from the folder edits of `output`.

    Rows: those of `compare`, and flops, of the edit over an edit by the image model alone.
    """
    edits = edit_settings(settings)
    rows = settings.compare(edits, Path(output) / "edits")
    pipe = quiet_pipeline(settings.model, settings.dtype)
    flops = relative_costs(pipe, edits, settings.n_frames, settings.size, settings.steps)
    return save_rows(rows.assign(flops=rows.setting.map(flops)).to_dict("records"), output)


def relative_costs(
    pipe, edits: Mapping[str, EditSetting], n_frames: int, size: int, steps: int
) -> dict[str, float]:
    """FLOPs of an edit of each setting, inversions included, over those of the image model alone.

    Counted without weights. The search for anchors is left out: a hundredth of one forward. An edit
    that fuses nothing asks its source 0 alone.
    """
    side = size // pipe.vae_scale_factor
    fusions = {IMAGE: Fusion([Source(attention="own")] * 2, NEVER)}
    for name, plan in ((name, s.fusion) for name, s in edits.items() if s.fusion):
        fusions[name] = plan.fusion([
            replace(source, attention=meta_policy(source.attention, n_frames, side, side))
            for source in plan.built(pipe)
        ])  # fmt: skip
    rows = cost_rows(*weightless(pipe, fusions), [n_frames], size, steps)
    return relative({row["setting"]: row["tflop"] for row in rows}, IMAGE)


# --- table, claims, figure ----------------------------------------------------------------------


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per setting and metric: mean, interval within clips, and what the edit costs."""
    means = within_clips(rows, (*SHOWN, *PLACEMENT))
    return means.assign(flops=means.setting.map(rows.groupby("setting").flops.first()))


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Whether one more source gains on one fewer, by rule and metric; asserted are the facts."""
    hypotheses = [
        Hypothesis(f"{more} sources beat {few}, {rule} weights", line[more], line[few], (metric,))
        for metric in (*SHOWN, "clip_t", "jitter")
        for rule, line in _by_rule(rows).items()
        for few, more in zip(line, list(line)[1:], strict=False)
    ]  # fmt: skip
    return [*tested(rows, hypotheses), *_facts(rows)]


def _facts(rows: pd.DataFrame) -> list[Claim]:
    psnr = rows.pivot_table("psnr", ["kind", "index"], "setting")
    fused = [line[2] for line in _by_rule(rows).values() if 2 in line]
    flops = rows.groupby("setting").flops.first()
    facts = [Claim.of_fact("any number of sources edits every clip", "edits", len(rows),
                           psnr.notna().all(axis=None) and rows.psnr.notna().all())]  # fmt: skip
    if source_name(2, RELEASED) in psnr:
        by_clip = per_clip(rows, "psnr")
        off = (by_clip[TWIN] - by_clip[source_name(2, RELEASED)]).abs().max()
        facts.append(
            Claim.of_fact("a model given twice is that model", "dB apart", off, off < 0.05)
        )
    if fused:
        most = flops[fused].max() / (flops[IMAGE] + flops[VIDEO])
        facts.append(Claim.of_fact("two sources cost what they cost alone", "FLOPs over their sum",
                                   most, most <= 1.05))  # fmt: skip
    return facts


@drawn
def figure(rows: pd.DataFrame) -> Picture:
    """Quality by number of sources, a line per rule, intervals within clips; last, the costs."""
    metrics = [m for m in SHOWN if m in rows]
    means = within_clips(rows, metrics).set_index(["metric", "setting"])
    by_rule = _by_rule(rows)
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, 2.4))
        *axes, last = fig.subplots(1, len(metrics) + 1)
        for ax, metric in zip(axes, metrics, strict=True):
            ends = means.loc[metric][["mean", "low", "high"]] * METRICS[metric].factor
            _quality_panel(ax, ends, by_rule)
            ax.set(title=axis_title(metric, rows), xlabel="sources")
            end_at_100(ax, metric)
        names = {1: VIDEO} | next(iter(by_rule.values()))
        flops = rows.groupby("setting").flops.first()
        last.bar(list(names), flops[list(names.values())], color="#999999")
        last.set(title="FLOPs / image only", xlabel="sources", xticks=list(names))
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(handles, [f"{x} weights" if x in (RELEASED, EQUAL) else x for x in labels],
                   loc="outside lower center", ncols=4)  # fmt: skip
    return fig


def _quality_panel(ax: Axes, ends: pd.DataFrame, by_rule: Mapping[str, Mapping[int, str]]) -> None:
    """One dot and interval per setting; lines join the numbers of sources of one rule."""
    for i, (name, colour) in enumerate(((IMAGE, COLOURS[0]), (VIDEO, COLOURS[1]))):
        _dot(ax, 1 + 0.16 * (i - 0.5), ends.loc[name], colour, "sD"[i], name)
    for i, (rule, line) in enumerate(by_rule.items()):
        colour, marker = COLOURS[2 + i], "ov"[i]
        x = [m + 0.16 * (i - 0.5) for m in line]
        for at, name in zip(x, line.values(), strict=True):
            _dot(ax, at, ends.loc[name], colour, marker)
        ax.plot(x, ends.loc[list(line.values()), "mean"], color=colour, marker=marker, label=rule)
    ax.set_xticks(sorted({1, *line}))


def _dot(ax: Axes, x: float, ends: pd.Series, colour: str, marker: str, label: str | None = None):
    """A setting's mean and interval."""
    y_ends = ends.low, ends.high
    interval_mark(ax, x, ends["mean"], colour, y_ends=y_ends, marker=marker, label=label)


def _by_rule(rows: pd.DataFrame) -> dict[str, dict[int, str]]:
    """{rule: {number of sources: setting}} of the rows."""
    known = set(rows.setting)
    counts = range(2, len(SOURCES) + 1)
    lines = {
        rule: {m: name for m in counts if (name := source_name(m, rule)) in known}
        for rule in (RELEASED, EQUAL)
    }
    return {rule: line for rule, line in lines.items() if line}
