"""Notebook 32: which prompt tokens help, shared by all frames or made from each frame's picture.

GE-Adapter (arXiv 2501.04606), Figs. 12, 13 and 15.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vala_research import chosen_from
from vala_research.evaluation.comparison_figures import gains_figure
from vala_research.evaluation.comparison_tables import comparison_table
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.figures import drawn
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.ge.adapter_variants import (
    ADAPTERS,
    PAPER,
    SPRITES,
    Variant,
    VariantPreset,
    adapter_folders,
    perceptual_measure,
)


@dataclass(frozen=True, kw_only=True)
class Settings(VariantPreset):
    """Parameters of notebook 32."""

    PRESETS = {
        "smoke": {
            "configurations": ("no tokens", "shared removed", "18 shared"), "n_frames": 2,
            "n_clips": 1, "steps": 2,
        },
        "sprites": SPRITES,
        "paper": PAPER,
    }

    configurations: Sequence[str] = ()  # names of `token_variants`; (): all
    interval: Sequence[float] = (0.0, 1.0)  # of the diffusion steps that the adapter acts on

    @property
    def variant(self) -> Variant:
        """The recipe, with an adapter that acts on the interval."""
        base = super().variant
        return replace(base, adapter=replace(base.adapter, interval=tuple(self.interval)))


def token_variants(base: Variant, n_shared: Iterable[int] = (2, 4, 6, 8, 10, 18)) -> dict:
    """Token configurations of Figs. 12, 13 and 15, by name.

    "n shared": n shared tokens and pooled frame tokens, the paper's "shared tokens". "shared
    removed": frame tokens alone. "unshared enhanced": no pooling, twice as many frame tokens; the
    paper does not define its "enhanced unshared tokens".
    """
    a = base.adapter
    adapters = {
        "no tokens": replace(a, n_shared=0, uses_frame_tokens=False),
        "shared removed": replace(a, n_shared=0, uses_frame_tokens=True),
        "shared alone": replace(a, n_shared=18, uses_frame_tokens=False),
        "unshared enhanced": replace(a, n_shared=18, uses_frame_tokens=True, pooling="none"),
    }
    adapters |= {f"{n} shared": replace(a, n_shared=n, uses_frame_tokens=True) for n in n_shared}
    return {name: replace(base, adapter=settings) for name, settings in adapters.items()}


def asked_variants(settings: Settings) -> dict[str, Variant]:
    """The configurations that the settings name."""
    variants = token_variants(settings.variant)
    names = settings.configurations or variants
    for name in names:
        chosen_from("configuration", name, variants)
    return {name: variants[name] for name in names}


def edit_settings(settings: Settings, folder: str | Path) -> dict[str, EditSetting]:
    """The bare model, called "without", and one setting per adapter.

    folder: where the adapters were trained, `settings.trained_in(output)`.
    """
    folders = adapter_folders(asked_variants(settings), Path(folder) / ADAPTERS)
    adapters = {"without": ""} | folders
    return {
        name: EditSetting(settings.attention, adapter=folder, **settings.sampling)
        for name, folder in adapters.items()
    }


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Train the configurations, then edit with each; rows of `comparison.compare`."""
    settings.train(asked_variants(settings), output)
    compared = edit_settings(settings, settings.trained_in(output))
    return settings.compare(compared, output, measure=perceptual_measure)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means, and gains on the model without an adapter, paired by clip."""
    return comparison_table(rows, "without")


@drawn(claim="changes the edits")
def figure(rows: pd.DataFrame) -> Figure:
    """Gains of every configuration on the model without an adapter."""
    return gains_figure(table(rows))


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Every edit is measured, and every configuration changes the edits."""
    unmeasured = int(rows.warp_error.isna().sum())
    stated = [Claim.of_fact("every edit has an E_warp", "edits without", unmeasured,
                            unmeasured == 0)]  # fmt: skip
    psnr = rows.pivot_table("psnr", ["kind", "index"], "setting", sort=False)
    for name in psnr.columns.drop("without"):
        moved = (psnr[name] - psnr["without"]).abs().max()
        stated.append(Claim.of_fact(f"{name} changes the edits", "largest change of PSNR, dB",
                                    moved, moved > 0))  # fmt: skip
    return stated
