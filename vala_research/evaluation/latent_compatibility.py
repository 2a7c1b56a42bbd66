"""Latents of two models can be mixed when they mean the same: measured, and broken on purpose.

FLDM (arXiv 2310.16400) assumes that its models share one latent space and does not measure it. Here
are the cosine between the models' latents of the same frames, along the inversion and along their
edits, and models of another space of the same shape: its channels are rotated, or nothing is known.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, radians, sin

import pandas as pd
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from vala_research.diffusion.editing import Fusion, Source
from vala_research.diffusion.schedule import Schedule
from vala_research.evaluation.benchmark import EditSetting, edited_frames
from vala_research.evaluation.edit_cases import ClipCase, EditCase
from vala_research.evaluation.fusion_plans import Plan, inverted_sources
from vala_research.evaluation.fusion_study import FRAMEWISE, VIDEO, judged, single_models
from vala_research.evaluation.statistics import paired_gain
from vala_research.methods.fusion import FusionSchedule, match_moments

SAME, UNTRAINED, OTHER_CLIP = "same space", "untrained", "another clip"
INVERSION, EDIT = "inversion", "edit"
NORMALISED = ", normalised"

# Models of another space.


@dataclass(frozen=True)
class ForeignPlan(Plan):
    """A plan whose image sources live in another latent space than the pipeline's VAE.

    angle: degrees by which pairs of channels are rotated there; 0 is the same space, 180 flips
    every sign. is_trained: False is a network of random weights.
    """

    angle: float = 0.0
    is_trained: bool = True

    def inverting(self) -> str:
        return f"{super().inverting()} {self.angle} {self.is_trained}"

    def built(self, pipe) -> list[Source]:
        sources = super().built(pipe)
        unet = foreign_unet(pipe.unet, self.angle, self.is_trained)
        pairs = zip(self.sources, sources, strict=True)
        return [replace(s, unet=unet) if kind == "image" else s for kind, s in pairs]


def rotation(angle: float, n_channels: int) -> Float[Tensor, "c c"]:
    """Rotates channels 0 and 1, 2 and 3, ... by degrees: orthogonal, so that noise stays noise."""
    a = radians(angle)
    block = torch.tensor([[cos(a), -sin(a)], [sin(a), cos(a)]], dtype=torch.float64)
    pairs = torch.block_diag(*[block] * (n_channels // 2), *[torch.ones(1, 1)] * (n_channels % 2))
    return pairs.float()


@lru_cache(maxsize=8)
def foreign_unet(
    unet: UNet2DConditionModel, angle: float, is_trained: bool
) -> UNet2DConditionModel:
    """The network as it were, had its VAE rotated channels: eps'(R z) = R eps(z).

    R is folded into the first and the last convolution; all other weights are the given network's.
    """
    if not is_trained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = UNet2DConditionModel.from_config(unet.config)
        return fresh.to(unet.device, unet.dtype).eval().requires_grad_(False)
    if angle == 0:
        return unet
    found = copy.deepcopy(unet, {id(p): p for p in unet.parameters()})
    r = rotation(angle, unet.config.in_channels).to(unet.device)
    first, last = found.conv_in, found.conv_out
    first.weight = _frozen(torch.einsum("oiyx,ji->ojyx", first.weight.float(), r), unet)
    last.weight = _frozen(torch.einsum("ko,oiyx->kiyx", r, last.weight.float()), unet)
    last.bias = _frozen(r @ last.bias.float(), unet)
    return found


def _frozen(weight: Tensor, unet: UNet2DConditionModel) -> nn.Parameter:
    return nn.Parameter(weight.to(unet.dtype), requires_grad=False)


def foreign_plans(
    motion: str = "miniature",
    angles: Iterable[float] = (0, 30, 60, 90, 180),
    has_untrained: bool = True,
    schedule: FusionSchedule = FusionSchedule(),  # noqa: B008 - frozen
) -> dict[str, ForeignPlan]:
    """A video model and an image model of the same space, of spaces rotated against it, of none."""
    plan = ForeignPlan(attentions=FRAMEWISE, motion=motion, schedule=schedule)
    found = {space_name(a): replace(plan, angle=float(a)) for a in angles}
    return found | ({UNTRAINED: replace(plan, is_trained=False)} if has_untrained else {})


def space_name(angle: float) -> str:
    return f"rotated by {angle:g}" if angle else SAME


def compatibility_settings(
    plans: Mapping[str, ForeignPlan], motion: str = "miniature", **common
) -> dict[str, EditSetting]:
    """Each plan with and without matched moments, and the video model alone."""
    fused = {
        name + suffix: EditSetting(fusion=replace(plan, normalise=bool(suffix)), **common)
        for name, plan in plans.items()
        for suffix in ("", NORMALISED)
    }
    return {VIDEO: single_models(motion, **common)[VIDEO]} | fused


# Cosines.


def latent_cosines(
    ours: Float[Tensor, "f c h w"], theirs: Float[Tensor, "f c h w"]
) -> dict[str, float]:
    """Mean over frames of the cosine between latents of the same frame, in [-1, 1].

    raw: as they are; centred: without each channel's mean over the clip; matched and
    matched_centred: after theirs were given our moments, as `fuse(..., normalise=True)` does.
    distance: |theirs - ours| / |ours|, over the clip; matched_distance likewise.
    """
    found = {}
    for name, z in (("", theirs), ("matched_", match_moments(theirs, ours))):
        found[f"{name}raw"] = _cosine(ours, z)
        found[f"{name}centred"] = _cosine(_centred(ours), _centred(z))
        found[f"{name}distance"] = ((z - ours).norm() / ours.norm()).item()
    found["matched"] = found.pop("matched_raw")
    return found


def _cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.flatten(1), b.flatten(1)).mean().item()


def _centred(z: Tensor) -> Tensor:
    return z - z.mean((0, 2, 3), keepdim=True)


Paths = dict[str, dict[str, list[Tensor]]]  # phase -> source -> latents, noisiest first


@torch.no_grad()
def source_paths(
    pipe, sources: Mapping[str, Source], case: EditCase | ClipCase, n_frames: int, size: int,
    steps: int, guidance: float,
) -> Paths:  # fmt: skip
    """Every source's latents at every level of its own inversion and of its own edit."""
    frames = case.material(n_frames, size).frames
    found, _ = inverted_sources(pipe, list(sources.values()), frames, case.source_prompt, steps)
    paths: Paths = {INVERSION: {}, EDIT: {}}
    for name, source in zip(sources, found, strict=True):
        paths[INVERSION][name] = list(source.latents.trajectory)
        edit = paths[EDIT][name] = [source.latents.latents]

        def note(_pipe, _i, _t, tensors: dict, edit: list[Tensor] = edit) -> None:
            edit.append(tensors["latents"])

        pipe(
            frames, case.prompt, case.source_prompt, num_inference_steps=steps,
            guidance_scale=guidance, fusion=Fusion([source] * 2, FusionSchedule(tau=1.0)),
            output_type="latent", callback_on_step_end=note,
        )  # fmt: skip
    return paths


