"""Edits measured one by one, and what the miniature can do at all.

In the sprite world every number has a right answer: the true edit is rendered, the attributes are
read back. Of other clips the rows hold what can be said without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vala_research.diffusion.attention import (
    Keyframes,
)
from vala_research.diffusion.inversion import Inversion, InversionSettings
from vala_research.editing.plan import Plan, inverted_sources
from vala_research.editing.source import Source
from vala_research.evaluation import metrics
from vala_research.evaluation.cases import ClipCase, EditCase, Material
from vala_research.evaluation.memory import forget_peak, peak_mebibytes
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


def run_edits(
    pipe,
    cases: list[EditCase | ClipCase],
    settings: dict[str, EditSetting],
    n_frames: int = 8,
    size: int = 64,
    measure: Measure | None = None,
    clip_scorer=None,
) -> Iterator[dict]:
    """One row a case and setting; a clip is inverted once for settings that invert alike.

    Columns: those of `edit_row`; inversion_psnr of the reconstruction to the VAE round trip;
    seconds (of finding the policy and inverting too, also where they are shared) and peak_mib of
    this row. measure: further columns, of an edited clip and what is known of it (`Material`).
    Settings of one adapter come together, after each other; none stays loaded.
    """
    for adapter in dict.fromkeys(s.adapter for s in settings.values()):
        pipe.unload_adapter()
        if adapter:
            pipe.load_adapter(adapter)
        chosen = {n: s for n, s in settings.items() if s.adapter == adapter}
        yield from _run_edits(pipe, cases, chosen, n_frames, size, measure, clip_scorer)
    pipe.unload_adapter()


def _run_edits(pipe, cases, settings, n_frames, size, measure, clip_scorer) -> Iterator[dict]:
    """The rows of settings that share an adapter."""
    found: dict[tuple, Inverted] = {}
    for case in tqdm(cases, "edits", disable=None):
        material = case.material(n_frames, size)
        known = truth_row(material, clip_scorer)
        for name, s in settings.items():
            how = (repr(s.inverting()), s.fusion and s.fusion.inverting())
            key = (case.index, case.source_prompt, *how)
            forget_peak()
            if key not in found:
                found[key] = inverted(pipe, material.frames, case.source_prompt, s, case.index)
            start, given = time.perf_counter(), found[key]
            if s.fusion is None:
                start_at = {"latents": given.inversion, "attention": given.inversion.attention}
            else:
                drawn = torch.Generator().manual_seed(case.index)  # an image source from noise
                start_at = {"fusion": s.fusion.fusion(given.sources), "generator": drawn}
            frames = pipe(
                None if s.fusion is None else material.frames, case.prompt, case.source_prompt,
                output_type="pt", **s.arguments() | start_at,
            ).frames[0].cpu()  # fmt: skip
            seconds = found[key].seconds + time.perf_counter() - start
            cost = {"inversion_psnr": found[key].psnr, "seconds": seconds,
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
    found = dict(zip([row["setting"] for row in rows], kept, strict=True))
    return {name: found[name] for name in settings}


@dataclass(frozen=True)
class Inverted:
    """One clip inverted under one policy, or by the sources of a fusion: what edits of it share."""

    inversion: Inversion | None
    psnr: float
    seconds: float
    sources: list[Source] = field(default_factory=list)


def inverted(
    pipe, frames: Float[Tensor, "f c h w"], caption: str, s: EditSetting, seed: int = 0
) -> Inverted:
    """Find the clip's policy, invert under it, and reconstruct (which is not timed).

    A fusion's sources invert each for itself; their reconstructions are not measured (NaN).
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
    """What no editor changes: the source's PSNR to the true edit, the true edit's CLIP-F."""
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

    warp_error under the source's flow; with a `ClipScorer` CLIP-T to the prompt and CLIP-F over
    consecutive pairs. Where the true edit is known, psnr to it and gain over the source's, in dB;
    warp_error_truth, E_warp under the true edit's own flow, by which a right new outline does not
    lose and an old one does; success (share of frames with every attribute right) and one column
    an attribute. Elsewhere psnr is to the source: how much was kept.
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
    if clip_scorer is not None:
        row["clip_t"] = metrics.clip_text(frames, case.prompt, clip_scorer)
        row["clip_f"] = metrics.clip_frames(frames, clip_scorer)
    return row
