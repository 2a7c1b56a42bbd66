"""LPIPS: distance of two pictures in the features of a trained network.

Zhang et al., CVPR 2018. The published package needs torchvision and reads pickles, so its two
networks are written out here. Their weights are two files, each in a folder or hub repository:

* `model.safetensors`: AlexNet or VGG-16 under torchvision's names, `features.0.weight`, ... (for
  VGG-16 the hub has "timm/vgg16.tv_in1k");
* `heads.safetensors`: the linear heads, `lin0.model.1.weight` (1 c 1 1) to `lin4...`, as in the
  lpips package's `weights/v0.1/alex.pth` or `vgg.pth`.
"""

import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.checkpoint import check_runs, read_weights, tensor_of
from vala_research.evaluation.checks import paired
from vala_research.evaluation.clip_scores import miniature_scorer

# Per convolution: number, stride, padding, is pooling before it, is its rectified output compared.
ALEXNET = (
    (0, 4, 2, False, True), (3, 1, 2, True, True), (6, 1, 1, True, True), (8, 1, 1, False, True),
    (10, 1, 1, False, True),
)  # fmt: skip
VGG16 = tuple(
    (number, 1, 1, number in (5, 10, 17, 24), number in (2, 7, 14, 21, 28))
    for number in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
)
NETWORKS = {11: (ALEXNET, 3), 3: (VGG16, 2)}  # by the first kernel's side: layers, side of pooling
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1]
LEAST_SIDE = 32


@dataclass(frozen=True)
class Lpips:
    """AlexNet or VGG-16 (told apart by the first kernel) and five linear heads. Load once."""

    weights: dict[str, Tensor]
    heads: tuple[Tensor, ...]

    @classmethod
    def from_pretrained(
        cls, weights: str | os.PathLike, heads: str | os.PathLike | None = None
    ) -> "Lpips":
        """Load the files named above. heads: their folder or hub id, if not that of the weights."""
        of = "AlexNet or VGG-16 under torchvision's names"
        network = read_weights(weights, "model.safetensors", of)
        first = tensor_of(network, "features.0.weight", of)
        if first.ndim != 4 or first.shape[-1] not in NETWORKS:
            raise InputError(f"The weights in {weights} are of another network: give {of}.")
        layers = NETWORKS[first.shape[-1]][0]
        kept = {
            name: tensor_of(network, name, of)
            for number, *_ in layers
            for name in (f"features.{number}.weight", f"features.{number}.bias")
        }
        linear = read_weights(weights if heads is None else heads, "heads.safetensors", "of LPIPS")
        names = [f"lin{i}.model.1.weight" for i in range(5)]
        tensors = tuple(tensor_of(linear, name, "the heads of LPIPS") for name in names)
        widths = [len(kept[f"features.{number}.bias"]) for number, *_, tap in layers if tap]
        if [tuple(head.shape) for head in tensors] != [(1, n, 1, 1) for n in widths]:
            raise InputError(f"The heads in {heads or weights} are those of another network.")
        frames = torch.empty(1, 3, 64, 64, device="meta")
        check_runs(lambda w: cls(w, tensors).features(frames), kept, of)
        return cls(kept, tensors)

    @torch.no_grad()
    def distances(
        self, a: Float[Tensor, "f 3 h w"], b: Float[Tensor, "f 3 h w"], batch: int = 16
    ) -> Float[Tensor, " f"]:
        """LPIPS of each pair of pictures in [0, 1]."""
        distances = []
        for x, y in zip(a.split(batch), b.split(batch), strict=True):
            pairs = zip(self.heads, self.features(x), self.features(y), strict=True)
            distances.append(sum(_between(u, v, head) for head, u, v in pairs))
        return torch.cat(distances)

    def features(self, x: Float[Tensor, "f 3 h w"]) -> list[Float[Tensor, "f c height width"]]:
        """The five rectified outputs that are compared."""
        layers, side = NETWORKS[self.weights["features.0.weight"].shape[-1]]
        shift, scale = (torch.tensor(v).to(x)[:, None, None] for v in (SHIFT, SCALE))
        x, compared = (2 * x - 1 - shift) / scale, []
        for number, stride, padding, is_pooled, is_compared in layers:
            if is_pooled:
                x = F.max_pool2d(x, side, 2)
            weight, bias = (self.weights[f"features.{number}.{k}"] for k in ("weight", "bias"))
            x = F.conv2d(x, weight.to(x), bias.to(x), stride, padding).relu()
            if is_compared:
                compared.append(x)
        return compared


def _between(u: Tensor, v: Tensor, head: Tensor) -> Float[Tensor, " f"]:
    """mean over places of sum_c head_c (u_c - v_c)^2, u and v of unit length over channels."""
    u, v = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (u, v))
    return ((u - v).square() * head.to(u).view(1, -1, 1, 1)).sum(1).mean((1, 2))


def lpips(
    frames: Float[Tensor, "..."],
    reference: Float[Tensor, "..."],
    weights: str | os.PathLike | Lpips,
    heads: str | os.PathLike | None = None,
) -> float:
    """LPIPS, mean over frames; at least 0, smaller is nearer.

    reference: the source or the true edit (say which). For neighbours, as GE-Adapter reports it,
    call lpips(frames[1:], frames[:-1], ...). Pixels in [0, 1] become [-1, 1] here, at their own
    size. Name the network beside the number: values of AlexNet and VGG-16 do not compare.
    Raises InputError without weights (see this file's head for their layout).
    """
    frames, reference = (x.expand(-1, 3, -1, -1) for x in paired(frames, reference))
    if min(frames.shape[-2:]) < LEAST_SIDE:
        raise InputError(
            f"frames are {tuple(frames.shape[-2:])}: LPIPS needs {LEAST_SIDE}x{LEAST_SIDE} or more."
        )
    model = weights if isinstance(weights, Lpips) else Lpips.from_pretrained(weights, heads)
    return model.distances(frames, reference).mean().item()


def lpips_miniature(frames: Float[Tensor, "..."], reference: Float[Tensor, "..."]) -> float:
    """The formula of LPIPS in the layers of the miniature's CLIP vision tower; runs anywhere.

    Mean over frames, layers and tokens of |u - v|^2 for unit vectors u and v; in [0, 4], smaller is
    nearer. It has no learned heads. Never compare it with `lpips`.
    """
    frames, reference = paired(frames, reference)
    scorer = miniature_scorer()
    layers = zip(scorer.layers(frames), scorer.layers(reference), strict=True)
    values = [(F.normalize(u, dim=-1) - F.normalize(v, dim=-1)).square().sum(-1) for u, v in layers]
    return torch.stack(values).mean().item()
