"""VALA's anchors and key frames beside the attention policies of the field (notebook 12)."""

from __future__ import annotations

from collections.abc import Mapping

from vala_research.diffusion.attention import (
    ANCHORS,
    AnchorAttention,
    KeyframeAttention,
    Keyframes,
    Policy,
)
from vala_research.evaluation.benchmark import EditSetting
from vala_research.evaluation.flops import forward_flops, meta_anchors, meta_unet
from vala_research.methods.anchors import AnchorSettings


def policies(n: int = 2, n_tokens: int = 256, **common) -> dict[str, EditSetting]:
    """The attention policies of the field beside VALA's; n: frames attended to besides the own.

    common: arguments of every EditSetting.
    """
    attention = {
        "own": "own",
        "first": "first",
        "sparse_causal": "sparse_causal",
        "extended": "extended",
        f"uniform {n} key frames": Keyframes("uniform", n),
        f"random {n} key frames": Keyframes("random", n),
        f"k-means {n} key frames": Keyframes("kmeans", n),
        f"VALA {n} key frames": Keyframes("vala", n),
        f"VALA {n} site anchors": AnchorSettings(n_anchors=n, granularity="site"),
        f"VALA {2 * n} site anchors": AnchorSettings(n_anchors=2 * n, granularity="site"),
        f"VALA {n_tokens} token anchors": AnchorSettings(n_anchors=n_tokens, granularity="token"),
    }
    return {name: EditSetting(attention=a, **common) for name, a in attention.items()}


def relative_costs(
    settings: Mapping[str, EditSetting], n_frames: int = 32, height: int = 64, width: int = 64
) -> dict[str, float]:
    """FLOPs of one Stable Diffusion 1.5 forward of the clip over those of editing frame by frame.

    height, width: of the latents; 64 is 512 pixels. Counted without weights (`costs`).
    """
    unet = meta_unet()

    def policy(how: str | AnchorSettings | Keyframes) -> str | Policy:
        if isinstance(how, Keyframes):
            return KeyframeAttention(tuple(range(how.n)))
        if isinstance(how, AnchorSettings) or how == "anchors":
            s = ANCHORS if isinstance(how, str) else how
            anchors = meta_anchors(n_frames, height * width, s.n_anchors, s.granularity)
            return AnchorAttention(anchors, (height, width))
        return how

    counted = {
        name: forward_flops(unet, policy(s.attention), n_frames, height, width)
        for name, s in settings.items()
    }
    own = forward_flops(unet, "own", n_frames, height, width)
    return {name: flops / own for name, flops in counted.items()}
