"""FID: the Frechet distance between two Gaussians fitted to the features of pictures.

Heusel et al., NeurIPS 2017; Dowson and Landau 1982.
"""

import os
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.checkpoint import check_runs, read_weights, tensor_of
from vala_research.evaluation.checks import checked
from vala_research.evaluation.clip_scores import miniature_scorer


def frechet_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), S with divisor n - 1; at least 0.

    With centred X (n d) and Y (m d), S_x S_y has the non-zero eigenvalues of (Y X^T)(Y X^T)^T up to
    the divisors. So the trace of the root is |Y X^T|_* / sqrt((n-1)(m-1)), the nuclear norm of an
    m x n matrix. It is exact for singular covariances too, unlike a matrix square root.
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
    x, y = x.cpu().double(), y.cpu().double()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    a, b = (x - x.mean(0)) / (n - 1) ** 0.5, (y - y.mean(0)) / (m - 1) ** 0.5
    if max(n, m) > d:  # the same trace from d x d: |R_y R_x^T|_*, as a = Q_x R_x
        a, b = (torch.linalg.qr(z, mode="r").R if len(z) > d else z for z in (a, b))
    cross = torch.linalg.svdvals(b @ a.T).sum()
    return max(0.0, (shift + a.square().sum() + b.square().sum() - 2 * cross).item())


def fid_miniature_clip(frames: Float[Tensor, "..."], reference: Float[Tensor, "..."]) -> float:
    """The formula of FID on the 64 numbers per frame of the miniature's CLIP; runs anywhere.

    In [0, 4], smaller is nearer. Warns when n <= 64. Never compare it with `fid`.
    """
    sets = _colour(frames), _colour(reference, "reference frames")
    scorer = miniature_scorer()
    return frechet_distance(*(scorer.images(x) for x in sets))


def _colour(frames: Tensor, name: str = "frames") -> Tensor:
    return checked(frames, name=name).expand(-1, 3, -1, -1)


# Branches of a block: names of convolutions in sequence. `/`: stride 2, no padding. `a|b`: both,
# side by side. `avg` and `max`: 3x3 pooling.
POOL = "branch_pool"
A = ("branch1x1", "branch5x5_1 branch5x5_2", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
     f"avg {POOL}")  # fmt: skip
B = ("branch3x3/", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3/", "max/")
C = ("branch1x1", "branch7x7_1 branch7x7_2 branch7x7_3",
     "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5",
     f"avg {POOL}")  # fmt: skip
D = ("branch3x3_1 branch3x3_2/", "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4/",
     "max/")  # fmt: skip
E = ("branch1x1", "branch3x3_1 branch3x3_2a|branch3x3_2b",
     "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a|branch3x3dbl_3b")  # fmt: skip
BLOCKS = {
    "Mixed_5b": A, "Mixed_5c": A, "Mixed_5d": A, "Mixed_6a": B, "Mixed_6b": C, "Mixed_6c": C,
    "Mixed_6d": C, "Mixed_6e": C, "Mixed_7a": D, "Mixed_7b": (*E, f"avg {POOL}"),
    "Mixed_7c": (*E, f"max {POOL}"),
}  # fmt: skip
SIDE, BN_EPS = 299, 1e-3


@dataclass(frozen=True)
class Inception:
    """Inception v3 as its tensors by name. Load it once and pass it to every `fid`."""

    weights: dict[str, Tensor]

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike) -> "Inception":
        """`model.safetensors` of a folder or hub id."""
        purpose = "Inception v3 as FID uses it"
        model = cls(read_weights(name_or_path, "model.safetensors", purpose))
        frames = torch.empty(1, 3, SIDE, SIDE, device="meta")
        check_runs(lambda w: cls(w).embeddings(frames), model.weights, purpose)
        return model

    @torch.no_grad()
    def embeddings(self, frames: Float[Tensor, "f 3 h w"], batch: int = 16) -> Float[Tensor, "f d"]:
        """Pooled features of pictures in [0, 1], d = 2048; resized to 299x299, bilinear."""
        size, pooled = (SIDE, SIDE), []
        for part in frames.split(batch):
            x = F.interpolate(part, size, mode="bilinear", align_corners=False)
            pooled.append(self._forward(2 * x - 1).mean((2, 3)))
        return torch.cat(pooled)

    def _forward(self, x: Tensor) -> Float[Tensor, "f d height width"]:
        x = self._convolved(x, "Conv2d_1a_3x3", stride=2, is_padded=False)
        x = self._convolved(x, "Conv2d_2a_3x3", is_padded=False)
        x = F.max_pool2d(self._convolved(x, "Conv2d_2b_3x3"), 3, 2)
        x = self._convolved(x, "Conv2d_3b_1x1")
        x = F.max_pool2d(self._convolved(x, "Conv2d_4a_3x3", is_padded=False), 3, 2)
        for block, branches in BLOCKS.items():
            x = torch.cat([self._branch(x, block, names.split()) for names in branches], 1)
        return x

    def _branch(self, x: Tensor, block: str, names: list[str]) -> Tensor:
        for name in names:
            if name == "avg":  # zeros beyond the border do not count: FID's difference
                x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            elif name == "max":
                x = F.max_pool2d(x, 3, 1, 1)
            elif name == "max/":
                x = F.max_pool2d(x, 3, 2)
            elif name.endswith("/"):
                x = self._convolved(x, f"{block}.{name[:-1]}", stride=2, is_padded=False)
            else:
                x = torch.cat([self._convolved(x, f"{block}.{n}") for n in name.split("|")], 1)
        return x

    def _convolved(self, x: Tensor, name: str, stride: int = 1, is_padded: bool = True) -> Tensor:
        """Convolution without bias, batch normalisation by the stored moments, rectifier."""
        weight = self._tensor(f"{name}.conv.weight")
        padding = [side // 2 for side in weight.shape[2:]] if is_padded else 0
        x = F.conv2d(x, weight, None, stride, padding)
        moments = [self._tensor(f"{name}.bn.{k}") for k in ("running_mean", "running_var")]
        affine = [self._tensor(f"{name}.bn.{k}") for k in ("weight", "bias")]
        return F.batch_norm(x, *moments, *affine, eps=BN_EPS).relu()

    def _tensor(self, name: str) -> Tensor:
        return tensor_of(self.weights, name, "FID's Inception v3, under pytorch-fid's names")


def fid(
    frames: Float[Tensor, "..."],
    reference: Float[Tensor, "..."],
    weights: str | os.PathLike | Inception,
) -> float:
    """FID between two sets of frames (n c h w, m c h w); at least 0, smaller is nearer.

    weights: `model.safetensors` of FID's Inception v3, in a folder or hub id. Frames are resized to
    299x299, bilinear without antialiasing, as in pytorch-fid; the resize of clean-fid gives other
    numbers. Warns when n <= 2048: so few frames give a rank-deficient covariance. Name n beside
    the number.
    Raises InputError without weights, or with a single frame.
    """
    sets = _colour(frames), _colour(reference, "reference frames")
    model = weights if isinstance(weights, Inception) else Inception.from_pretrained(weights)
    return frechet_distance(*(model.embeddings(x) for x in sets))
