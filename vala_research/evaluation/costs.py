"""What an edit costs is counted, not timed: every product the library's own code runs, weightless.

A UNet on the meta device has shapes and no numbers, so that Stable Diffusion 1.5 over 128 frames is
counted exactly in half a second; FLOPs are two for each multiply-add of a convolution, a linear
layer, an attention or an einsum (torch.utils.flop_counter).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from vala_research import InputError
from vala_research.diffusion.attention import (
    AnchorAttention,
    KeyframeAttention,
    Lookup,
    Policy,
    attention_patches,
    own,
)
from vala_research.diffusion.backbone import UNet, chunking, patched
from vala_research.evaluation.figures import COLOURS, STYLE
from vala_research.methods.anchors import Anchors, AnchorSettings, assign_anchors

STABLE_DIFFUSION_1_5 = dict(
    sample_size=64, in_channels=4, out_channels=4, layers_per_block=2, cross_attention_dim=768,
    attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280),
    down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
)  # fmt: skip
# What one elementary operation on one element is charged at most: an exponential in software.
FLOPS_PER_ELEMENT = 20


def meta_unet(config: Mapping = STABLE_DIFFUSION_1_5) -> UNet2DConditionModel:
    """A UNet of that configuration without weights: nothing is downloaded, nothing is computed."""
    with torch.device("meta"):
        return UNet2DConditionModel(**config).eval().requires_grad_(False)


def meta_anchors(n_frames: int, n_sites: int, n_anchors: int, granularity: str) -> Anchors:
    """Anchors of shapes alone: what attending to them costs does not depend on their values."""
    f, n, k, d = n_frames, n_sites, n_anchors, 4
    sizes = dict(
        responsibilities=(f, n, k), directions=(k, d), concentrations=(k,), weights=(k,),
        summaries=(f, k, d),
    )  # fmt: skip
    tensors = {name: torch.empty(size, device="meta") for name, size in sizes.items()}
    return Anchors(**tensors, objective=[], granularity=granularity)


def forward_flops(
    unet: UNet,
    attention: str | Policy,
    n_frames: int,
    height: int,
    width: int,
    n_branches: int = 1,
    frames_per_chunk: int | None = None,
    n_text: int = 77,
) -> int:
    """FLOPs of one UNet forward of all frames and branches, at height x width latent sites.

    Counts what the policy makes of keys and values as well: copies cost nothing, compression does.
    Raises InputError for a UNet with weights: on the CPU, torch's counter misses the attention.
    """
    if unet.device.type != "meta":
        raise InputError(f"The UNet is on {unet.device}: count on the meta device, by meta_unet.")
    size = n_frames if frames_per_chunk is None else frames_per_chunk
    patches = attention_patches(unet, attention, n_branches, size)
    if size < n_frames:
        patches.append(chunking(n_branches, size))
    z = torch.empty(n_branches * n_frames, unet.config.in_channels, height, width, device="meta")
    text = torch.empty(len(z), n_text, unet.config.cross_attention_dim, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter, patched(unet, *patches):
        unet(z, 0, text, return_dict=False)
    return counter.get_total_flops()


def self_attention_layers(unet: UNet, height: int, width: int) -> list[tuple[int, int]]:
    """(tokens n, channels c) of every self-attention layer."""
    layers = []

    def note(keys: Tensor, values: Tensor, layer: str) -> Lookup:
        layers.append((keys.shape[1], keys.shape[2]))
        return own(keys, values, layer)

    forward_flops(unet, note, 1, height, width)
    return layers


@dataclass(frozen=True)
class Editor:
    """A policy, and how many keys a query of a layer of n tokens costs beyond its own n.

    more_keys: by hand. A product with weights over all tokens costs as much as attending does:
    K pseudo-frames cost each query K n keys seen and K made, K tokens K seen and K made.
    """

    policy: str | Policy
    more_keys: Callable[[int], int]


def editors(
    n_frames: int,
    height: int,
    width: int,
    n_keyframes: Iterable[int] = (2, 4),
    n_site: Iterable[int] = (2, 4, 8),
    n_token: Iterable[int] = (64, 256, 1024),
) -> dict[str, Editor]:
    """The policies that are compared, by name."""

    def anchored(k: int, granularity: str) -> Policy:
        anchors = meta_anchors(n_frames, height * width, k, granularity)
        return AnchorAttention(anchors, (height, width))

    found = {
        "own": Editor("own", lambda n: 0),
        "first": Editor("first", lambda n: 0),
        "sparse_causal": Editor("sparse_causal", lambda n: n),
        "extended": Editor("extended", lambda n: (n_frames - 1) * n),
    }
    for k in n_keyframes:
        found[f"own + {k} key frames"] = Editor(
            KeyframeAttention(tuple(range(k))), lambda n, k=k: k * n
        )
    for k in n_site:
        found[f"own + {k} site anchors"] = Editor(anchored(k, "site"), lambda n, k=k: k * n + k)
    for k in n_token:
        found[f"own + {k} token anchors"] = Editor(anchored(k, "token"), lambda n, k=k: 2 * k)
    return found


def flop_table(unet: UNet, found: Mapping[str, Editor], n_frames: int, height: int, width: int):
    """Rows of policy, frames, tflop (of one frame's forward), ratio to editing frame by frame.

    arithmetic: the ratio by hand, 1 + sum over layers of 4 n c more_keys(n) / FLOPs of a frame.
    A ratio holds for a whole edit, since inversion and every branch run the same forward.
    """
    layers = self_attention_layers(unet, height, width)
    frame = forward_flops(unet, "own", 1, height, width)
    rows = []
    for name, editor in found.items():
        flops = forward_flops(unet, editor.policy, n_frames, height, width) / n_frames
        more = sum(4 * n * c * editor.more_keys(n) for n, c in layers)
        rows.append(
            {"policy": name, "frames": n_frames, "tflop": flops / 1e12, "ratio": flops / frame,
             "arithmetic": 1 + more / frame}
        )  # fmt: skip
    return rows


# The assignment, which runs once a clip.


class ElementCounter(TorchDispatchMode):
    """Elements that operations other than counted products read or write, views included."""

    def __init__(self):
        super().__init__()
        self.n_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket not in flop_registry:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.n_elements += max((prod(x.shape) for x in tensors), default=0)
        return out


def assignment_flops(
    features: Float[Tensor, "f n d"],
    settings: AnchorSettings = AnchorSettings(),  # noqa: B008 - frozen
) -> dict[str, int]:
    """What `assign_anchors` does on these features.

    products: FLOPs of its matrix products. elements: of all else, the largest tensor of each
    operation. flops: an upper bound, products and FLOPS_PER_ELEMENT for each element.
    """
    with FlopCounterMode(display=False) as counter, ElementCounter() as rest:
        assign_anchors(features, settings)
    products = counter.get_total_flops()
    return {
        "products": products,
        "elements": rest.n_elements,
        "flops": products + FLOPS_PER_ELEMENT * rest.n_elements,
    }


CURVES = {
    "extended": "all frames", "own + 4 site anchors": "own + 4 site anchors",
    "own + 2 site anchors": "own + 2 site anchors", "sparse_causal": "first + previous",
    "own + 256 token anchors": "own + 256 token anchors",
}  # fmt: skip


def cost_curves(unet: UNet, n_frames: Iterable[int], height: int, width: int) -> list[dict]:
    """Rows of `flop_table` for each number of frames, of the policies that CURVES names."""
    rows = []
    for f in n_frames:
        found = {k: v for k, v in editors(f, height, width).items() if k in CURVES}
        rows += flop_table(unet, found, f, height, width)
    return rows


def cost_figure(rows: Iterable[dict]) -> Figure:
    """FLOPs relative to editing frame by frame, against the number of frames."""
    rows = sorted(rows, key=lambda row: row["frames"])
    with rc_context(STYLE):
        fig = Figure(figsize=(3.4, 2.6))
        axes = fig.add_subplot()
        for (name, label), colour, marker in zip(CURVES.items(), COLOURS, "osD^v", strict=False):
            line = {r["frames"]: r["ratio"] for r in rows if r["policy"] == name}
            axes.plot(list(line), list(line.values()), color=colour, marker=marker, label=label)
        axes.axhline(1, color="black", linestyle=":", label="own frame alone")
        axes.set(xscale="log", yscale="log", xlabel="frames", ylabel="FLOPs / frame by frame")
        ticks = sorted({row["frames"] for row in rows})
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        axes.minorticks_off()
        axes.legend(handlelength=1.8, labelspacing=0.3)
    return fig
