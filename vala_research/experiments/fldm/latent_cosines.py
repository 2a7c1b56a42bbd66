"""Cosines between the latents of two models, along the inversion and along the edit of a clip.

FLDM (arXiv 2310.16400) assumes that its models share one latent space and does not measure it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vala_research.diffusion.schedule import Schedule
from vala_research.editing.fusion import Fusion
from vala_research.editing.plan import Plan, inverted_sources
from vala_research.editing.source import Source
from vala_research.evaluation.cases import ClipCase, EditCase
from vala_research.experiments.fldm.foreign_space import OTHER_CLIP
from vala_research.experiments.fldm.settings import NEVER, VIDEO
from vala_research.methods.fusion import match_moments

INVERSION, EDIT = "inversion", "edit"  # phases
Paths = dict[str, dict[str, list[Tensor]]]  # phase -> source -> latents, noisiest first


def latent_cosines(
    ours: Float[Tensor, "f c h w"], theirs: Float[Tensor, "f c h w"]
) -> dict[str, float]:
    """Measure how alike latents of the same frames are: the mean over frames of their cosine.

    * raw: the latents as they are.
    * centred: without each channel's mean over the clip.
    * matched, matched_centred: after `theirs` got the moments of `ours`, as in
      `fuse(..., normalise=True)`.
    * distance: |theirs - ours| / |ours| over the clip; matched_distance likewise.
    """
    cosines = {}
    for name, z in (("", theirs), ("matched_", match_moments(theirs, ours))):
        cosines[f"{name}raw"] = _cosine(ours, z)
        cosines[f"{name}centred"] = _cosine(_centred(ours), _centred(z))
        cosines[f"{name}distance"] = ((z - ours).norm() / ours.norm()).item()
    cosines["matched"] = cosines.pop("matched_raw")
    return cosines


def _cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.flatten(1), b.flatten(1)).mean().item()


def _centred(z: Tensor) -> Tensor:
    return z - z.mean((0, 2, 3), keepdim=True)


@torch.no_grad()
def source_paths(
    pipe, sources: Mapping[str, Source], case: EditCase | ClipCase, n_frames: int, size: int,
    steps: int, guidance: float,
) -> Paths:  # fmt: skip
    """Collect every source's latents at every level of its inversion and of its edit alone."""
    frames = case.material(n_frames, size).frames
    inverted, _ = inverted_sources(pipe, list(sources.values()), frames, case.source_prompt, steps)
    paths: Paths = {INVERSION: {}, EDIT: {}}
    for name, source in zip(sources, inverted, strict=True):
        paths[INVERSION][name] = list(source.latents.trajectory)
        edit = paths[EDIT][name] = [source.latents.latents]

        def note(_pipe, _i, _t, tensors: dict, edit: list[Tensor] = edit) -> None:
            edit.append(tensors["latents"])

        pipe(
            frames, case.prompt, case.source_prompt, num_inference_steps=steps,
            guidance_scale=guidance, fusion=Fusion([source] * 2, NEVER),
            output_type="latent", callback_on_step_end=note,
        )  # fmt: skip
    return paths


def cosine_rows(
    pipe, cases: Sequence[EditCase | ClipCase], plans: Mapping[str, Plan], n_frames: int = 8,
    size: int = 64, steps: int = 15, guidance: float = 2.0,
) -> pd.DataFrame:  # fmt: skip
    """Compare each plan's last source with the first plan's source 0, the video model.

    Returns one row per clip, phase, level and source. t is the diffusion step of the level; 0 is
    the clean end. If a clip has several edits, the last one counts. With two or more clips,
    "another clip" is the first plan's last source on the next clip: it shows what latents share
    that have only their level in common.
    """
    cases = list({case.index: case for case in cases}.values())
    first, *_ = plans.values()
    sources = {VIDEO: first.built(pipe)[0]}
    sources |= {name: plan.built(pipe)[-1] for name, plan in plans.items()}
    known = [source_paths(pipe, sources, c, n_frames, size, steps, guidance) for c in cases]
    times = [*Schedule.from_scheduler(pipe.scheduler, steps).timesteps, 0]

    rows, control = [], next(iter(plans))
    for i, (case, paths) in enumerate(zip(cases, known, strict=True)):
        for phase, latents in paths.items():
            theirs = {name: latents[name] for name in plans}
            if len(cases) > 1:
                theirs[OTHER_CLIP] = known[(i + 1) % len(cases)][phase][control]
            rows += [
                {"index": case.index, "phase": phase, "t": t, "source": name}
                | latent_cosines(latents[VIDEO][level], path[level])
                for name, path in theirs.items()
                for level, t in enumerate(times)
            ]
    return pd.DataFrame(rows)
