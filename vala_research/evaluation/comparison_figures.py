"""A comparison at a glance: what each editor gains on a baseline, and what it costs."""

import textwrap
from collections.abc import Iterable, Mapping

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from vala_research.diffusion.attention import AnchorAttention, KeyframeAttention, Policy
from vala_research.diffusion.editing import ANCHORS
from vala_research.evaluation.benchmark import EditSetting, Keyframes
from vala_research.evaluation.costs import forward_flops, meta_anchors, meta_unet
from vala_research.evaluation.figures import COLOURS, STYLE, Picture
from vala_research.methods.anchors import AnchorSettings

# What a panel is called, and the factor of its numbers.
TITLES = {
    "psnr": ("PSNR to the true edit, dB", 1),
    "success": ("attribute success, %", 100),
    "warp_error": ("E_warp x 1000, reduction", 1000),
    "warp_error_truth": ("E_warp x 1000, true edit's flow, reduction", 1000),
    "clip_f": ("CLIP-F", 1),
    "clip_t": ("CLIP-T", 1),
    "inversion_psnr": ("reconstruction, dB", 1),
    "lpips": ("LPIPS of neighbours, reduction", 1),
    "lpips_miniature": ("LPIPS (miniature) x 1000, reduction", 1000),
    "fid": ("FID to the source, reduction", 1),
    "fid_miniature": ("FID (miniature) x 1000, reduction", 1000),
}


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


def gains_figure(
    table: pd.DataFrame,
    costs: Mapping[str, float] | None = None,
    metrics: Iterable[str] = ("warp_error", "psnr", "success"),
) -> Figure:
    """A dot and its 95% interval for each editor and metric: the paired gain on the baseline.

    table: of `comparison.comparison_table`; right of zero is better in every panel. Editors whose
    name holds "VALA" are drawn in colour; beside each name its cost, if given.
    """
    gains = table.dropna(subset="gain")
    names = list(dict.fromkeys(gains.setting))
    metrics = [m for m in metrics if m in set(gains.metric)]
    (baseline,) = set(table.setting) - set(names)
    with rc_context(STYLE):
        fig = Picture(figsize=(7.0, 0.55 + 0.19 * len(names) + 0.25 * (len(metrics) > 3)))
        axes = fig.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            title, factor = TITLES[metric]
            rows = gains[gains.metric == metric].set_index("setting").loc[names]
            for y, (name, row) in enumerate(rows.iterrows()):
                colour = COLOURS[1] if "VALA" in name else COLOURS[0]
                ax.plot([factor * row.gain_low, factor * row.gain_high], [y, y], color=colour)
                ax.plot(factor * row.gain, y, "o", color=colour)
            ax.axvline(0, color="black", linewidth=0.8)
            ax.set_title("\n".join(textwrap.wrap(title, 80 // len(metrics))))
            ax.tick_params(axis="y", length=0)
        labels = [f"{n}  ({costs[n]:.2f}x)" if costs else n for n in names]
        axes[0].set_yticks(range(len(names)), labels)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        n = int(gains.n.min())
        fig.supxlabel(
            f"gain on `{baseline}`, same clips (n = {n}), 95% interval; right is better", fontsize=8
        )
    return fig
