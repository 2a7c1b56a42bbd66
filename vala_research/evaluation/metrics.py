"""Metrics: one function per reported number. Each states its range, direction and reference.

LPIPS, FID and structure distance lie in files of their own: `perceptual`, `frechet`, `structure`.
Presence, path error, size error and jitter of an object are those of `placement`.
Conventions: pixels in [0, 1]; a value per frame, then the mean over frames; flow in pixels per
frame, dx first. Papers differ in backbone, pairs, reference and scale, so every docstring names
its own.
"""

import os
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vala_research import InputError
from vala_research.evaluation.checks import checked, paired
from vala_research.evaluation.clip_scores import ClipScorer, miniature_scorer
from vala_research.evaluation.placement import jitter as jitter  # named here, like every metric
from vala_research.evaluation.placement import path_error as path_error
from vala_research.evaluation.placement import presence as presence
from vala_research.evaluation.placement import size_error as size_error
from vala_research.methods import optical_flow
from vala_research.sprites.reader import read_attributes

ClipSource = str | os.PathLike | ClipScorer  # a folder, a hub id, or one already loaded
PICKSCORE = "yuvalkirstain/PickScore_v1"
PICKSCORE_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # that of its base model


# --- against a reference: the true edit, the source, or the VAE round trip (say which) ---------


def psnr(frames: Float[Tensor, "..."], reference: Float[Tensor, "..."]) -> float:
    """Peak signal-to-noise ratio, dB, in [0, inf]; larger is better.

    mean over frames of -10 log10(MSE_f), data range 1 (mean of logarithms, not logarithm of the
    mean). A frame identical to its reference is at infinity, and so is then the mean.
    """
    frames, reference = paired(frames, reference)
    pairs = zip(frames.split(64), reference.split(64), strict=True)  # a long clip is not copied
    mse = torch.cat([(a - b).square().flatten(1).mean(1) for a, b in pairs])
    return (-10 * torch.log10(mse)).mean().item()


def ssim(frames: Float[Tensor, "..."], reference: Float[Tensor, "..."]) -> float:
    """Structural similarity (Wang et al. 2004), in [-1, 1]; larger is better, 1 is identical.

    scikit-image's: window 7x7, uniform, per channel, data range 1, mean over frames.
    """
    from skimage.metrics import structural_similarity

    frames, reference = paired(frames, reference)
    if min(frames.shape[-2:]) < 7:
        raise InputError(f"frames are {tuple(frames.shape[-2:])}: SSIM needs 7x7 pixels or more.")
    values = [
        structural_similarity(a, b, channel_axis=0, data_range=1.0)
        for a, b in zip(frames.numpy(), reference.numpy(), strict=True)
    ]
    return float(np.mean(values))


def inversion_psnr(
    reconstruction: Float[Tensor, "..."],
    source: Float[Tensor, "..."],
    vae_round_trip: Float[Tensor, "..."],
) -> dict[str, float]:
    """PSNR (dB, larger is better) of invert + denoise with unchanged prompt, to both references.

    `to_source` is bounded by the VAE; `to_vae` (decode(encode(source))) measures inversion alone.
    """
    return {
        "to_source": psnr(reconstruction, source),
        "to_vae": psnr(reconstruction, vae_round_trip),
    }


# --- with a CLIPModel: name it beside the number, scores of two models do not compare ----------


def clip_text(frames: Float[Tensor, "..."], prompt: str, clip: ClipSource) -> float:
    """CLIP-T: 100 x mean over frames of cos(image, prompt), in [-100, 100]; larger is better."""
    scorer, images = _embedded(frames, clip)
    return 100 * (images @ scorer.texts([prompt])[0]).mean().item()


def clip_frames(
    frames: Float[Tensor, "..."], clip: ClipSource, pairs: str = "consecutive"
) -> float:
    """CLIP-F: 100 x mean cos(image_i, image_j), in [-100, 100]; larger is smoother.

    pairs: "consecutive", j = i + 1 (FateZero, FlowVid); "all", every i < j (LOVEU, RAVE).
    A frozen clip scores 100: read it beside a measure of the edit.
    """
    if pairs not in ("consecutive", "all"):
        raise InputError(f"pairs is {pairs!r}: choose consecutive or all.")
    checked(frames, at_least=2)
    _, images = _embedded(frames, clip)
    if pairs == "consecutive":
        return 100 * (images[1:] * images[:-1]).sum(1).mean().item()
    cosines = images @ images.T
    i, j = torch.triu_indices(*cosines.shape, offset=1)
    return 100 * cosines[i, j].mean().item()


