"""The Inception network of FID: 2048 numbers a picture (Szegedy et al. 2016, Heusel et al. 2017).

FID's own weights (TensorFlow's of 2015) and its pooling, which torchvision's network has not;
every package that carries it needs torchvision and reads a pickle. As tensor names,
https://github.com/mseitzer/pytorch-fid has them: `Mixed_5b.branch1x1.conv.weight`, `.bn.weight`...
"""

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vala_research.evaluation.weights import read_weights, tensor_of

# A block's branches: names of convolutions one after the other. `/`: stride 2, no padding; `a|b`:
# both, side by side; `avg` and `max` pool 3x3.
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
    """The network's tensors by name; load once, pass to every `fid`."""

    weights: dict[str, Tensor]

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike) -> "Inception":
        """`model.safetensors` of a folder or hub id."""
        purpose = "Inception v3 as FID uses it"
        return cls(read_weights(name_or_path, "model.safetensors", purpose))

    @torch.no_grad()
    def embeddings(self, frames: Float[Tensor, "f 3 h w"], batch: int = 16) -> Float[Tensor, "f d"]:
        """Pooled features of pictures in [0, 1], d = 2048; resized to 299x299, bilinear."""
        size, found = (SIDE, SIDE), []
        for part in frames.split(batch):
            x = F.interpolate(part, size, mode="bilinear", align_corners=False)
            found.append(self._forward(2 * x - 1).mean((2, 3)))
        return torch.cat(found)

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
