"""Whether an adapter makes neighbouring frames alike: over the steps of an edit, and over training.

Fig. 4 of the theory paper (arXiv 2504.16016) of GE-Adapter. Similarity stands beside the temporal
loss throughout: the loss alone is as low for steady flicker.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from vala_research.adapter.settings import BLOCKS, AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter, temporal_features
from vala_research.diffusion.backbone import Backbone
from vala_research.evaluation.cases import ClipCase, EditCase
from vala_research.evaluation.figures import COLOURS, STYLE
from vala_research.evaluation.flops import STABLE_DIFFUSION_1_5, forward_flops, meta_unet
from vala_research.methods.prompt_tokens import pooled_tokens
from vala_research.methods.temporal import frame_similarity


@torch.no_grad()
def similarity_of_steps(
    pipe, cases: Iterable[EditCase | ClipCase], n_frames: int, size: int, **edit
) -> list[dict]:
    """Rows of clip, step (from noise), t, latents, features: mean cosines of neighbouring frames.

    latents: after the step. features: at the hook sites, of all guidance branches. edit: arguments
    of the pipeline's call; the adapter it has loaded acts as they say.
    """
    rows = []
    for number, case in enumerate(cases):
        frames = case.material(n_frames, size).frames
        with temporal_features(pipe.unet) as features:

            def note(_pipe, i: int, t: int, tensors: dict, number=number, features=features):
                clips = [c for x in features.values() for c in x.unflatten(0, (-1, n_frames))]
                similar = torch.stack([frame_similarity(c).mean() for c in clips]).mean().item()
                z = frame_similarity(tensors["latents"]).mean().item()
                rows.append({"clip": number, "step": i, "t": t, "latents": z, "features": similar})
                return {}

            pipe(
                frames, case.prompt, case.source_prompt, callback_on_step_end=note,
                output_type="latent", **edit,
            )  # fmt: skip
    return rows


def training_curve(folder: str | Path) -> pd.DataFrame:
    """Columns step, temporal, similarity: on held-out clips (`curves.csv`), else of the log.

    The log's steps each saw other clips and timesteps: means over a fiftieth of the training.
    """
    folder, names = Path(folder), ["step", "temporal", "similarity"]
    if (folder / "curves.csv").exists():
        return pd.read_csv(folder / "curves.csv")
    log = pd.read_csv(folder / "log.csv")[names].dropna()
    return log.groupby(log.step * 50 // (log.step.max() + 1)).mean().reset_index(drop=True)


def similarity_figure(steps: pd.DataFrame, training: pd.DataFrame) -> Figure:
    """Left: similarity over the steps of edits, by `setting`. Right: over training, with the loss.

    steps: rows of `similarity_of_steps` with a column `setting`. training: of
    `losses_of_checkpoints`.
    """
    with rc_context(STYLE):
        fig = Figure(figsize=(7.0, 2.7))
        left, middle, right = fig.subplots(1, 3)
        for axes, what in ((left, "latents"), (middle, "features")):
            for (name, rows), colour in zip(
                steps.groupby("setting", sort=False), COLOURS, strict=False
            ):
                mean = rows.groupby("t")[what].mean()
                axes.plot(mean.index, mean, color=colour, marker="o", markersize=2, label=name)
            axes.invert_xaxis()
            axes.set(xlabel="timestep t (noise to clip)", title=f"{what} during an edit")
        left.set_ylabel("mean cosine of neighbours")
        fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        right.plot(training.step, training.similarity, color=COLOURS[0], marker="o", markersize=2)
        right.set(xlabel="training step", title="features over training")
        right.set_ylabel("mean cosine of features", color=COLOURS[0])
        other = right.twinx()
        other.plot(training.step, 1000 * training.temporal, color=COLOURS[1], linestyle="--")
        other.set_ylabel("temporal loss x 1000", color=COLOURS[1])
        other.grid(False)
        other.spines["right"].set_visible(True)
    return fig


SDXL = dict(
    sample_size=128, in_channels=4, out_channels=4, layers_per_block=2, cross_attention_dim=2048,
    attention_head_dim=(5, 10, 20), block_out_channels=(320, 640, 1280),
    transformer_layers_per_block=(1, 2, 10), use_linear_projection=True,
    down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
    up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"), addition_embed_type="text_time",
    addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
)  # fmt: skip
BACKBONES = {"Stable Diffusion 1.5": STABLE_DIFFUSION_1_5, "SDXL": SDXL}
D_VISION, N_TEXT, N_VISION = 768, 77, 50  # of CLIP ViT-B/32 and its text encoder
# Millions of parameters as the paper gives them, all for Stable Diffusion 1.5.
PAPER = (
    ("LoRA, 'for the UNet portion'", 0.755),
    ("prompt tokens, 'the PrefixToken module'", 2.3),
    ("prompt tokens, 'for the prompt portion'", 15.4),
    ("prompt tokens, 'the adapter parameter size'; also given as the text encoder's", 123.0),
    ("UNet; also given as the adapter's 'total size'", 860.0),
)


def parameter_table(settings: AdapterSettings = AdapterSettings()) -> list[dict]:
    """Parameters by backbone and blocks, in millions; `share` of the UNet's, in per cent."""
    rows = []
    for name, config in BACKBONES.items():
        for blocks in BLOCKS:
            unet = meta_unet(config)
            n_unet = sum(p.numel() for p in unet.parameters())
            adapter = TemporalAdapter.attach(unet, replace(settings, blocks=blocks), D_VISION)
            n_lora = sum(p.numel() for _, p in adapter.lora_parameters())
            rows.append(
                {
                    "backbone": name,
                    "blocks": blocks,
                    "LoRA": n_lora / 1e6,
                    "tokens": (adapter.n_parameters - n_lora) / 1e6,
                    "UNet": n_unet / 1e6,
                    "share": 100 * adapter.n_parameters / n_unet,
                }
            )
    return rows


