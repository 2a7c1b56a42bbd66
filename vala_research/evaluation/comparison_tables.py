"""Metrics of edits by name, and tables of compared settings: means and gains, paired by clip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from vala_research import InputError
from vala_research.evaluation.statistics import UNKNOWN, Gain, paired_gain, summarise


@dataclass(frozen=True)
class Metric:
    """How a metric is called, printed and compared.

    axis: its name on an axis, with the unit of `factor` times the value. sign: 1 when larger is
    better, -1 when smaller is.
    """

    name: str
    axis: str
    factor: float = 1
    sign: int = 1


METRICS = {
    "psnr": Metric("PSNR", "PSNR to the true edit, dB"),
    "success": Metric("success", "attribute success, %", 100),
    "presence": Metric("presence", "frames with the object, %", 100),
    "path_error": Metric("path error", "path error, pixels", 1, -1),
    "size_error": Metric("size error", "size error, %", 100, -1),
    "jitter": Metric("jitter", "jitter, pixels", 1, -1),
    "warp_error": Metric("E_warp", "E_warp x 1000", 1000, -1),
    "warp_error_truth": Metric("E_warp", "E_warp x 1000, true edit's flow", 1000, -1),
    "clip_f": Metric("CLIP-F", "CLIP-F"),
    "clip_t": Metric("CLIP-T", "CLIP-T"),
    "background": Metric("background", "PSNR where nothing changes, dB"),
    "inversion_psnr": Metric("reconstruction", "reconstruction, dB"),
    "lpips": Metric("LPIPS", "LPIPS of neighbours", 1, -1),
    "lpips_miniature": Metric("LPIPS (miniature)", "LPIPS (miniature) x 1000", 1000, -1),
    "fid": Metric("FID", "FID to the source", 1, -1),
    "fid_miniature": Metric("FID (miniature)", "FID (miniature) x 1000", 1000, -1),
}
PLACEMENT = ("presence", "path_error", "size_error", "jitter")  # where the object is


def per_clip(
    rows: pd.DataFrame, metric: str, settings: Iterable[str] | None = None
) -> pd.DataFrame:
    """One value per clip (row) and setting (column; None: all): the mean over the clip's edits.

    The edits of one clip are not independent. So intervals count clips. An edit that has no value
    under one of the settings, such as the path of a lost object, is left out under all of them.
    """
    order = list(dict.fromkeys(rows.setting)) if settings is None else list(settings)
    return _clip_means(_by_edit(rows, metric), order)


def _by_edit(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Per edit (row) and setting (column): "value" and "unknown"; NaN where a row is missing."""
    edit = [column for column in ("kind", "index", "motion") if column in rows]
    known = rows.assign(motion=rows.motion.fillna("")) if "motion" in rows else rows
    known = known.assign(value=rows[metric], unknown=rows[metric].isna().astype(float))
    return known.groupby([*edit, "setting"])[["value", "unknown"]].mean().unstack("setting")


def _clip_means(edits: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """Means over each clip's edits, but for those without a value under one of these settings."""
    is_unknown = edits["unknown"].reindex(columns=order).gt(0).any(axis=1)
    return edits["value"].reindex(columns=order)[~is_unknown].groupby(level="index").mean()


def comparison_table(
    rows: pd.DataFrame, baseline: str, metrics: Iterable[str] = tuple(METRICS)
) -> pd.DataFrame:
    """One row per setting and metric: mean, 95% interval, paired gain on the baseline, p-value.

    gain: positive is better, whatever the metric's direction. Its interval and its p-value (two
    sided, not corrected for the number of comparisons) are of the difference on the same edits.
    n: clips of the mean; n_gain: clips of the gain. They are fewer where edits have no value.
    detectable: the smallest true gain that so many clips find, see `detectable_difference`.
    """
    table, names = [], list(dict.fromkeys(rows.setting))
    if baseline not in names:
        raise InputError(f"No rows of {baseline!r}: choose one of {', '.join(names)}.")
    for metric in (m for m in metrics if m in rows and rows[m].notna().any()):
        sign = METRICS[metric].sign if metric in METRICS else 1
        edits = _by_edit(rows, metric)
        for name in names:
            values = _clip_means(edits, [name])[name].to_numpy()
            s = summarise(values) if len(values) else UNKNOWN
            line = {"setting": name, "metric": metric, "mean": s.mean, "low": s.low,
                    "high": s.high, "n": s.n}  # fmt: skip
            if name != baseline:
                g = gain_of(rows, metric, name, baseline, sign, edits)
                line |= {"gain": g.mean, "gain_low": g.low, "gain_high": g.high, "p": g.p_value,
                         "n_gain": g.n, "detectable": g.detectable}  # fmt: skip
            table.append(line)
    return pd.DataFrame(table)


def gain_of(
    rows: pd.DataFrame, metric: str, name: str, baseline: str, sign: int,
    edits: pd.DataFrame | None = None,
) -> Gain:  # fmt: skip
    """Gain of a setting on another, over the edits on which both have a value; NaN of none."""
    edits = _by_edit(rows, metric) if edits is None else edits
    pairs = sign * _clip_means(edits, [name, baseline])
    if pairs.empty:
        return UNKNOWN
    return paired_gain(pairs[name].to_numpy(), pairs[baseline].to_numpy())


def in_units(means: pd.DataFrame) -> pd.DataFrame:
    """Means for a reader: columns named by metric, in the units of their names; two digits."""
    scaled = means * [METRICS[m].factor for m in means]
    return scaled.set_axis([METRICS[m].axis for m in means], axis=1).round(2)
