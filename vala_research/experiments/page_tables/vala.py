"""Tables of VALA: anchors, inversions, attention policies and key frames."""

from __future__ import annotations

from dataclasses import replace

from vala_research.experiments.page_cells import Column, Line, PageTable, Plain, PlainTable
from vala_research.experiments.page_tables.columns import (
    JITTER,
    PATH,
    PSNR,
    RIGHT,
    STEADINESS,
    WARP,
    gain,
    lines,
)
from vala_research.experiments.vala.attention_cost import CURVES
from vala_research.sprites.motions import MOTIONS


def in_each_motion(first: str | tuple[str, str], *others: str | tuple[str, str]) -> list[Line]:
    """Such lines for each motion, of the other settings on the first one."""
    (own,) = lines(first)
    return [
        replace(line, label=f"{motion}: {line.label}", where={"motion": motion})
        for motion in MOTIONS
        for line in (own, *lines(*others, baseline=own.setting))
    ]


POLICIES = lines(
    ("first", "`first` frame, instead of itself"),
    ("sparse_causal", "first and previous, instead (`sparse_causal`)"),
    ("extended", "every frame (`extended`)"), "uniform 2 key frames", "random 2 key frames",
    "k-means 2 key frames", "VALA 2 key frames", ("VALA 2 site anchors", "**VALA 2 site anchors**"),
    "VALA 2 site anchors, contrastive", "VALA 2 site anchors, refined", "VALA 4 site anchors",
    "VALA 256 token anchors", baseline="own",
)  # fmt: skip

MOVING = in_each_motion(
    ("own", "nothing (`own`)"), ("extended", "every frame (`extended`)"), "uniform 2 key frames",
    "VALA 2 key frames", "VALA 2 site anchors", "VALA 4 site anchors",
)  # fmt: skip
CHOICES = in_each_motion(
    ("random key frames", "random at every step"),
    ("random key frames, drawn once", "random, drawn once"), ("uniform key frames", "uniform"),
    ("k-means key frames", "k-means"), ("VALA key frames", "**VALA**"),
    ("VALA key frames, drawn anew", "**VALA, drawn at every step**"),
    ("frame by frame", "none: frame by frame"),
)  # fmt: skip

CHOOSERS = {
    "optimal": "trying all sets", "kmedoids": "k-medoids", "vala": "**VALA**",
    "uniform": "even spacing", "kmeans": "k-means", "random": "chance",
}  # fmt: skip
KEY_FRAMES = {
    words: f"panel == 'key frames' and method == '{method}'" for method, words in CHOOSERS.items()
}
INVERSIONS = {
    f"{words}, {n} steps": f"method == '{method}' and attention == 'own' and steps == {n}"
    for method, words in (("ddim", "DDIM"), ("exact, quick", "exact, quick setting"),
                          ("exact", "exact"))
    for n in (10, 25, 50)
}  # fmt: skip
GUIDED = {
    words: f"method == '{method}'"
    for method, words in (("ddim, guided", "DDIM"), ("null text, guided", "DDIM and null text"))
}
RECONSTRUCTION = (
    Plain("reconstruction, dB: mean", "to_vae", 1), Plain("worst clip", "to_vae", 1, how="min"),
)  # fmt: skip
COSTS = {
    words: f"part in ('policies', 'curves') and policy == '{policy}'"
    for policy, words in CURVES.items()
}

TABLES = {
    "key frames of anchors": PlainTable(
        "10_vala_anchors", "key frames by", KEY_FRAMES,
        [Plain("1000 D(S)", "1000 * distortion"),
         Plain("above the best set, %: median", "100 * excess", 1, how="median"),
         Plain("mean", "100 * excess", 1), Plain("worst clip", "100 * excess", 1, how="max")],
    ),
    "inversions": PlainTable(
        "11_vala_inversion_fidelity", "inversion", INVERSIONS,
        [Plain("evaluations", "evaluations", 0), *RECONSTRUCTION],
    ),
    "guided inversions": PlainTable(
        "11_vala_inversion_fidelity_guided", "guidance 2, 10 steps", GUIDED,
        [Plain("evaluations", "evaluations", 0), Plain("backward passes", "backward", 0),
         *RECONSTRUCTION],
    ),
    "costs of policies": PlainTable(
        "13_vala_efficiency", "a frame attends to", COSTS,
        [Plain(f"{n} frames", "ratio", where=f"frames == {n}") for n in (8, 32, 128)],
    ),
    "attention policies": PageTable(
        "12_vala_editing_quality", "attends to, besides itself",
        [Line("nothing (`own`)", "own"), *POLICIES],
        [Column("cost", "cost"), WARP, gain("reduced by", "warp_error"), JITTER,
         gain("reduced by", "jitter"), PSNR, gain("gain", "psnr"), PATH, RIGHT],
    ),
    "attention policies, bare": PageTable(
        "12_vala_editing_quality_bare", "attends to, besides itself",
        [Line("nothing (`own`)", "own"), *lines(
            ("extended", "every frame (`extended`)"), "uniform 2 key frames",
            ("VALA 2 site anchors", "**VALA 2 site anchors**"), "VALA 256 token anchors",
            baseline="own")],
        [Column("cost", "cost"), *STEADINESS],
    ),
    "attention policies, long": PageTable(
        "12_vala_editing_quality_long", "motion: attends to, besides itself", MOVING,
        STEADINESS,
    ),
    "key frames": PageTable(
        "14_vala_key_frames_in_token_flow", "motion: key frames", CHOICES,
        [WARP, gain("reduced by", "warp_error"), JITTER, gain("reduced by", "jitter"), PSNR,
         gain("gain", "psnr"), RIGHT],
    ),
}  # fmt: skip
