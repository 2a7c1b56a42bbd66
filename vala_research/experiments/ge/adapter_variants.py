"""What an adapter is made of, and where it acts, decides what it brings: GE-Adapter's ablations.

Figs. 11 to 15 and Table 1 of arXiv 2501.04606. Variants of an adapter are trained on the same
clips; `comparison.compare` edits with each of them, paired by clip with the model without one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vala_research.adapter.settings import AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.adapter.training import TrainingSettings, train
from vala_research.adapter.vision import VisionEncoder
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.benchmark import EditSetting
from vala_research.evaluation.cases import Material
from vala_research.evaluation.comparison import METRICS, comparison_table
from vala_research.evaluation.frechet import Inception, fid, fid_miniature_clip
from vala_research.evaluation.perceptual import Lpips, lpips, lpips_miniature

ALL_HOSTS = "mean over hosts"


@dataclass(frozen=True)
class Variant:
    """An adapter and how it is trained."""

    adapter: AdapterSettings
    training: TrainingSettings


def token_variants(base: Variant, n_shared: Iterable[int] = (2, 4, 6, 8, 10, 18)) -> dict:
    """Token configurations of Figs. 12, 13 and 15, by name.

    The paper's "shared tokens" are shared and pooled frame tokens; "removed", frame tokens alone;
    "enhanced unshared", which it does not define, is here no pooling: twice as many frame tokens.
    """
    a = base.adapter
    made = {
        "no tokens": replace(a, n_shared=0, uses_frame_tokens=False),
        "shared removed": replace(a, n_shared=0, uses_frame_tokens=True),
        "shared alone": replace(a, n_shared=18, uses_frame_tokens=False),
        "unshared enhanced": replace(a, n_shared=18, uses_frame_tokens=True, pooling="none"),
    }
    made |= {f"{n} shared": replace(a, n_shared=n, uses_frame_tokens=True) for n in n_shared}
    return {name: replace(base, adapter=settings) for name, settings in made.items()}


def range_variants(base: Variant, starts: Iterable[float] = (0.5, 0.8, 0.9)) -> dict[str, Variant]:
    """Adapters trained with the temporal loss from each of these fractions of T on; Fig. 11."""
    return {
        f"trained {start:g}-1": replace(
            base,
            training=replace(
                base.training, loss=replace(base.training.loss, temporal_from=start)
            ),
        )
        for start in starts
    }  # fmt: skip


def train_variants(
    model: str | Path,
    variants: Mapping[str, Variant],
    dataset: Any,
    folder: str | os.PathLike,
    vision_encoder: str | None = None,
) -> dict[str, str]:
    """Train each on the same samples, in `folder`/name; what is trained already is left as it is.

    dataset: see `finetuning.train`. vision_encoder: of the frame tokens. Returns name -> folder.
    Raises InputError when a folder holds a training of other settings.
    """
    pipe = quiet_pipeline(model)
    encoder = VisionEncoder.from_pretrained(vision_encoder) if vision_encoder else None
    folders = {}
    for name, variant in variants.items():
        folders[name] = str(Path(folder) / name.replace(" ", "_"))
        uses = variant.adapter.uses_frame_tokens
        width, called = (encoder.width, encoder.name) if uses and encoder else (None, None)
        generator = torch.Generator().manual_seed(variant.training.seed)
        adapter = TemporalAdapter.attach(pipe.unet, variant.adapter, width, generator, called)
        try:
            tokens = encoder.tokens if uses and encoder else None
            train(pipe, adapter, dataset, folders[name], variant.training, tokens)
        finally:
            adapter.detach()
    return folders


def with_adapters(
    folders: Mapping[str, str], attention: str = "own", **common
) -> dict[str, EditSetting]:
    """Settings for `compare`: the bare model, called "without", and one with each adapter."""
    made = {"without": EditSetting(attention, **common)}
    return made | {n: EditSetting(attention, adapter=f, **common) for n, f in folders.items()}


def on_hosts(
    hosts: Iterable[str], adapter: str, acting: Mapping[str, Any], **common
) -> dict[str, EditSetting]:
    """Settings for `compare`: "host, without" and "host, with" for each host's attention."""
    both = {"without": {}, "with": {"adapter": adapter, **acting}}
    return {
        f"{host}, {way}": EditSetting(host, **common, **given)
        for host in hosts
        for way, given in both.items()
    }


def over_intervals(
    folders: Mapping[str, str], starts: Iterable[float], attention: str = "own", **common
) -> dict[str, EditSetting]:
    """Settings for `compare`: the bare model, and each adapter from each fraction of T on."""
    made = {"without": EditSetting(attention, **common)}
    return made | {
        f"{name}, acting {start:g}-1": EditSetting(
            attention, adapter=folder, adapter_interval=(start, 1.0), **common
        )
        for name, folder in folders.items()
        for start in starts
    }


def host_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What the adapter brings to each host of `on_hosts` and to their mean, as a table of gains.

    Columns and meaning are those of `comparison_table`, and the setting is the host; the mean over
    hosts is taken clip by clip before anything is tested.
    """
    parts = rows.setting.str.extract(r"(?P<host>.*), (?P<way>.*)")
    hosts = list(dict.fromkeys(parts.host))
    numbers = [c for c in METRICS if c in rows]
    mean = rows.assign(setting=parts.way).groupby(["setting", "index"], sort=False)[numbers].mean()
    tables = [comparison_table(mean.reset_index().dropna(axis=1, how="all"), "without")]
    for host in hosts:
        of_host = rows[parts.host == host].assign(setting=parts.way)
        found = comparison_table(of_host.dropna(axis=1, how="all"), "without")
        tables.append(found[found.setting == "with"].assign(setting=host))
    whole = pd.concat(tables, ignore_index=True)
    return whole.replace({"setting": {"with": ALL_HOSTS}})


def distances(edits: Mapping[str, Float[Tensor, "f c h w"]]) -> dict[str, float]:
    """Root mean squared difference of each edit from the first one."""
    bare = next(iter(edits.values()))
    return {name: (x - bare).square().mean().sqrt().item() for name, x in edits.items()}


def perceptual_measure(
    frames: Float[Tensor, "f c h w"],
    material: Material,
    lpips_weights: str = "",
    inception_weights: str = "",
) -> dict[str, float]:
    """LPIPS of neighbouring frames and FID to the source, as in the paper's Table 1.

    Named "..._miniature" where no weights are given: then the miniature's CLIP takes the networks'
    place. The FID is that of one clip's frames: far too few for its covariance, and so biased; it
    can only be compared between edits of the same clips.
    """
    found, source = {}, material.frames
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*rank.*")
        if lpips_weights:
            found["lpips"] = lpips(frames[1:], frames[:-1], _lpips(lpips_weights))
        else:
            found["lpips_miniature"] = lpips_miniature(frames[1:], frames[:-1])
        if inception_weights:
            found["fid"] = fid(frames, source, _inception(inception_weights))
        else:
            found["fid_miniature"] = fid_miniature_clip(frames, source)
    return found


_lpips, _inception = cache(Lpips.from_pretrained), cache(Inception.from_pretrained)
