"""Notebook 35: what a temporal adapter brings to editors that differ in attention ("hosts").

GE-Adapter (arXiv 2501.04606), Table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vala_research.evaluation.comparison_figures import gains_figure
from vala_research.evaluation.comparison_tables import METRICS, PLACEMENT, comparison_table
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import drawn
from vala_research.evaluation.statistics import Gain
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import ATTENTIONS, CLIP, POINT, PUBLISHED, LaterClipsPreset
from vala_research.experiments.ge.adapter_variants import BESIDE, perceptual_measure
from vala_research.experiments.ge.paper_tables import HOSTS

ALL_HOSTS = "mean over hosts"
SHOWN = ("warp_error_truth", "warp_error", "jitter", "psnr", "success")


@dataclass(frozen=True, kw_only=True)
class Settings(LaterClipsPreset):
    """Parameters of notebook 35."""

    PRESETS = {
        "smoke": dict(hosts=("own", "extended"), kinds=("several",), n_clips=1, n_frames=3,
                      steps=3),
        "sprites": dict(
            POINT, n_clips=8, first_clip=64, kinds=("shape", "colour", "several"),
            hosts=("own", "sparse_causal", "anchors"),
        ),
        "paper": dict(PUBLISHED, clip_model=CLIP, n_processes=0),
    }

    CHOICES = LaterClipsPreset.CHOICES | {"hosts": ATTENTIONS, "parts": BESIDE}

    adapter: str = "miniature"  # or a folder that vala train wrote
    interval: Sequence[float] = ()  # of the diffusion steps it acts on; (): the adapter's own
    scale: float | None = None  # of its LoRA; None: the adapter's own
    hosts: Sequence[str] = HOSTS  # attention policies
    lpips_weights: str = ""  # folder or hub id, see `perceptual`; "": the miniature's CLIP
    inception_weights: str = ""  # folder or hub id, see `frechet`; "": the miniature's CLIP


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """"host, without" and "host, with" the adapter, for each host's attention."""
    acting = dict(
        adapter=settings.adapter, adapter_interval=tuple(settings.interval) or None,
        adapter_scale=settings.scale,
    )  # fmt: skip
    return {
        f"{host}, {side}": EditSetting(host, **settings.sampling, **adapter)
        for host in settings.hosts
        for side, adapter in (("without", {}), ("with", acting))
    }


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Edit on every host without and with the adapter; rows of `comparison.compare`."""
    measure = partial(
        perceptual_measure, lpips_weights=settings.lpips_weights,
        inception_weights=settings.inception_weights,
    )  # fmt: skip
    return settings.compare(edit_settings(settings), output, measure=measure)


def in_sides(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with two more columns, which split the setting: host, adapter."""
    return rows.join(rows.setting.str.extract("(?P<host>.*), (?P<adapter>.*)"))


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Gains by the adapter on each host and on their mean; the setting is the host.

    Columns are those of `comparison_table`. The mean over hosts is taken clip by clip, before
    anything is tested, over the edits that have a value on both sides.
    """
    rows = in_sides(rows)
    rows["setting"] = rows.adapter
    numbers = [c for c in METRICS if c in rows]
    sides = rows.groupby(["host", "kind", "index"])[numbers]
    known = rows[numbers].where(sides.transform("count") == rows.adapter.nunique())
    mean = known.groupby([rows.setting, rows["index"]], sort=False).mean().reset_index()
    tables = [comparison_table(mean, "without")]
    for host, of_host in rows.groupby("host", sort=False):
        gains = comparison_table(of_host, "without")
        tables.append(gains[gains.setting == "with"].assign(setting=host))
    whole = pd.concat(tables, ignore_index=True)
    return whole.replace({"setting": {"with": ALL_HOSTS}})


def side_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means of each host without and with the adapter."""
    numbers = [c for c in METRICS if c in rows]
    return in_sides(rows).groupby(["host", "adapter"], sort=False)[numbers].mean()


@drawn(claim="the adapter improves PSNR")
def figure(rows: pd.DataFrame) -> Figure:
    """Gains by the adapter on each host and on their mean."""
    gains = table(rows)
    if gains.setting.nunique() == 3:  # `without`, one host, and the mean over it
        gains = gains[gains.setting != ALL_HOSTS]
    return gains_figure(gains, metrics=SHOWN)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """On the mean over hosts: E_warp does not rise and PSNR does not fall; the gains.

    The first two fail when the whole interval of the gain lies below its limit. Whether there is a
    gain is reported, not asserted. So are the gains in where the object is, if known.
    """
    gains = table(rows)
    gains = gains[gains.setting == ALL_HOSTS].set_index("metric")
    warp = next(metric for metric in SHOWN if metric in gains.index)
    losses = {warp: (0.0, "raise E_warp"), "psnr": (-0.1, "lower PSNR by more than 0.1 dB")}
    stated = []
    for metric in (m for m in (*losses, *PLACEMENT) if m in gains.index):
        row, name = gains.loc[metric], METRICS[metric].name
        gain = Gain(row.gain, row.gain_low, row.gain_high, int(row.n_gain), row.p)
        if metric in losses:
            limit, loss = losses[metric]
            kept = f"the adapter does not {loss}"
            stated.append(Claim.of_limit(kept, f"gain in {name}", gain, limit))
        stated.append(Claim.of_gain(f"the adapter improves {name}", f"gain in {name}", gain))
    return stated
