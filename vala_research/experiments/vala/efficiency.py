"""What an edit costs is counted, not timed: every product the library's own code runs, weightless.

A UNet on the meta device has shapes and no numbers, so that Stable Diffusion 1.5 over 128 frames is
counted exactly in half a second; FLOPs are two for each multiply-add of a convolution, a linear
layer, an attention or an einsum (torch.utils.flop_counter).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from vala_research.diffusion.attention import (
    AnchorAttention,
    KeyframeAttention,
    Lookup,
    Policy,
    own,
)
from vala_research.diffusion.backbone import UNet
from vala_research.evaluation.figures import COLOURS, STYLE
from vala_research.evaluation.flops import forward_flops, meta_anchors


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


def slopes(rows: Sequence[dict], measure: str) -> list[float]:
    """MiB a frame between consecutive lengths: equal ones are linear growth."""
    return [
        (b[measure] - a[measure]) / (b["frames"] - a["frames"])
        for a, b in zip(rows, rows[1:], strict=False)
    ]


def memory_figure(rows: Sequence[dict], shows_process: bool = True) -> Figure:
    """Peak memory against frames: live tensors, and how much the process grew since the first."""
    with rc_context(STYLE):
        fig = Figure()
        axes = fig.add_subplot()
        names = dict.fromkeys(row["attention"] for row in rows)
        # Curves that coincide stay visible: each is drawn thinner on the one before.
        for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
            line = [row for row in rows if row["attention"] == name]
            x = [row["frames"] for row in line]
            live = [row["live"] for row in line]
            style = dict(linewidth=max(0.8, 4 - i), markersize=max(2, 7 - 1.5 * i))
            axes.plot(x, live, "o-", color=colour, label=name, **style)
            if shows_process:
                grown = [row["peak"] - line[0]["peak"] + live[0] for row in line]
                axes.plot(x, grown, "_", color=colour, markersize=14)
        if shows_process:
            axes.plot([], [], "_", color="grey", markersize=14, label="growth of the process")
        axes.set(xlabel="frames", ylabel="peak memory, MiB", ylim=(0, None))
        axes.set_xticks(sorted({row["frames"] for row in rows}))
        axes.legend()
    return fig