def frame_accuracy(
    frames: Float[Tensor, "..."], prompt: str, source_prompt: str, clip: ClipSource
) -> float:
    """Share of frames with cos(image, prompt) >= cos(image, source_prompt) (FateZero).

    In [0, 1]; larger is better; two equal prompts score 1.
    """
    scorer, images = _embedded(frames, clip)
    target, source = scorer.texts([prompt, source_prompt])
    return (images @ target >= images @ source).float().mean().item()


# --- motion -----------------------------------------------------------------------------------


def warp_error(frames: Float[Tensor, "..."], flow: Float[Tensor, "..."], valid: Tensor) -> float:
    """E_warp: mean over valid pixels and pairs of |x_t - warp(x_t+1)|^2; smaller is smoother.

    In [0, 1], a mean over channels, unscaled (papers print x 1e-3). warp(x_t+1)(p) =
    x_t+1(p + flow_t(p)), bilinear. `flow` (f-1 2 h w, pixels, dx first) is the source's, from t
    to t+1; `valid` (f-1 1 h w) is 0 where the point is hidden or outside at t+1. Every valid
    pixel weighs the same. A frozen clip of a moving source does not score 0.
    """
    frames = checked(frames, at_least=2)
    f, _, h, w = frames.shape
    if flow.shape != (f - 1, 2, h, w) or valid.shape != (f - 1, 1, h, w):
        raise InputError(
            f"flow {tuple(flow.shape)} and valid {tuple(valid.shape)} do not fit the frames: "
            f"give {(f - 1, 2, h, w)} and {(f - 1, 1, h, w)}."
        )
    flow, valid = flow.to(frames), valid.to(frames)
    if not torch.isfinite(flow).all() or valid.sum() == 0:
        raise InputError("flow holds NaN or valid is 0 everywhere: no pixel can be followed.")
    difference = (frames[:-1] - optical_flow.warp(frames[1:], flow)).square().mean(1, keepdim=True)
    return ((difference * valid).sum() / valid.sum()).item()


def estimate_flow(
    frames: Float[Tensor, "..."], tolerance: float = 1.0
) -> tuple[Float[Tensor, "p 2 h w"], Bool[Tensor, "p 1 h w"]]:
    """Flow t -> t+1 in pixels and its validity, for clips without true flow.

    As `optical_flow.estimate_flow`, of checked frames.
    """
    return optical_flow.estimate_flow(checked(frames, at_least=2), tolerance)


# --- the sprite world -------------------------------------------------------------------------


def attribute_success(
    frames: Float[Tensor, "..."],
    target: dict[str, str | None],
    read: Callable[[Tensor], list[dict]] = read_attributes,
) -> float:
    """Share of frames whose attributes all equal the target's; in [0, 1], larger is better.

    target: any of shape, colour, background, pattern. read: the reader of attributes; the default
    is that of the sprite world, which is exact on clean frames.
    """
    rows = read(checked(frames))
    if not target or not set(target) <= set(rows[0]):
        raise InputError(f"target {target} names no attribute or unknown ones: {set(rows[0])}.")
    return float(np.mean([all(row[k] == v for k, v in target.items()) for row in rows]))


def _embedded(frames: Tensor, clip) -> tuple[ClipScorer, Tensor]:
    frames = checked(frames)
    scorer = clip if isinstance(clip, ClipScorer) else ClipScorer.from_pretrained(clip)
    return scorer, scorer.images(frames)


def pickscore(
    frames: Float[Tensor, "..."],
    prompt: str,
    clip: str | os.PathLike | ClipScorer = PICKSCORE,
    tokenizer: str | os.PathLike | None = None,
) -> float:
    """exp(logit_scale) x mean over frames of cos(image, prompt); larger is better.

    In [-100, 100] where the scale is CLIP's 100, and about 20 for photographs. The difference of
    two edits counts.
    clip: PickScore_v1 in safetensors, by folder or hub id. tokenizer: its own folder or hub id; the
    default lies beside the weights (for the hub's PickScore_v1: with its base model).
    Raises InputError when there are no such weights.
    """
    frames = checked(frames)
    if not isinstance(clip, ClipScorer):
        if tokenizer is None and str(clip) == PICKSCORE:
            tokenizer = PICKSCORE_TOKENIZER
        clip = ClipScorer.from_pretrained(clip, tokenizer)
    cosines = clip.images(frames) @ clip.texts([prompt])[0]
    return (clip.model.logit_scale.exp().item() * cosines).mean().item()


def pickscore_miniature(frames: Float[Tensor, "..."], prompt: str) -> float:
    """The formula of PickScore with the miniature's CLIP, which knows no preferences.

    Runs anywhere. It is a second CLIP-T, on the scale of the logits: never compare it with
    `pickscore`.
    """
    return pickscore(frames, prompt, miniature_scorer())
