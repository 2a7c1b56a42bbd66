"""Rows of edits that no model made: settings with known means, for tables, figures and claims."""

import numpy as np
import pandas as pd

METRICS = ("psnr", "success", "warp_error", "clip_t", "clip_f", "jitter")


def planted_rows(levels: dict[str, dict], n: int = 12, kinds=("shape", "colour"), noise=0.0):
    """Rows of settings with these means; clips differ by far more than settings do."""
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        dict(setting=name, kind=kind, index=i, gain=1.0)
        | {m: level + 3.0 * i + noise * draw.normal() for m, level in means.items()}
        for name, means in levels.items() for kind in kinds for i in range(n)
    )  # fmt: skip


def plain(**changes) -> dict:
    """The mean 1 in every metric but those that change."""
    return dict.fromkeys(METRICS, 1.0) | changes


def failed(claims: list) -> list[str]:
    """Sentences of the asserted claims that the rows do not bear."""
    return [c.sentence for c in claims if c.is_asserted and c.verdict != "confirmed"]
