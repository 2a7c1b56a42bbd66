"""Latents of two models can be mixed when they mean the same: measured, and broken on purpose.

FLDM (arXiv 2310.16400) assumes that its models share one latent space and does not measure it. Here
are the cosine between the models' latents of the same frames, along the inversion and along their
edits, and models of another space of the same shape: its channels are rotated, or nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from torch import Tensor

from vala_research.diffusion.schedule import Schedule
from vala_research.editing.fusion import Fusion
from vala_research.editing.plan import Plan, inverted_sources
from vala_research.editing.source import Source
from vala_research.evaluation.benchmark import EditSetting, edited_frames
from vala_research.evaluation.cases import ClipCase, EditCase
from vala_research.evaluation.comparison_figures import axis_title, within_clips
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.evaluation.statistics import paired_gain, summarise
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.fldm.foreign_space import OTHER_CLIP, SAME, UNTRAINED, ForeignPlan
from vala_research.experiments.fldm.settings import VIDEO, single_models
from vala_research.methods.fusion import FusionSchedule, match_moments

INVERSION, EDIT = "inversion", "edit"
NORMALISED = ", normalised"


def compatibility_settings(
    plans: Mapping[str, ForeignPlan], motion: str = "miniature", **common
) -> dict[str, EditSetting]:
    """Each plan with and without matched moments, and the video model alone."""
    fused = {
        name + suffix: EditSetting(fusion=replace(plan, normalise=bool(suffix)), **common)
        for name, plan in plans.items()
        for suffix in ("", NORMALISED)
    }
    return {VIDEO: single_models(motion, **common)[VIDEO]} | fused


# Cosines.


def latent_cosines(
    ours: Float[Tensor, "f c h w"], theirs: Float[Tensor, "f c h w"]
) -> dict[str, float]:
    """Mean over frames of the cosine between latents of the same frame, in [-1, 1].

    raw: as they are; centred: without each channel's mean over the clip; matched and
    matched_centred: after theirs were given our moments, as `fuse(..., normalise=True)` does.
    distance: |theirs - ours| / |ours|, over the clip; matched_distance likewise.
    """
    found = {}
    for name, z in (("", theirs), ("matched_", match_moments(theirs, ours))):
        found[f"{name}raw"] = _cosine(ours, z)
        found[f"{name}centred"] = _cosine(_centred(ours), _centred(z))
        found[f"{name}distance"] = ((z - ours).norm() / ours.norm()).item()
    found["matched"] = found.pop("matched_raw")
    return found


def _cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.flatten(1), b.flatten(1)).mean().item()


def _centred(z: Tensor) -> Tensor:
    return z - z.mean((0, 2, 3), keepdim=True)


Paths = dict[str, dict[str, list[Tensor]]]  # phase -> source -> latents, noisiest first


@torch.no_grad()
def source_paths(
    pipe, sources: Mapping[str, Source], case: EditCase | ClipCase, n_frames: int, size: int,
    steps: int, guidance: float,
) -> Paths:  # fmt: skip
    """Every source's latents at every level of its own inversion and of its own edit."""
    frames = case.material(n_frames, size).frames
    found, _ = inverted_sources(pipe, list(sources.values()), frames, case.source_prompt, steps)
    paths: Paths = {INVERSION: {}, EDIT: {}}
    for name, source in zip(sources, found, strict=True):
        paths[INVERSION][name] = list(source.latents.trajectory)
        edit = paths[EDIT][name] = [source.latents.latents]

        def note(_pipe, _i, _t, tensors: dict, edit: list[Tensor] = edit) -> None:
            edit.append(tensors["latents"])

        pipe(
            frames, case.prompt, case.source_prompt, num_inference_steps=steps,
            guidance_scale=guidance, fusion=Fusion([source] * 2, FusionSchedule(tau=1.0)),
            output_type="latent", callback_on_step_end=note,
        )  # fmt: skip
    return paths


def cosine_rows(
    pipe, cases: Sequence[EditCase | ClipCase], plans: Mapping[str, Plan], n_frames: int = 8,
    size: int = 64, steps: int = 15, guidance: float = 2.0,
) -> pd.DataFrame:  # fmt: skip
    """Cosines of each plan's last source to the first plan's source 0: a row a clip, phase, level.

    Of several edits of a clip the last one counts. t: the diffusion step of the level, 0 being the
    clean end. With two or more clips "another clip" is the first plan's last source on the next
    clip: what latents share that have only their level in common.
    """
    cases = list({case.index: case for case in cases}.values())
    first, *_ = plans.values()
    sources = {VIDEO: first.built(pipe)[0]}
    sources |= {name: plan.built(pipe)[-1] for name, plan in plans.items()}
    known = [source_paths(pipe, sources, c, n_frames, size, steps, guidance) for c in cases]
    times = [*Schedule.from_scheduler(pipe.scheduler, steps).timesteps, 0]
    rows, control = [], next(iter(plans))
    for i, (case, paths) in enumerate(zip(cases, known, strict=True)):
        for phase, found in paths.items():
            theirs = {name: found[name] for name in plans}
            if len(cases) > 1:
                theirs[OTHER_CLIP] = known[(i + 1) % len(cases)][phase][control]
            rows += [
                {"index": case.index, "phase": phase, "t": t, "source": name}
                | latent_cosines(found[VIDEO][level], path[level])
                for name, path in theirs.items()
                for level, t in enumerate(times)
            ]
    return pd.DataFrame(rows)


