"""Notebook 37: what bilateral DDIM inversion brings to the editors of the paper.

GE-Adapter (arXiv 2501.04606) 3.2, Table 2 and Fig. 7. The editors are those of `editing.hosts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vala_research.diffusion.bilateral_inversion import BilateralInversion
from vala_research.evaluation.comparison_figures import gains_figure
from vala_research.evaluation.comparison_tables import METRICS, PLACEMENT
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import drawn
from vala_research.evaluation.statistics import Gain
from vala_research.evaluation.verdicts import Claim, n_clips_of
from vala_research.experiments.contract import POINT
from vala_research.experiments.ge import adapter_gains, host_settings
from vala_research.experiments.ge.adapter_gains import ALL_HOSTS
from vala_research.experiments.ge.adapter_variants import perceptual_measure
from vala_research.experiments.ge.host_settings import PAPER, HostPreset

SHOWN = ("inversion_psnr", "warp_error_truth", "warp_error", "jitter", "psnr", "success")
JUDGED = (*SHOWN, *PLACEMENT, "lpips_miniature", "fid_miniature", "lpips", "fid", "clip_t")


@dataclass(frozen=True, kw_only=True)
class Settings(HostPreset):
    """Parameters of notebook 37."""

    PRESETS = {
        "smoke": dict(hosts=("token_flow",), kinds=("several",), n_clips=1, n_frames=3, steps=2),
        "sprites": POINT | dict(n_clips=8, first_clip=104, kinds=("several", "colour")),
        "paper": PAPER,
    }

    sigma: float = 1.0  # the filter's intensity, in standard deviations of the latent


def edit_settings(settings: Settings) -> dict[str, EditSetting]:
    """"host, without" and "host, with" the filter in the inversion, for each host.

    All hosts invert here, Text2Video-Zero too, whose own edits start from noise.
    """
    sides = {"without": "ddim", "with": BilateralInversion(sigma_intensity=settings.sigma)}
    return {
        f"{host}, {side}": settings.host_setting(host, inversion)
        for host in settings.hosts
        for side, inversion in sides.items()
    }


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Edit by every host without and with the filter; rows of `comparison.compare`."""
    return settings.compare(edit_settings(settings), output, measure=perceptual_measure)


table = adapter_gains.table
costs = host_settings.costs


@drawn
def figure(rows: pd.DataFrame) -> Figure:
    """Gains by the filter on each host and on their mean."""
    return gains_figure(table(rows), metrics=SHOWN)


def page(rows: pd.DataFrame) -> pd.DataFrame:
    """Means of each host without and with the filter, in the units of the metrics' names."""
    return host_settings.page(rows, SHOWN).rename_axis(index={"adapter": "filter"})


def strips(settings: Settings) -> Figure:
    """The first edit by every host, without and with the filter, beside source and true edit."""
    return host_settings.strips(settings, edit_settings(settings))


def claims(rows: pd.DataFrame) -> list[Claim]:
    """On the mean over hosts, the filter's gain in each metric: reported, not asserted.

    Asserted: on every host the filter loses reconstruction, as in notebook 30.
    """
    gains = table(rows)
    gains = gains[gains.setting == ALL_HOSTS].set_index("metric")
    stated = [
        Claim.of_gain(
            f"the filter improves {METRICS[metric].name}", f"gain in {METRICS[metric].name}",
            Gain(row.gain, row.gain_low, row.gain_high, int(row.n_gain), row.p),
        )
        for metric, row in gains.iterrows()
        if metric in JUDGED
    ]  # fmt: skip
    means = adapter_gains.side_table(rows).inversion_psnr.unstack("adapter")
    lost = means["without"] - means["with"]
    return [*stated, Claim.of_fact("on every host the filter loses reconstruction",
                                   "dB lost at least", lost.min(), (lost > 0).all(),
                                   n_clips=n_clips_of(rows, "index"))]  # fmt: skip
