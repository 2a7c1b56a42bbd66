"""VALA's anchors and key frames beside the attention policies of the field (notebook 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vala_research import chosen_from
from vala_research.diffusion.attention import Keyframes
from vala_research.evaluation.benchmark import EditSetting
from vala_research.evaluation.comparison import comparison_table, gain_of, per_clip
from vala_research.evaluation.comparison_figures import gains_figure
from vala_research.evaluation.flops import forward_flops, meta_policy, meta_unet
from vala_research.evaluation.statistics import paired_gain
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import CLIP, PUBLISHED, EditPreset
from vala_research.methods.anchors import AnchorSettings
from vala_research.sprites.edits import EDITS


@dataclass(frozen=True, kw_only=True)
class Settings(EditPreset):
    """Parameters of notebook 12."""

    PRESETS = {
        "smoke": {"policies_shown": ("own", "extended", "uniform {n} key frames",
                                     "VALA {n} site anchors"), "steps": 5},
        "sprites": {"n_clips": 66, "n_frames": 6, "steps": 15, "kinds": tuple(EDITS),
                    "n_processes": 0},
        "paper": {**PUBLISHED, "clip_model": CLIP, "n_processes": 0},
    }  # fmt: skip

    kinds: Sequence[str] = ("several",)  # kinds of edit of sprite clips
    steps: int = 10  # diffusion steps each way
    policies_shown: Sequence[str] = ()  # names of policies; {n} is n_anchors; (): all
    n_anchors: int = 2  # frames or site anchors that a frame attends to besides itself
    n_tokens: int = 256  # token anchors


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """The attention policies of the field beside VALA's, by name.

    Raises InputError for a name in `policies_shown` that is none of them.
    """
    n, n_tokens = settings.n_anchors, settings.n_tokens
    policies = {
        "own": "own",
        "first": "first",
        "sparse_causal": "sparse_causal",
        "extended": "extended",
        f"uniform {n} key frames": Keyframes("uniform", n),
        f"random {n} key frames": Keyframes("random", n),
        f"k-means {n} key frames": Keyframes("kmeans", n),
        f"VALA {n} key frames": Keyframes("vala", n),
        f"VALA {n} site anchors": AnchorSettings(n_anchors=n, granularity="site"),
        f"VALA {2 * n} site anchors": AnchorSettings(n_anchors=2 * n, granularity="site"),
        f"VALA {n_tokens} token anchors": AnchorSettings(n_anchors=n_tokens, granularity="token"),
    }
    names = [name.replace("{n}", str(n)) for name in settings.policies_shown] or list(policies)
    for name in names:
        chosen_from("policy", name, policies)
    return {name: EditSetting(attention=policies[name], **settings.sampling) for name in names}


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """One row per policy, kind of edit and clip, and the cost of the policy; resumes from `output`.

    cost: as `relative_costs`; it depends on the policy alone, so rows.csv leaves it out.
    """
    policies = edit_settings(settings)
    rows = settings.compare(policies, output)
    return rows.assign(cost=rows.setting.map(relative_costs(policies)))


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """`comparison_table` against editing frame by frame, and the cost of each policy."""
    compared = comparison_table(rows, "own")
    return compared.assign(cost=compared.setting.map(_costs(rows)))


def figure(rows: pd.DataFrame) -> Figure:
    """What each policy gains on editing frame by frame, its cost beside its name."""
    return gains_figure(table(rows), _costs(rows))


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Site anchors against frame by frame: E_warp and jitter fall, attribute success does not.

    The policy with the fewest site anchors is judged; where none is shown, no claim is made.
    """
    warp = per_clip(rows, "warp_error")
    anchored = [name for name in warp if name.endswith("site anchors")]
    if not anchored:
        return []
    best = min(anchored, key=lambda name: int(name.split()[1]))
    less = paired_gain(warp["own"].to_numpy(), warp[best].to_numpy())
    claims = [
        Claim.of_gain(f"{best} lower E_warp", "E_warp, reduction", less),
        Claim.of_fact(f"{best} lower E_warp on average over these clips", "E_warp, reduction",
                      less.mean, less.mean > 0, n_clips=less.n),
    ]  # fmt: skip

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
    if "jitter" in rows:
        steadier = gain_of(rows, "jitter", best, "own", sign=-1)
        claims.append(Claim.of_gain(f"{best} lower jitter", "jitter, reduction", steadier))
    return claims


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