# What the rows say.


def compatibility_claims(
    cosines: pd.DataFrame, rows: pd.DataFrame, foreign: Iterable[str] = (), metric: str = "psnr"
) -> list[Claim]:
    """Verdicts on the seed's assumption, its break condition, and its proposal to normalise.

    foreign: names of the plans that live elsewhere. metric: of the rows, larger being better.
    """
    psnr = rows.pivot_table(metric, "index", "setting")
    alike = cosines[cosines.phase == EDIT].pivot_table("centred", "index", "source")
    claims = []
    if OTHER_CLIP in alike:
        text = "latents of the same frames agree more than those of other clips"
        claims.append((text, "cosine", alike[SAME], alike[OTHER_CLIP]))
    text = "normalising gains in the same space"
    claims.append((text, metric, psnr[SAME + NORMALISED], psnr[SAME]))
    for name in foreign:
        claims.append((f"{name} is worse than the same space", metric, psnr[SAME], psnr[name]))
        text = f"normalising gains for {name}"
        claims.append((text, metric, psnr[name + NORMALISED], psnr[name]))
        text = f"{name}, normalised, is still worse than the same space"
        claims.append((text, metric, psnr[SAME], psnr[name + NORMALISED]))
    return [
        Claim.of_gain(text, name, paired_gain(better.to_numpy(), than.to_numpy()))
        for text, name, better, than in claims
    ]


def compared_frames(
    pipe, case: EditCase | ClipCase, settings: Mapping[str, EditSetting], n_frames: int, size: int
) -> dict[str, Float[Tensor, "f c h w"]]:
    """The edited clip of every setting, and the source and true edit where known, for a strip."""
    material = case.material(n_frames, size)
    known = {"source": material.frames}
    known |= {} if material.truth is None else {"true edit": material.truth}
    edits = edited_frames(pipe, case, dict(settings), n_frames, size)
    return known | {name.replace(", ", ",\n"): frames for name, frames in edits.items()}


PHASES = {INVERSION: "inversion of each model alone", EDIT: "edit of each model alone"}
LINES = {SAME: (COLOURS[0], "-"), UNTRAINED: (COLOURS[6], "-"), OTHER_CLIP: ("#888888", ":")}


# --- one latent space ---------------------------------------------------------------------------


def compatibility_figure(
    cosines: pd.DataFrame, rows: pd.DataFrame, measure: str = "centred", metric: str = "psnr"
) -> Picture:
    """The cosine of each source to the video model over t, and what its fusion is worth.

    cosines: of `cosine_rows`, of which `measure` is drawn; rows: of `compare`, under the names of
    `compatibility_settings`. Intervals of the right panel are within clips.
    """
    with rc_context(STYLE):
        fig = Picture(figsize=(7.2, 2.7))
        left, middle, right = fig.subplots(1, 3, width_ratios=(1, 1, 1.15))
        middle.sharey(left)
        rest = iter((COLOURS[5], COLOURS[3], COLOURS[4], *COLOURS[1:3]))
        looks = {n: LINES.get(n) or (next(rest), "-") for n in dict.fromkeys(cosines.source)}
        for ax, (phase, title) in zip((left, middle), PHASES.items(), strict=True):
            part = cosines[cosines.phase == phase]
            for name, (colour, line) in looks.items():
                _band(ax, part[part.source == name], measure, colour, line, name)
            ax.set(title=title, xlabel="diffusion step t")
        left.set_ylabel("cosine to the video model")
        fig.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3,
                   title=f"image model ({measure} latents):")  # fmt: skip
        _spaces(right, rows, metric)
        handles, labels = right.get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower right", ncols=1)
    return fig


def _band(ax: Axes, part: pd.DataFrame, measure: str, colour: str, line: str, name: str) -> None:
    """Mean over clips at each t, and its interval."""
    levels = {t: summarise(p.groupby("index")[measure].mean().to_numpy())
              for t, p in part.groupby("t")}  # fmt: skip
    t = list(levels)
    ax.plot(t, [s.mean for s in levels.values()], color=colour, linestyle=line, label=name)
    low, high = ([getattr(s, end) for s in levels.values()] for end in ("low", "high"))
    ax.fill_between(t, low, high, color=colour, alpha=0.2, linewidth=0)


def _spaces(ax: Axes, rows: pd.DataFrame, metric: str) -> None:
    """Fused quality of each space, as it is and normalised, and the video model alone."""
    table = within_clips(rows, [metric]).set_index("setting")
    names = [n for n in table.index if n != VIDEO and not n.endswith(NORMALISED)]
    colour = COLOURS[2]
    for suffix, face, shift in (("", colour, -0.1), (NORMALISED, "white", 0.1)):
        for x, name in enumerate(names):
            row = table.loc[name + suffix]
            ax.plot([x + shift] * 2, [row.low, row.high], color=colour, linewidth=1)
            label = f"fused{suffix}" if x == 0 else None
            ax.plot(x + shift, row["mean"], "o", color=colour, markerfacecolor=face, label=label)
    ax.axhline(table.loc[VIDEO]["mean"], color=COLOURS[1], linestyle="--", label=VIDEO)
    labels = [n.replace("rotated by ", "").replace(SAME, "0") for n in names]
    labels = [f"{label}°" if label.isdigit() else label for label in labels]
    ax.set_xticks(range(len(names)), labels)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set(title=axis_title(metric, rows), xlabel="rotation of the image model's space")
