"""Notebook 36: what a temporal adapter brings to the editors that its paper plugs it into.

GE-Adapter (arXiv 2501.04606), Table 1 and Figs. 1 and 4. The editors are those of
`editing.hosts`; rows, table and claims are those of `adapter_gains`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vala_research.diffusion.inversion import METHODS
from vala_research.editing.hosts import HOSTS
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import POINT
from vala_research.experiments.ge import adapter_gains, host_settings
from vala_research.experiments.ge.adapter_variants import perceptual_measure
from vala_research.experiments.ge.host_settings import PAPER, HostPreset


@dataclass(frozen=True, kw_only=True)
class Settings(HostPreset):
    """Parameters of notebook 36."""

    PRESETS = {
        "smoke": dict(hosts=("token_flow", "rave"), kinds=("several",), n_clips=1, n_frames=3,
                      steps=2),
        "sprites": POINT | dict(n_clips=8, first_clip=96, kinds=("several", "colour")),
        "paper": PAPER | dict(inversion=""),
    }  # fmt: skip

    CHOICES = HostPreset.CHOICES | {"inversion": ("", *METHODS)}

    inversion: str = "ddim"  # of the hosts that invert; "": their own, such as "null_text"
    adapter: str = "miniature"  # or a folder that vala train wrote


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """"host, without" and "host, with" the adapter, for each host."""
    inversions = {
        name: own if (own := HOSTS[name].inversion) == "noise" else settings.inversion or own
        for name in settings.hosts
    }
    return {
        f"{host}, {side}": settings.host_setting(host, inversions[host], adapter)
        for host in settings.hosts
        for side, adapter in (("without", ""), ("with", settings.adapter))
    }


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Edit by every host without and with the adapter; rows of `comparison.compare`."""
    return settings.compare(edit_settings(settings), output, measure=perceptual_measure)


table = adapter_gains.table
figure = adapter_gains.figure
costs = host_settings.costs


def page(rows: pd.DataFrame) -> pd.DataFrame:
    """Means of each host without and with the adapter, in the units of the metrics' names."""
    return host_settings.page(rows, adapter_gains.SHOWN)


def strips(settings: Settings) -> Figure:
    """The first edit by every host, without and with the adapter, beside source and true edit."""
    return host_settings.strips(settings, edit_settings(settings))


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Those of `adapter_gains`: on the mean over hosts, nothing is lost; gains are reported."""
    return adapter_gains.claims(rows)
