"""FID: the Frechet distance between two Gaussians that are fitted to pictures' features.

Heusel et al., NeurIPS 2017; Dowson and Landau 1982.
"""

import os
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, miniature_path
from vala_research.evaluation.checks import checked
from vala_research.evaluation.clip_scores import ClipScorer
from vala_research.evaluation.inception import Inception


def frechet_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), S with divisor n - 1; at least 0.

    With centred X (n d) and Y (m d): S_x S_y has the non-zero eigenvalues of (Y X^T)(Y X^T)^T up to
    the divisors, so the root's trace is |Y X^T|_* / sqrt((n-1)(m-1)), the nuclear norm of an
    m x n matrix: exact for singular covariances too, where a matrix square root is not.
    Warns when a covariance is rank-deficient (n <= d): the distance is then biased upwards.
    """
    for z in (x, y):
        if len(z) < 2:
            raise InputError("FID of a single frame: a covariance needs 2 or more in each set.")
    n, m, d = len(x), len(y), x.shape[1]
    if min(n, m) <= d:
        warnings.warn(
            f"FID is rank-deficient: {min(n, m)} frames give a covariance of rank"
            f" {min(n, m) - 1} at most, of {d}; it is biased upwards and compares only with one of"
            " as many frames.",
            stacklevel=2,
        )
    x, y = x.double(), y.double()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    a, b = (x - x.mean(0)) / (n - 1) ** 0.5, (y - y.mean(0)) / (m - 1) ** 0.5
    if max(n, m) > d:  # the same trace from d x d: |R_y R_x^T|_*, as a = Q_x R_x
        a, b = (torch.linalg.qr(z, mode="r").R if len(z) > d else z for z in (a, b))
    cross = torch.linalg.svdvals(b @ a.T).sum()
    return max(0.0, (shift + a.square().sum() + b.square().sum() - 2 * cross).item())


def fid(
    frames: Float[Tensor, "..."],
    reference: Float[Tensor, "..."],
    weights: str | os.PathLike | Inception,
) -> float:
    """FID between two sets of frames (n c h w, m c h w); at least 0, smaller is nearer.

    weights: `model.safetensors` of FID's Inception v3 in a folder or hub id. Resized to 299x299,
    bilinear without antialiasing (pytorch-fid); clean-fid's resize gives other numbers. Warns when
    n <= 2048: a clip's few frames give a rank-deficient covariance. Name n beside the number.
    Raises InputError without weights, or with a single frame.
    """
    sets = _colour(frames), _colour(reference, "reference frames")
    model = weights if isinstance(weights, Inception) else Inception.from_pretrained(weights)
    return frechet_distance(*(model.embeddings(x) for x in sets))


def fid_miniature_clip(frames: Float[Tensor, "..."], reference: Float[Tensor, "..."]) -> float:
    """FID's formula on the miniature CLIP's 64 numbers a frame (unit vectors); runs anywhere.

    In [0, 4], smaller is nearer. Warns when n <= 64. No number of it compares with one of `fid`.
    """
    sets = _colour(frames), _colour(reference, "reference frames")
    scorer = ClipScorer.from_pretrained(miniature_path("clip"))
    return frechet_distance(*(scorer.images(x) for x in sets))


def _colour(frames: Tensor, name: str = "frames") -> Tensor:
    return checked(frames, name=name).expand(-1, 3, -1, -1)