def cosine_rows(
    pipe, cases: Sequence[EditCase | ClipCase], plans: Mapping[str, Plan], n_frames: int = 8,
    size: int = 64, steps: int = 15, guidance: float = 2.0,
) -> pd.DataFrame:  # fmt: skip
    """Cosines of each plan's last source to the first plan's source 0: a row a clip, phase, level.

    Of several edits of a clip the last one counts. t: the diffusion step of the level, 0 being the
    clean end. With two or more clips "another clip" is the first plan's last source on the next
    clip: what latents share that have only their level in common.
    """
    cases = list({case.index: case for case in cases}.values())
    first, *_ = plans.values()
    sources = {VIDEO: first.built(pipe)[0]}
    sources |= {name: plan.built(pipe)[-1] for name, plan in plans.items()}
    known = [source_paths(pipe, sources, c, n_frames, size, steps, guidance) for c in cases]
    times = [*Schedule.from_scheduler(pipe.scheduler, steps).timesteps, 0]
    rows, control = [], next(iter(plans))
    for i, (case, paths) in enumerate(zip(cases, known, strict=True)):
        for phase, found in paths.items():
            theirs = {name: found[name] for name in plans}
            if len(cases) > 1:
                theirs[OTHER_CLIP] = known[(i + 1) % len(cases)][phase][control]
            rows += [
                {"index": case.index, "phase": phase, "t": t, "source": name}
                | latent_cosines(found[VIDEO][level], path[level])
                for name, path in theirs.items()
                for level, t in enumerate(times)
            ]
    return pd.DataFrame(rows)


# What the rows say.


def compatibility_claims(
    cosines: pd.DataFrame, rows: pd.DataFrame, foreign: Iterable[str] = (), metric: str = "psnr"
) -> pd.DataFrame:
    """Verdicts on the seed's assumption, its break condition, and its proposal to normalise.

    foreign: names of the plans that live elsewhere. metric: of the rows, larger being better.
    """
    psnr = rows.pivot_table(metric, "index", "setting")
    alike = cosines[cosines.phase == EDIT].pivot_table("centred", "index", "source")
    claims = []
    if OTHER_CLIP in alike:
        text = "latents of the same frames agree more than those of other clips"
        claims.append((text, "cosine", alike[SAME], alike[OTHER_CLIP]))
    text = "normalising gains in the same space"
    claims.append((text, metric, psnr[SAME + NORMALISED], psnr[SAME]))
    for name in foreign:
        claims.append((f"{name} is worse than the same space", metric, psnr[SAME], psnr[name]))
        text = f"normalising gains for {name}"
        claims.append((text, metric, psnr[name + NORMALISED], psnr[name]))
        text = f"{name}, normalised, is still worse than the same space"
        claims.append((text, metric, psnr[SAME], psnr[name + NORMALISED]))
    return pd.DataFrame(
        judged(text, name, paired_gain(better.to_numpy(), than.to_numpy()))
        for text, name, better, than in claims
    )


def compared_frames(
    pipe, case: EditCase | ClipCase, settings: Mapping[str, EditSetting], n_frames: int, size: int
) -> dict[str, Float[Tensor, "f c h w"]]:
    """The edited clip of every setting, and the source and true edit where known, for a strip."""
    material = case.material(n_frames, size)
    known = {"source": material.frames}
    known |= {} if material.truth is None else {"true edit": material.truth}
    edits = edited_frames(pipe, case, dict(settings), n_frames, size)
    return known | {name.replace(", ", ",\n"): frames for name, frames in edits.items()}
