"""Choosing among fusions: what the best of many is worth on clips that it was not chosen on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from vala_research import InputError
from vala_research.evaluation.comparison import METRICS, per_clip
from vala_research.evaluation.fusion_study import NAMES, check_settings, judged, schedule_name
from vala_research.evaluation.statistics import Gain, paired_gain


def held_out_gain(
    values: pd.DataFrame, candidates: Sequence[str], baselines: Sequence[str]
) -> Gain:
    """What the best candidate gains on the best baseline, each chosen without the clip it is
    measured on, so that choosing the largest of many means earns nothing by itself.

    values: one row a clip, one column a setting, larger is better. Raises InputError for one clip.
    """
    check_settings(values, [*candidates, *baselines])
    if len(values) < 2:
        raise InputError("One clip leaves none to choose a setting on: give two or more.")
    others = (values.sum() - values) / (len(values) - 1)

    def chosen(names: Sequence[str]) -> np.ndarray:
        best = others[list(names)].to_numpy().argmax(1)
        return values[list(names)].to_numpy()[np.arange(len(values)), best]

    return paired_gain(chosen(candidates), chosen(baselines))


def held_out_table(
    rows: pd.DataFrame, metrics: Iterable[str], candidates: Sequence[str], baselines: Sequence[str]
) -> pd.DataFrame:
    """One row a metric: whether some mixture beats the better single model (`held_out_gain`)."""
    found = {m: METRICS[m] * per_clip(rows, m) for m in metrics if m in rows}
    gains = {m: held_out_gain(values, candidates, baselines) for m, values in found.items()}
    text = "a mixture beats the better single model"
    return pd.DataFrame([judged(text, metric, gain) for metric, gain in gains.items()])


def winners_table(
    rows: pd.DataFrame, metrics: Iterable[str], baseline: str = schedule_name("decay_image", 0.5)
) -> pd.DataFrame:
    """One row a kind of edit and metric: the best setting, and its paired gain on the baseline.

    best: the first of them, where `tied` settings share the best mean. p: two-sided, times the
    number of settings that the winner was chosen from (Bonferroni); the interval is not corrected.
    """
    table = []
    for metric in (m for m in metrics if m in rows):
        for kind in dict.fromkeys(rows.kind):
            values = METRICS[metric] * per_clip(rows[rows.kind == kind], metric)
            check_settings(values, (baseline,))
            best = values.mean().idxmax()
            tied = int(np.isclose(values.mean(), values[best].mean(), rtol=1e-9).sum())
            gain = paired_gain(values[best].to_numpy(), values[baseline].to_numpy())
            p = min(1.0, gain.p_value * (values.shape[1] - 1))
            table.append({"kind": kind, "metric": NAMES[metric], "best": best, "tied": tied,
                          "value": METRICS[metric] * values[best].mean(), "gain": gain.mean,
                          "low": gain.low, "high": gain.high, "p": p, "n": gain.n})  # fmt: skip
    return pd.DataFrame(table)


def per_kind_table(rows: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Whether it pays to choose a schedule for each kind of edit rather than one for all.

    Both are chosen on the other clips; the gain on a clip is the mean over its kinds.
    """
    table = []
    for metric in (m for m in metrics if m in rows):
        values = METRICS[metric] * rows.pivot_table(metric, "index", ["kind", "setting"])
        gain = _gain_of_choosing(values)
        table.append(judged("a schedule for each kind of edit beats one for all", metric, gain))
    return pd.DataFrame(table)


def _gain_of_choosing(values: pd.DataFrame) -> Gain:
    """values: one row a clip, columns (kind, setting); clips with every kind count."""
    values = values.dropna()
    if len(values) < 2:
        raise InputError("One clip leaves none to choose a setting on: give two or more.")
    kinds = list(dict.fromkeys(values.columns.get_level_values(0)))
    each = np.stack([values[kind].to_numpy() for kind in kinds])  # kind clip setting
    others = (each.sum(1, keepdims=True) - each) / (each.shape[1] - 1)
    own = np.take_along_axis(each, others.argmax(2)[..., None], 2)[..., 0].mean(0)
    shared = np.take_along_axis(each.mean(0), others.mean(0).argmax(1)[:, None], 1)[:, 0]
    return paired_gain(own, shared)
