"""VALA's anchors and key frames beside the attention policies of the field (notebook 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vala_research import chosen_from
from vala_research.diffusion.attention import Keyframes
from vala_research.evaluation.comparison_figures import gains_figure
from vala_research.evaluation.comparison_tables import METRICS, comparison_table, gain_of, per_clip
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import drawn
from vala_research.evaluation.flops import forward_flops, meta_policy, meta_unet
from vala_research.evaluation.statistics import paired_gain
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import CLIP, POINT, PUBLISHED
from vala_research.experiments.parameters import elements
from vala_research.experiments.vala.motion_preset import MotionPreset, by_motion, motions_of
from vala_research.methods.anchors import AnchorSettings

REFINEMENT_STEPS = 30  # of Adam, where an assignment is refined
REFINED = {", contrastive": "The contrastive term", ", refined": "The refinement network alone"}


@dataclass(frozen=True, kw_only=True)
class Settings(MotionPreset):
    """Parameters of notebook 12."""

    PRESETS = {
        "smoke": {"policies_shown": ("own", "extended", "uniform {n} key frames",
                                     "VALA {n} site anchors"), "n_clips": 1, "steps": 3},
        "sprites": POINT | {"n_clips": 12, "kinds": ("shape", "colour", "several")},
        "paper": {**PUBLISHED, "clip_model": CLIP, "n_processes": 0},
    }  # fmt: skip

    kinds: Sequence[str] = ("several",)  # kinds of edit of sprite clips
    steps: int = 10  # diffusion steps each way
    policies_shown: Sequence[str] = ()  # names of policies; {n} is n_anchors; (): all
    n_anchors: int = 2  # frames or site anchors that a frame attends to besides itself
    n_tokens: int = 256  # token anchors


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """The attention policies of the field beside VALA's, by name.

    "contrastive": the assignment is refined with the default weight of the contrastive term.
    "refined": with weight 0, where the posterior is best already.
    Raises InputError for a name in `policies_shown` that is none of them.
    """
    n, n_tokens = settings.n_anchors, settings.n_tokens
    site = AnchorSettings(n_anchors=n, granularity="site")
    contrastive = replace(site, refinement_steps=REFINEMENT_STEPS)
    policies = {
        "own": "own",
        "first": "first",
        "sparse_causal": "sparse_causal",
        "extended": "extended",
        f"uniform {n} key frames": Keyframes("uniform", n),
        f"random {n} key frames": Keyframes("random", n),
        f"k-means {n} key frames": Keyframes("kmeans", n),
        f"VALA {n} key frames": Keyframes("vala", n),
        f"VALA {n} site anchors": site,
        f"VALA {n} site anchors, contrastive": contrastive,
        f"VALA {n} site anchors, refined": replace(contrastive, contrastive_weight=0.0),
        f"VALA {2 * n} site anchors": replace(site, n_anchors=2 * n),
        f"VALA {n_tokens} token anchors": AnchorSettings(n_anchors=n_tokens, granularity="token"),
    }
    # Names that hold commas were taken apart.
    shown = ", ".join(settings.policies_shown).replace("{n}", str(n))
    names = elements(shown, policies) or list(policies)
    for name in names:
        chosen_from("policy", name, policies)
    return {name: EditSetting(attention=policies[name], **settings.sampling) for name in names}


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """One row per policy, motion, kind of edit and clip, with the cost; resumes from `output`.

    motion: of sprite clips; empty in rows.csv where it is the usual one. cost: as
    `relative_costs`; it depends on the policy alone, so rows.csv leaves it out.
    """
    policies = edit_settings(settings)
    rows = settings.compare(policies, output)
    costs = rows.setting.map(relative_costs(policies))
    return rows.assign(motion=motions_of(rows, settings), cost=costs)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """`comparison_table` against editing frame by frame per motion, and the cost of each policy."""
    tables = [
        comparison_table(part, "own").assign(motion=motion)
        for motion, part in by_motion(rows).items()
    ]
    compared = pd.concat(tables, ignore_index=True)
    return compared.assign(cost=compared.setting.map(_costs(rows)))


@drawn
def figure(rows: pd.DataFrame) -> Figure:
    """What each policy gains on editing frame by frame, its cost beside its name."""
    gains, costs = table(rows), _costs(rows)
    if gains.motion.nunique() > 1:
        named = gains.setting + ", " + gains.motion
        costs = dict(zip(named, gains.cost, strict=True))
        gains["setting"] = gains.setting.where(gains.setting == "own", named)
    return gains_figure(gains, costs)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Site anchors against frame by frame: E_warp and jitter fall, attribute success does not.

    The policy with the fewest site anchors is judged; where none is shown, no claim is made. Where
    the jitter is known, the anchors are compared in it and in PSNR, per motion, with frame by
    frame, with attention to all frames and with as many key frames. Then the contrastive term and
    the refinement network are compared with plain variational Bayes. All of these are reported.
    Asserted: every policy comes nearer to the true edit than the source.
    """
    warp = per_clip(rows, "warp_error")
    anchored = [name for name in warp if name.endswith("site anchors")]
    if not anchored:
        return []
    best = min(anchored, key=lambda name: int(name.split()[1]))
    less = paired_gain(warp["own"].to_numpy(), warp[best].to_numpy())
    claims = [Claim.of_gain(f"{best} lower E_warp", "E_warp, reduction", less)]

    # Only in the sprite world is the true edit known.
    if "gain" in rows:
        nearer = float(per_clip(rows, "gain").mean().min())
        success = per_clip(rows, "success")
        more = paired_gain(success[best].to_numpy(), success["own"].to_numpy())
        claims += [
            Claim.of_fact("Every policy comes nearer to the true edit than the source",
                          "least mean gain, dB", nearer, nearer > 0, n_clips=len(success)),
            Claim.of_limit(f"{best} do not lower attribute success", "success, gain", more),
        ]  # fmt: skip
    return claims + _placement_claims(rows, best) + _refinement_claims(rows)


