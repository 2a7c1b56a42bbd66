"""Notebook 33: the diffusion steps at which an adapter is trained, and those at which it acts.

GE-Adapter (arXiv 2501.04606), Figs. 11 and 14.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.benchmark import edited_frames
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

STARTS = (0.5, 0.8, 0.9)
Edits = Mapping[str, Float[Tensor, "f c h w"]]


@dataclass(frozen=True, kw_only=True)
class Settings(VariantPreset):
    """Parameters of notebook 33."""

    PRESETS = {
        "smoke": {"trained": (0.5,), "acting": (0.5, 0.9), "n_frames": 2, "n_clips": 1,
                  "steps": 4},
        "sprites": SPRITES | {"kinds": ("several", "colour")},
        "paper": PAPER,
    }

    trained: Sequence[float] = STARTS  # starts of the range in training, as fractions of T
    acting: Sequence[float] = STARTS  # starts of the range in edits, as fractions of T


def range_variants(base: Variant, starts: Iterable[float] = (0.5, 0.8, 0.9)) -> dict[str, Variant]:
    """Adapters whose temporal loss counts from each of these fractions of T on; Fig. 11."""
    variants = {}
    for start in starts:
        loss = replace(base.training.loss, temporal_from=start)
        training = replace(base.training, loss=loss)
        variants[f"trained {start:g}-1"] = replace(base, training=training)
    return variants


def edit_settings(settings: Settings, folder: str | Path) -> dict[str, EditSetting]:
    """The bare model, called "without", and each adapter acting from each fraction of T on.

    folder: where the adapters were trained, `settings.trained_in(output)`.
    """
    variants = range_variants(settings.variant, settings.trained)
    folders = adapter_folders(variants, Path(folder) / ADAPTERS)
    bare = EditSetting(settings.attention, **settings.sampling)
    return {"without": bare} | {
        f"{name}, acting {start:g}-1": replace(bare, adapter=folder, adapter_interval=(start, 1.0))
        for name, folder in folders.items()
        for start in settings.acting
    }


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Train the adapters, then edit with each over each range; rows of `comparison.compare`."""
    settings.train(range_variants(settings.variant, settings.trained), output)
    compared = edit_settings(settings, settings.trained_in(output))
    return settings.compare(compared, output, measure=perceptual_measure)


def first_edits(settings: Settings, output: str | Path) -> Edits:
    """The edits of the first clip by setting, with the adapters that `run` trained."""
    pipe, case = quiet_pipeline(settings.model, settings.dtype), settings.cases()[0]
    compared = edit_settings(settings, settings.trained_in(output))
    return edited_frames(pipe, case, compared, settings.n_frames, settings.size)


def distances(edits: Edits) -> dict[str, float]:
    """Root mean squared difference of each edit from the first one."""
    bare = next(iter(edits.values()))
    return {name: (x - bare).square().mean().sqrt().item() for name, x in edits.items()}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means, and gains on the model without an adapter, paired by clip."""
    return comparison_table(rows, "without")


@drawn
def figure(rows: pd.DataFrame) -> Figure:
    """Gains of every range on the model without an adapter."""
    return gains_figure(table(rows))


def claims(edits: Edits) -> list[Claim]:
    """An adapter that acts on more steps moves the edit further from the bare model's."""
    by_adapter: dict[str, list[tuple[float, float]]] = {}
    for name, distance in list(distances(edits).items())[1:]:
        adapter, start = name.removesuffix("-1").split(", acting ")
        by_adapter.setdefault(adapter, []).append((float(start), distance))
    stated = []
    for adapter, moved in by_adapter.items():
        far = [distance for _, distance in sorted(moved)]
        holds = far[0] > 0 and all(more >= fewer for more, fewer in pairwise(far))
        stated.append(Claim.of_fact(f"{adapter}: more steps move the edit further",
                                    "RMS distance at the most steps", far[0], holds))  # fmt: skip
    return stated
