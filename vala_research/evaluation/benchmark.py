"""Measure edits one by one: one row of metrics per edit.

In the sprite world every number has a right answer: the true edit is rendered, and the attributes
are read back. Rows of other clips hold the metrics that need no right answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vala_research.diffusion.attention import Keyframes
from vala_research.diffusion.cross_frame import CrossFrame
from vala_research.diffusion.injection import Injection, n_source_steps
from vala_research.diffusion.inversion import Inversion, InversionSettings, get_inversion
from vala_research.diffusion.noise_start import NoiseStart
from vala_research.editing.plan import Plan, inverted_sources
from vala_research.editing.source import Source
from vala_research.evaluation import metrics
from vala_research.evaluation.cases import ClipCase, EditCase, Material
from vala_research.evaluation.edit_rows import edit_row, truth_row
from vala_research.evaluation.memory import forget_peak, peak_mebibytes
from vala_research.methods.anchors import AnchorSettings

PARTS = ("motion", "controlnet", "control_scale", "control_interval", "adapter")
Measure = Callable[[Float[Tensor, "f c h w"], Material], dict[str, float]]


@dataclass(frozen=True)
class EditSetting:
    """A named point in the editor's space: arguments of `VideoEditPipeline.__call__`.

    adapter: the folder of a `TemporalAdapter`, "miniature", or "" for none. adapter_interval and
    adapter_scale None are its own. motion, controlnet: likewise, of motion modules and of a
    ControlNet, which sees the frames and acts in the edit alone. fusion: several models at once;
    attention is then its sources'. negates_source: the source prompt is the negative prompt.
    """

    attention: str | AnchorSettings | Keyframes | CrossFrame = "extended"
    inversion: str | InversionSettings = "ddim"
    injection: float | Injection = 0.0
    guidance_scale: float = 2.0
    num_inference_steps: int = 25
    adapter: str = ""
    adapter_interval: tuple[float, float] | None = None
    adapter_scale: float | None = None
    fusion: Plan | None = None
    motion: str = ""
    controlnet: str = ""
    control_scale: float = 1.0
    control_interval: tuple[float, float] = (0.0, 1.0)
    strength: float = 1.0
    negates_source: bool = False

    @property
    def n_sampling(self) -> int:
        """Network calls per frame of the sampling: all guidance branches of all sources."""
        n_steps = int(self.num_inference_steps * self.strength)
        scales = [self.guidance_scale]
        if (plan := self.fusion) is not None:
            n_used = len(plan.sources) if plan.schedule.tau < 1 else 1
            scales = [self.guidance_scale if g is None else g for g in plan.guidances[:n_used]]
        edits = n_steps * sum(1 + (scale > 1) for scale in scales)
        attention = self.attention if plan is None else "own"
        return edits + n_source_steps(attention, Injection.of(self.injection), n_steps)

    @property
    def parts(self) -> dict[str, Any]:
        """What a pipeline has to load."""
        return {k: getattr(self, k) for k in PARTS}

    def arguments(self) -> dict:
        """The arguments of the edit, but for the fusion and the prompts."""
        others = (*PARTS, "fusion", "negates_source")
        return {k: v for k, v in vars(self).items() if k not in others}

    def inverting(self) -> dict:
        """Arguments that inversion and edit share: settings that agree in them invert alike."""
        shared = (
            "attention", "inversion", "num_inference_steps", "adapter_interval", "adapter_scale",
            "strength",
        )  # fmt: skip
        return {k: v for k, v in vars(self).items() if k in shared}

    def identity(self, revision: Callable[[str, str], str]) -> EditSetting:
        """The setting with its networks named by what they are, see `provenance.revision`."""
        plan = self.fusion
        if plan is not None:
            plan = replace(plan, motion=revision(plan.motion, "motion"))
        parts = {k: revision(getattr(self, k), k) for k in ("motion", "controlnet", "adapter")}
        return replace(self, fusion=plan, **parts)


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


def equip(
    pipe, motion: str = "", controlnet: str = "", control_scale: float = 1.0,
    control_interval: tuple[float, float] = (0.0, 1.0), adapter: str = "",
) -> None:  # fmt: skip
    """Let a pipeline have these parts and no others."""
    pipe.unload_adapter()
    pipe.unload_motion_adapter()
    pipe.unload_controlnet()
    if motion:
        pipe.load_motion_adapter(motion)
    if controlnet:
        how = {"scale": control_scale, "interval": control_interval, "in_inversion": False}
        pipe.load_controlnet(controlnet, **how)
    if adapter:
        pipe.load_adapter(adapter)


def alike_settings(settings: dict[str, EditSetting]) -> list[dict[str, EditSetting]]:
    """The settings in groups that ask for the same parts."""
    groups: dict[tuple, dict[str, EditSetting]] = {}
    for name, s in settings.items():
        groups.setdefault(tuple(s.parts.values()), {})[name] = s
    return list(groups.values())


def row_order(n_cases: int, settings: dict[str, EditSetting]) -> list[tuple[int, str]]:
    """The rows of `run_edits` in their order: number of the case, name of the setting."""
    return [
        (i, name)
        for alike in alike_settings(settings)
        for i in range(n_cases)
        for name in alike
    ]


def _run_edits(pipe, cases, settings, n_frames, size, measure, clip_scorer) -> Iterator[dict]:
    """The rows of settings that ask for the same parts."""
    inversions: dict[tuple, Inverted] = {}
    for case in tqdm(cases, "edits", disable=None):
        material = case.material(n_frames, size)
        known = truth_row(material, clip_scorer)
        for name, s in settings.items():
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
    if s.fusion is not None:
        sources, seconds = inverted_sources(
            pipe, s.fusion.built(pipe), frames, caption, s.num_inference_steps, s.inversion,
            s.fusion.image_start,
        )  # fmt: skip
        n = sum(source.latents.n_evaluations for source in sources if source.latents)
        return Inverted(None, float("nan"), seconds, n, sources)
    if isinstance(get_inversion(s.inversion), NoiseStart):
        return Inverted(None, float("nan"), 0.0, 0)
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