def _placement_claims(rows: pd.DataFrame, best: str) -> list[Claim]:
    """Where the jitter is known: `best` against the field, in PSNR and jitter, per motion."""
    parts = by_motion(rows) if "jitter" in rows else {}
    uniform = [name for name in rows.setting.unique() if name.startswith("uniform")]
    return [
        _gain_claim(f"{best} beat {than}", part, metric, best, than, motion * (len(parts) > 1))
        for motion, part in parts.items()
        for than in ("extended", *uniform, "own")
        if than in set(part.setting)
        for metric in ("psnr", "jitter")
        if metric in part
    ]


def _refinement_claims(rows: pd.DataFrame) -> list[Claim]:
    """The contrastive term and the refinement network against plain variational Bayes."""
    steadiness = "jitter" if "jitter" in rows else "warp_error"
    metrics = ["psnr", steadiness] if {"gain", "psnr"} <= set(rows) else [steadiness]
    names = set(rows.setting)
    return [
        _gain_claim(f"{what} beats plain variational Bayes", rows, metric, name, plain)
        for suffix, what in REFINED.items()
        for name in sorted(names)
        if name.endswith(suffix) and (plain := name.removesuffix(suffix)) in names
        for metric in metrics
    ]


def _gain_claim(
    sentence: str, rows: pd.DataFrame, metric: str, better: str, than: str, motion: str = ""
) -> Claim:
    """The claim that a setting beats another in a metric; motion: of these rows, if named."""
    shown = METRICS[metric]
    gain = gain_of(rows, metric, better, than, shown.sign)
    measured = f"{shown.name}, {'gain' if shown.sign > 0 else 'reduction'}"
    where = f" ({motion})" if motion else ""
    return Claim.of_gain(f"{sentence} in {shown.name}{where}", measured, gain)


def relative_costs(
    settings: Mapping[str, EditSetting], n_frames: int = 32, height: int = 64, width: int = 64
) -> dict[str, float]:
    """Count FLOPs of one Stable Diffusion 1.5 forward of the clip, relative to frame by frame.

    The count needs no weights (`evaluation.flops`). height, width: of the latents; 64 is 512
    pixels.
    """
    unet, shape = meta_unet(), (n_frames, height, width)
    own = forward_flops(unet, "own", *shape)
    return {
        name: forward_flops(unet, meta_policy(s.attention, *shape), *shape) / own
        for name, s in settings.items()
    }


def _costs(rows: pd.DataFrame) -> dict[str, float]:
    return dict(zip(rows.setting, rows.cost, strict=True))
