"""Measure edits one by one: one row of metrics per edit.

In the sprite world every number has a right answer: the true edit is rendered, and the attributes
are read back. Rows of other clips hold the metrics that need no right answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vala_research.diffusion.attention import Keyframes
from vala_research.diffusion.inversion import Inversion, InversionSettings
from vala_research.editing.plan import Plan, inverted_sources
from vala_research.editing.source import Source
from vala_research.evaluation import metrics
from vala_research.evaluation.cases import ClipCase, EditCase, Material
from vala_research.evaluation.memory import forget_peak, peak_mebibytes
from vala_research.evaluation.placement import placement_row
from vala_research.methods.anchors import AnchorSettings
from vala_research.sprites.reader import read_attributes

Measure = Callable[[Float[Tensor, "f c h w"], Material], dict[str, float]]
ATTRIBUTES = ("shape", "colour", "background", "pattern")


@dataclass(frozen=True)
class EditSetting:
    """A named point in the editor's space: arguments of `VideoEditPipeline.__call__`.

    adapter: the folder of a `TemporalAdapter`, "miniature", or "" for none. adapter_interval and
    adapter_scale None are its own. fusion: several models at once; attention is then its sources'.
    """

    attention: str | AnchorSettings | Keyframes = "extended"
    inversion: str | InversionSettings = "ddim"
    injection: float = 0.0
    guidance_scale: float = 2.0
    num_inference_steps: int = 25
    adapter: str = ""
    adapter_interval: tuple[float, float] | None = None
    adapter_scale: float | None = None
    fusion: Plan | None = None

    def arguments(self) -> dict:
        """The arguments of the edit, but for the adapter's folder and the fusion."""
        return {k: v for k, v in vars(self).items() if k not in ("adapter", "fusion")}

    def inverting(self) -> dict:
        """Arguments that inversion and edit share: settings that agree in them invert alike."""
        shared = (
            "attention", "inversion", "num_inference_steps", "adapter_interval", "adapter_scale",
        )  # fmt: skip
        return {k: v for k, v in vars(self).items() if k in shared}

    def identity(self, revision: Callable[[str, str], str]) -> EditSetting:
        """The setting with its networks named by what they are, see `provenance.revision`."""
        plan = self.fusion
        if plan is not None:
            plan = replace(plan, motion=revision(plan.motion, "motion"))
        return replace(self, adapter=revision(self.adapter, "adapter"), fusion=plan)


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
    seconds, which include the inversion even where it is shared; peak_mib of this row.
    measure: makes further columns from an edited clip and what is known of it (`Material`).
    Rows are grouped by adapter. Afterwards no adapter is loaded.
    """
    for adapter in dict.fromkeys(s.adapter for s in settings.values()):
        pipe.unload_adapter()
        if adapter:
            pipe.load_adapter(adapter)
        alike = {n: s for n, s in settings.items() if s.adapter == adapter}
        yield from _run_edits(pipe, cases, alike, n_frames, size, measure, clip_scorer)
    pipe.unload_adapter()


def row_order(n_cases: int, settings: dict[str, EditSetting]) -> list[tuple[int, str]]:
    """The rows of `run_edits` in their order: number of the case, name of the setting."""
    return [
        (i, name)
        for adapter in dict.fromkeys(s.adapter for s in settings.values())
        for i in range(n_cases)
        for name, s in settings.items()
        if s.adapter == adapter
    ]


def _run_edits(pipe, cases, settings, n_frames, size, measure, clip_scorer) -> Iterator[dict]:
    """The rows of settings that share an adapter."""
    inversions: dict[tuple, Inverted] = {}
    for case in tqdm(cases, "edits", disable=None):
        material = case.material(n_frames, size)
        known = truth_row(material, clip_scorer)
        for name, s in settings.items():
            # Invert the clip, unless a setting that inverts alike has done so.
            how = (repr(s.inverting()), s.fusion and s.fusion.inverting())
            key = (case.index, case.source_prompt, *how)
            forget_peak()
            if key not in inversions:
                inversions[key] = inverted(pipe, material.frames, case.source_prompt, s, case.index)
            start, known_clip = time.perf_counter(), inversions[key]
            if s.fusion is None:
                inversion = known_clip.inversion
                start_at = {"latents": inversion, "attention": inversion.attention}
            else:
                drawn = torch.Generator().manual_seed(case.index)  # an image source from noise
                start_at = {"fusion": s.fusion.fusion(known_clip.sources), "generator": drawn}

            # Edit and measure.
            frames = pipe(
                None if s.fusion is None else material.frames, case.prompt, case.source_prompt,
                output_type="pt", **s.arguments() | start_at,
            ).frames[0].cpu()  # fmt: skip
            seconds = known_clip.seconds + time.perf_counter() - start
            cost = {"inversion_psnr": known_clip.psnr, "seconds": seconds,
                    "peak_mib": peak_mebibytes()}  # fmt: skip
            row = {"setting": name, "kind": case.kind, "index": case.index} | known
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
    sources: list[Source] = field(default_factory=list)


def inverted(
    pipe, frames: Float[Tensor, "f c h w"], caption: str, s: EditSetting, seed: int = 0
) -> Inverted:
    """Find the clip's policy, invert under it, and reconstruct; the reconstruction is not timed.

    The sources of a fusion invert each for itself. Their reconstructions are not measured (NaN).
    """
    if s.fusion is not None:
        sources, seconds = inverted_sources(
            pipe, s.fusion.built(pipe), frames, caption, s.num_inference_steps, s.inversion,
            s.fusion.image_start,
        )  # fmt: skip
        return Inverted(None, float("nan"), seconds, sources)
    start = time.perf_counter()
    drawn = torch.Generator().manual_seed(seed)
    inversion = pipe.invert(
        frames, caption, **s.inverting(), return_inversion=True, generator=drawn
    )
    seconds = time.perf_counter() - start
    again = pipe.reconstruct(inversion, caption, s.num_inference_steps)
    round_trip = pipe.decode(pipe.encode(frames))
    return Inverted(inversion, metrics.psnr(again.cpu(), round_trip.cpu()), seconds)


def truth_row(material: Material, clip_scorer=None) -> dict:
    """Columns that no editor changes: PSNR of the source to the true edit, CLIP-F of the latter."""
    if material.truth is None:
        return {}
    row = {"source_psnr": metrics.psnr(material.frames, material.truth)}
    if clip_scorer is not None:
        row["true_clip_f"] = metrics.clip_frames(material.truth, clip_scorer)
    return row


def edit_row(
    frames: Float[Tensor, "f c h w"], case: EditCase | ClipCase, material: Material,
    clip_scorer=None,
) -> dict:  # fmt: skip
    """Metrics of one edited clip.

    psnr: to the true edit, or to the source where no true edit is known. warp_error: under the
    source's flow. clip_t, clip_f: with a `ClipScorer`, CLIP-T to the prompt and CLIP-F over
    consecutive pairs. Only where the true edit is known:

    * gain: psnr over that of the source, in dB.
    * warp_error_truth: E_warp under the true edit's own flow. A right new outline does not lose by
      it, and an old outline does.
    * success: share of frames with every attribute right; and one column per attribute.
    * presence, path_error, size_error, jitter: of the edited object, see `placement`.
    """
    reference = material.frames if material.truth is None else material.truth
    row = {
        "psnr": metrics.psnr(frames, reference),
        "warp_error": metrics.warp_error(frames, material.flow, material.flow_valid),
    }
    if material.truth is not None:
        row["gain"] = row["psnr"] - metrics.psnr(material.frames, material.truth)
        if material.truth_flow is not None:
            followed = material.truth_flow, material.truth_flow_valid
            row["warp_error_truth"] = metrics.warp_error(frames, *followed)
        read, right = read_attributes(frames), case.attributes
        row["success"] = sum(r == right for r in read) / len(read)
        row |= {k: sum(r[k] == right[k] for r in read) / len(read) for k in ATTRIBUTES}
        row |= placement_row(frames, case.target)
    if clip_scorer is not None:
        row["clip_t"] = metrics.clip_text(frames, case.prompt, clip_scorer)
        row["clip_f"] = metrics.clip_frames(frames, clip_scorer)
    return row
