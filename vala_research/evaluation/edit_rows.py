"""Metrics of one edited clip, as columns of a row."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from vala_research.evaluation import metrics
from vala_research.evaluation.cases import ClipCase, EditCase, Material
from vala_research.evaluation.placement import placement_row
from vala_research.sprites.reader import read_attributes

ATTRIBUTES = ("shape", "colour", "background", "pattern")


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
