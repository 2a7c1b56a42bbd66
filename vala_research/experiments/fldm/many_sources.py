"""More than two models fuse by the same sum: does another source make a better edit?

FLDM (arXiv 2310.16400) says that any two or more models of one latent space can be fused, and shows
two. Sources are added one by one, under two rules for their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from matplotlib import rc_context

from vala_research.diffusion.attention import ANCHORS, AnchorAttention
from vala_research.editing.fusion import Fusion
from vala_research.editing.plan import Plan
from vala_research.editing.source import Source
from vala_research.evaluation.benchmark import EditSetting
from vala_research.evaluation.comparison import METRICS
from vala_research.evaluation.comparison_figures import axis_title, within_clips
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.evaluation.flops import meta_anchors, weightless
from vala_research.evaluation.verdicts import Hypothesis, claims_table
from vala_research.experiments.fldm.cost import cost_rows
from vala_research.experiments.fldm.settings import IMAGE, NEVER, VIDEO, single_models
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


def many_plan(
    sources: Sequence[tuple[str, str, float]], weights: str = RELEASED, guidance: float = 2.0,
    motion: str = "miniature",
) -> Plan:  # fmt: skip
    """A fusion of these sources.

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


def source_settings(
    motion: str = "miniature",
    numbers: Sequence[int] = (2, 3, 4),
    rules: Sequence[str] = (RELEASED, EQUAL),
    has_twin: bool = True,
    guidance_scale: float = 2.0,
    **common,
) -> dict[str, EditSetting]:
    """The single models, and fusions of the first 2, 3, 4 of `SOURCES` under each rule.

    has_twin: also the first two, the second given twice with half its weight each: the same fusion
    at the price of three, which shows that nothing but another model makes a difference.
    """
    given = dict(guidance_scale=guidance_scale, **common)
    chosen = {source_name(m, rule): (SOURCES[:m], rule) for rule in rules for m in numbers}
    if has_twin:
        chosen[TWIN] = ((*SOURCES[:2], SOURCES[1]), RELEASED)
    plans = {
        name: many_plan(sources, rule, guidance_scale, motion)
        for name, (sources, rule) in chosen.items()
    }
    fused = {name: EditSetting(fusion=plan, **given) for name, plan in plans.items()}
    return single_models(motion, **given) | fused


def source_name(m: int, rule: str) -> str:
    return f"{m} sources, {rule}"


def source_claims(
    rows: pd.DataFrame, numbers: Sequence[int] = (2, 3, 4), rules: Sequence[str] = (RELEASED, EQUAL)
) -> pd.DataFrame:
    """Verdicts on whether one more source gains on one fewer, under each rule and metric."""
    claims = [
        Hypothesis(f"{more} sources beat {few}, {rule} weights", source_name(more, rule),
              source_name(few, rule), (metric,))
        for metric in ("psnr", "success", "warp_error", "clip_t")
        for rule in rules
        for few, more in zip(numbers, numbers[1:], strict=False)
    ]  # fmt: skip
    return claims_table(rows, claims)


def sources_figure(
    rows: pd.DataFrame,
    costs: Mapping[str, float],
    metrics: Sequence[str] = ("psnr", "success", "warp_error"),
) -> Picture:
    """Quality against the number of sources, a line a rule; last, what each number costs.

    costs: FLOPs of each setting over those of the image model alone. Intervals within clips.
    """
    metrics = [m for m in metrics if m in rows]
    table = within_clips(rows, metrics).set_index(["metric", "setting"])
    with rc_context(STYLE):
        fig = Picture(figsize=(2.1 * (len(metrics) + 1), 2.5))
        axes = fig.subplots(1, len(metrics) + 1)
        for ax, metric in zip(axes, metrics, strict=False):
            for i, (name, colour) in enumerate(((IMAGE, COLOURS[0]), (VIDEO, COLOURS[1]))):
                _dot(ax, 1 + 0.16 * (i - 0.5), table, metric, name, colour, "sD"[i])
            for i, (rule, line) in enumerate(_by_rule(rows).items()):
                x = {m: m + 0.16 * (i - 0.5) for m in line}
                for m, name in line.items():
                    _dot(ax, x[m], table, metric, name, COLOURS[2 + i], "ov"[i])
                means = [
                    METRICS[metric].factor * table.loc[metric, name]["mean"] for name in line.values()
                ]
                ax.plot(list(x.values()), means, color=COLOURS[2 + i], marker="ov"[i], label=rule)
            ax.set(title=axis_title(metric, rows), xlabel="sources", xticks=sorted({1, *line}))
        numbers = next(iter(_by_rule(rows).values()))
        names = {1: VIDEO} | numbers
        axes[-1].bar(list(names), [costs[name] for name in names.values()], color="#999999")
        axes[-1].set(title="FLOPs of an edit / image only", xlabel="sources", xticks=list(names))
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(handles, [f"{x} weights" if x in (RELEASED, EQUAL) else x for x in labels],
                   loc="outside lower center", ncols=4)  # fmt: skip
    return fig


def _by_rule(rows: pd.DataFrame) -> dict[str, dict[int, str]]:
    """{rule: {number of sources: setting}} of the rows."""
    known, found = set(rows.setting), {}
    for rule in (RELEASED, EQUAL):
        line = {m: source_name(m, rule) for m in range(2, len(SOURCES) + 1)}
        if line := {m: name for m, name in line.items() if name in known}:
            found[rule] = line
    return found


def _dot(ax, x: float, table: pd.DataFrame, metric: str, name: str, colour: str, marker: str):
    """A setting's mean and interval."""
    row, factor = table.loc[metric, name], METRICS[metric].factor
    ax.plot([x, x], [factor * row.low, factor * row.high], color=colour, linewidth=1)
    label = name if name in (IMAGE, VIDEO) else None
    ax.plot(x, factor * row["mean"], marker, color=colour, label=label, linestyle="none")


def relative_costs(
    pipe, settings: Mapping[str, EditSetting], n_frames: int, size: int, steps: int
) -> dict[str, float]:
    """FLOPs of an edit of each setting, inversions included, over those of the image model alone.

    Counted without weights (`fusion_costs`), and without the search for anchors, a hundredth of one
    forward. An edit that fuses nothing asks its source 0 alone.
    """
    side = size // pipe.vae_scale_factor
    anchors = meta_anchors(n_frames, side**2, ANCHORS.n_anchors, ANCHORS.granularity)
    attention = {"anchors": AnchorAttention(anchors, (side, side))}
    fusions = {IMAGE: Fusion([Source(attention="own")] * 2, NEVER)}
    for name, plan in ((name, s.fusion) for name, s in settings.items() if s.fusion):
        sources = [replace(s, attention=attention.get(s.attention, s.attention))
                   for s in plan.built(pipe)]  # fmt: skip
        fusions[name] = plan.fusion(sources)
    rows = cost_rows(*weightless(pipe, fusions), [n_frames], size, steps)
    tflop = {row["setting"]: row["tflop"] for row in rows}
    return {name: value / tflop[IMAGE] for name, value in tflop.items()}
