"""Measure edits one by one: one row of metrics per edit.

In the sprite world every number has a right answer: the true edit is rendered, and the attributes
are read back. Rows of other clips hold the metrics that need no right answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vala_research.diffusion.difference import WITHOUT
from vala_research.diffusion.inversion import Inversion, get_inversion
from vala_research.editing.plan import inverted_sources
from vala_research.editing.source import Source
from vala_research.evaluation import metrics
from vala_research.evaluation.cases import ClipCase, EditCase, Material
from vala_research.evaluation.edit_rows import edit_row, truth_row
from vala_research.evaluation.edit_settings import EditSetting, alike_settings, equip
from vala_research.evaluation.memory import forget_peak, peak_mebibytes

Measure = Callable[[Float[Tensor, "f c h w"], Material], dict[str, float]]


def run_edits(
    pipe,
    cases: list[EditCase | ClipCase],
    settings: dict[str, EditSetting],
    n_frames: int = 8,
    size: int = 64,
    measure: Measure | None = None,
    clip_scorer=None,
) -> Iterator[dict]:
    """Yield one row per case and setting. Settings that invert alike share the inversions.

    Columns: those of `edit_row`; inversion_psnr of the reconstruction to the VAE round trip;
    seconds, which include the inversion even where it is shared; evaluations, the network calls per
    frame of inversion and edit, without the ControlNet's; peak_mib of this row.
    measure: makes further columns from an edited clip and what is known of it (`Material`).
    Rows are grouped by what the pipeline has to load. Afterwards nothing of it is loaded.
    """
    for alike in alike_settings(settings):
        equip(pipe, **next(iter(alike.values())).parts)
        yield from _run_edits(pipe, cases, alike, n_frames, size, measure, clip_scorer)
    equip(pipe)


def _run_edits(pipe, cases, settings, n_frames, size, measure, clip_scorer) -> Iterator[dict]:
    """The rows of settings that ask for the same parts."""
    inversions: dict[tuple, Inverted] = {}
    for case in tqdm(cases, "edits", disable=None):
        material = case.material(n_frames, size)
        known = truth_row(material, clip_scorer)
        for name, s in settings.items():
            if s.controlnet:
                pipe.show(material.pictures.get(s.control))

            # Invert the clip, unless a setting that inverts alike has done so.
            how = (repr(s.inverting()), s.fusion and s.fusion.inverting())
            key = (case.index, case.motion, case.source_prompt, *how)
            forget_peak()
            if key not in inversions:
                inversions[key] = inverted(pipe, material.frames, case.source_prompt, s, case.index)
            start, known_clip = time.perf_counter(), inversions[key]
            inversion = known_clip.inversion
            if inversion is not None:
                start_at = {"latents": inversion, "attention": inversion.attention}
            else:  # what starts from noise draws it
                start_at = {"generator": torch.Generator().manual_seed(case.index)}
            if s.fusion is not None:
                start_at["fusion"] = s.fusion.fusion(known_clip.sources)

            # Edit and measure.
            sees_clip = inversion is None or s.controlnet
            frames = pipe(
                material.frames if sees_clip else None, case.prompt, case.source_prompt,
                case.source_prompt if s.negates_source else None, output_type="pt",
                **s.arguments() | start_at,
            ).frames[0].cpu()  # fmt: skip
            seconds = known_clip.seconds + time.perf_counter() - start
            cost = {"inversion_psnr": known_clip.psnr, "seconds": seconds,
                    "evaluations": known_clip.n_evaluations + s.n_sampling,
                    "peak_mib": peak_mebibytes()}  # fmt: skip
            row = {"setting": name} | case.labels | known
            further = {} if measure is None else measure(frames, material)
            yield row | edit_row(frames, case, material, clip_scorer) | further | cost


def edited_frames(
    pipe, case: EditCase | ClipCase, settings: dict[str, EditSetting], n_frames: int, size: int
) -> dict[str, Float[Tensor, "f c h w"]]:
    """The edits of one case by name, for a strip."""
    kept: list[Tensor] = []

    def keep(frames: Tensor, _material: Material) -> dict[str, float]:
        kept.append(frames)
        return {}

    rows = run_edits(pipe, [case], settings, n_frames, size, keep)
    edits = dict(zip([row["setting"] for row in rows], kept, strict=True))
    return {name: edits[name] for name in settings}


@dataclass(frozen=True)
class Inverted:
    """One clip inverted under one policy, or by the sources of a fusion. Several edits share it."""

    inversion: Inversion | None
    psnr: float
    seconds: float
    n_evaluations: int
    sources: list[Source] = field(default_factory=list)


def inverted(
    pipe, frames: Float[Tensor, "f c h w"], caption: str, s: EditSetting, seed: int = 0
) -> Inverted:
    """Find the clip's policy, invert under it, and reconstruct; the reconstruction is not timed.

    The sources of a fusion invert each for itself; their reconstructions are not measured (NaN).
    """
    if isinstance(get_inversion(s.inversion), WITHOUT):
        sources = [] if s.fusion is None else s.fusion.built(pipe)
        return Inverted(None, float("nan"), 0.0, 0, sources)
    if s.fusion is not None:
        sources, seconds = inverted_sources(
            pipe, s.fusion.built(pipe), frames, caption, s.num_inference_steps, s.inversion,
            s.fusion.image_start,
        )  # fmt: skip
        n = sum(source.latents.n_evaluations for source in sources if source.latents)
        return Inverted(None, float("nan"), seconds, n, sources)
    start = time.perf_counter()
    drawn = torch.Generator().manual_seed(seed)
    inversion = pipe.invert(
        frames, caption, **s.inverting(), return_inversion=True, generator=drawn
    )
    seconds = time.perf_counter() - start
    again = pipe.reconstruct(inversion, caption, s.num_inference_steps, strength=s.strength)
    round_trip = pipe.decode(pipe.encode(frames))
    psnr = metrics.psnr(again.cpu(), round_trip.cpu())
    return Inverted(inversion, psnr, seconds, inversion.n_evaluations)
