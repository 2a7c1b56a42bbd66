"""FLOPs of attention policies, counted on the code that runs, and by hand.

A UNet on the meta device has shapes and no numbers: Stable Diffusion 1.5 over 128 frames is counted
exactly in half a second, without weights. FLOPs are two per multiply-add of a convolution, a linear
layer, an attention or an einsum (torch.utils.flop_counter).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from vala_research.diffusion.attention import (
    AnchorAttention,
    KeyframeAttention,
    Lookup,
    Policy,
    own,
)
from vala_research.diffusion.backbone import UNet
from vala_research.evaluation.flops import forward_flops, meta_anchors

CURVES = {
    "extended": "all frames", "own + 4 site anchors": "own + 4 site anchors",
    "own + 2 site anchors": "own + 2 site anchors", "sparse_causal": "first + previous",
    "own + 256 token anchors": "own + 256 token anchors",
}  # fmt: skip


def self_attention_layers(unet: UNet, height: int, width: int) -> list[tuple[int, int]]:
    """List (tokens n, channels c) of every self-attention layer."""
    layers = []

    def note(keys: Tensor, values: Tensor, layer: str) -> Lookup:
        layers.append((keys.shape[1], keys.shape[2]))
        return own(keys, values, layer)

    forward_flops(unet, note, 1, height, width)
    return layers


@dataclass(frozen=True)
class Editor:
    """A policy, and the keys that a query costs beyond the n tokens of its own frame, by hand.

    more_keys: of n. A product with weights over all tokens costs as much as attention does. So K
    pseudo-frames cost each query K n keys that it sees and K that are made; K tokens cost K that
    it sees and K that are made.
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
    """List the policies that are compared, by name; height, width: of the latents."""

    def anchored(k: int, granularity: str) -> Policy:
        anchors = meta_anchors(n_frames, height * width, k, granularity)
        return AnchorAttention(anchors, (height, width))

    compared = {
        "own": Editor("own", lambda n: 0),
        "first": Editor("first", lambda n: 0),
        "sparse_causal": Editor("sparse_causal", lambda n: n),
        "extended": Editor("extended", lambda n: (n_frames - 1) * n),
    }
    for k in n_keyframes:
        compared[f"own + {k} key frames"] = Editor(
            KeyframeAttention(tuple(range(k))), lambda n, k=k: k * n
        )
    for k in n_site:
        compared[f"own + {k} site anchors"] = Editor(anchored(k, "site"), lambda n, k=k: k * n + k)
    for k in n_token:
        compared[f"own + {k} token anchors"] = Editor(anchored(k, "token"), lambda n, k=k: 2 * k)
    return compared


def flop_table(
    unet: UNet, compared: Mapping[str, Editor], n_frames: int, height: int, width: int
) -> list[dict]:
    """Count each policy: one row per policy.

    Returns rows of policy, frames, and
        tflop: of the forward of one frame;
        ratio: relative to editing frame by frame. It holds for a whole edit, since inversion and
            every branch run the same forward;
        arithmetic: the ratio by hand, 1 + sum over layers of 4 n c more_keys(n) / FLOPs of a frame.
    """
    layers = self_attention_layers(unet, height, width)
    frame = forward_flops(unet, "own", 1, height, width)
    rows = []
    for name, editor in compared.items():
        flops = forward_flops(unet, editor.policy, n_frames, height, width) / n_frames
        more = sum(4 * n * c * editor.more_keys(n) for n, c in layers)
        rows.append(
            {"policy": name, "frames": n_frames, "tflop": flops / 1e12, "ratio": flops / frame,
             "arithmetic": 1 + more / frame}
        )  # fmt: skip
    return rows


def cost_curves(unet: UNet, n_frames: Iterable[int], height: int, width: int) -> list[dict]:
    """Count the policies that CURVES names for each number of frames: rows of `flop_table`."""
    rows = []
    for f in n_frames:
        drawn = {k: v for k, v in editors(f, height, width).items() if k in CURVES}
        rows += flop_table(unet, drawn, f, height, width)
    return rows