def flop_table(
    settings: AdapterSettings = AdapterSettings(),
    config: Mapping = STABLE_DIFFUSION_1_5,
    n_frames: int = 16,
    side: int = 64,
) -> dict[str, float]:
    """FLOPs of one forward of the clip, frame by frame: bare, with the LoRA, and with tokens too.

    As in an edit with the LoRA unfused; merged into the weights it costs nothing. The tokens only
    lengthen the text. side: of the latents.
    """
    unet = meta_unet(config)
    found = {"bare": forward_flops(unet, "own", n_frames, side, side)}
    TemporalAdapter.attach(unet, settings, D_VISION)
    found["LoRA"] = forward_flops(unet, "own", n_frames, side, side)
    found["LoRA and tokens"] = forward_flops(
        unet, "own", n_frames, side, side, n_text=n_text(settings)
    )
    return {name: float(n) for name, n in found.items()}


def n_text(settings: AdapterSettings) -> int:
    """Tokens that cross-attention sees: those of the text, and the adapter's before them."""
    pictures = torch.zeros(1, N_VISION, 1)
    n_frame_tokens = pooled_tokens(pictures, settings.pooling).shape[1]
    return N_TEXT + settings.n_shared + n_frame_tokens * settings.uses_frame_tokens


@torch.no_grad()
def timed(
    adapter: TemporalAdapter,
    z: Float[Tensor, "g f c h w"],
    text: Float[Tensor, "g n d"],
    vision: Float[Tensor, "f m d_vision"] | None = None,
    n_repeats: int = 5,
) -> dict[str, float]:
    """Milliseconds of one forward, the best of several: LoRA off, LoRA on, and with tokens too.

    The three take turns, so that a machine busy with something else is busy for all of them.
    """
    backbone, is_cuda = Backbone(adapter.unet), z.is_cuda
    rows = adapter.condition(text, vision)
    ways = {"bare": (False, text), "LoRA": (True, text), "LoRA and tokens": (True, rows)}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(n_repeats + 1):  # the first turn warms up
        for name, (is_active, tokens) in ways.items():
            with adapter.active(is_active):
                start = time.perf_counter()
                backbone(z, 500, tokens)
                if is_cuda:
                    torch.cuda.synchronize()
                best[name] = min(best[name], 1000 * (time.perf_counter() - start))
    return best
