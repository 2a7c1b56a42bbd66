"""Numbers and picture of one edit, for `vala edit`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from vala_research import InputError

PICTURES = ("png", "jpg", "jpeg", "webp", "tif", "tiff", "pdf", "svg")
FLOWS_AT_ONCE = 128  # pairs of frames


def scores_of(source, edited, prompt: str, model: str, truth: tuple | None) -> dict[str, float]:
    """Measure an edit without a reference, and against the true edit where it is known."""
    from vala_research.evaluation import metrics
    from vala_research.evaluation.clip_scores import miniature_scorer

    scores = {"PSNR of the edit to the source, dB": metrics.psnr(edited, source)}
    with suppress(InputError):  # one frame, tiny frames, or nothing that can be followed
        error = warp_error_by_source(edited, source)
        scores["E_warp by the source's flow x 1000, less is better"] = 1000 * error
    if model == "miniature":  # its CLIPModel lies beside it
        clip = miniature_scorer()
        scores["CLIP-T to the prompt, more is better"] = metrics.clip_text(edited, prompt, clip)
        if len(edited) > 1:
            scores["CLIP-F of neighbours, more is smoother"] = metrics.clip_frames(edited, clip)
    if truth:
        clip, scene = truth
        scores["PSNR of the source to the true edit, dB"] = metrics.psnr(source, clip.frames)
        scores["PSNR of the edit to the true edit, dB"] = metrics.psnr(edited, clip.frames)
        scores["SSIM of the edit to the true edit"] = metrics.ssim(edited, clip.frames)
        scores["share of frames with every attribute right"] = metrics.attribute_success(
            edited, scene.attributes
        )
    return scores


def warp_error_by_source(edited, source) -> float:
    """E_warp of an edit by the flow that is estimated on its source.

    The flow of a long clip is estimated part by part, so that it is never held as a whole. Parts
    share a frame, so no pair is lost; each counts by its valid pixels.
    Raises InputError where no pixel of the clip can be followed.
    """
    from vala_research.evaluation import metrics

    total, n_valid = 0.0, 0
    for start in range(0, max(1, len(source) - 1), FLOWS_AT_ONCE):
        part = slice(start, start + FLOWS_AT_ONCE + 1)
        flow, valid = metrics.estimate_flow(source[part])
        if n := int(valid.sum()):
            total += n * metrics.warp_error(edited[part], flow, valid)
            n_valid += n
    if not n_valid:
        raise InputError("No pixel of the source can be followed: E_warp is not defined.")
    return total / n_valid


def strip_format(path: Path) -> str:
    """Return the format that a picture's suffix names; png where there is none."""
    kind = path.suffix.lower().removeprefix(".") or PICTURES[0]
    if kind not in PICTURES:
        raise InputError(f"{path}: end the picture's name in one of .{', .'.join(PICTURES)}.")
    return kind


def write_strip(path: Path, source, edited, truth: tuple | None) -> Path:
    """Draw source and edit, and the true edit where it is known, one row each."""
    from vala_research.evaluation.figures import Picture
    from vala_research.evaluation.sheet import strip
    from vala_research.files import written_whole

    rows = {"source": source, "edit": edited} | ({"true edit": truth[0].frames} if truth else {})
    with written_whole(path) as unfinished:
        picture = strip(rows)
        picture.savefig(unfinished, format=strip_format(path), dpi=Picture.pixels_per_inch)
    return path
