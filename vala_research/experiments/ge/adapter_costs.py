"""Count what an adapter adds to its backbone: parameters, FLOPs and milliseconds.

The numbers of GE-Adapter (arXiv 2501.04606) stand beside them; they contradict each other.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research.adapter.settings import BLOCKS, AdapterSettings
from vala_research.adapter.temporal_adapter import TemporalAdapter
from vala_research.diffusion.backbone import Backbone
from vala_research.evaluation.flops import STABLE_DIFFUSION_1_5, forward_flops, meta_unet
from vala_research.methods.prompt_tokens import pooled_tokens

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
    """One row per backbone and blocks: parameters in millions; share, in per cent of the UNet's."""
    rows = []
    for name, config in BACKBONES.items():
        unet = meta_unet(config)
        n_unet = sum(p.numel() for p in unet.parameters())
        for blocks in BLOCKS:
            adapter = TemporalAdapter.attach(unet, replace(settings, blocks=blocks), D_VISION)
            n_lora = sum(p.numel() for _, p in adapter.lora_parameters())
            rows.append({
                "backbone": name, "blocks": blocks, "LoRA": n_lora / 1e6,
                "tokens": (adapter.n_parameters - n_lora) / 1e6, "UNet": n_unet / 1e6,
                "share": 100 * adapter.n_parameters / n_unet,
            })  # fmt: skip
            adapter.detach()
    return rows


def flop_table(
    settings: AdapterSettings = AdapterSettings(),
    config: Mapping = STABLE_DIFFUSION_1_5,
    n_frames: int = 16,
    side: int = 64,
) -> dict[str, float]:
    """FLOPs of one forward of the clip, frame by frame: bare, with the LoRA, and with tokens too.

    The LoRA is not merged, as in an edit; merged into the weights it costs nothing. The tokens only
    lengthen the text. side: of the latents.
    """
    unet = meta_unet(config)
    flops = {"bare": forward_flops(unet, "own", n_frames, side, side)}
    TemporalAdapter.attach(unet, settings, D_VISION)
    flops["LoRA"] = forward_flops(unet, "own", n_frames, side, side)
    flops["LoRA and tokens"] = forward_flops(
        unet, "own", n_frames, side, side, n_text=n_text(settings)
    )
    return {name: float(n) for name, n in flops.items()}


def n_text(settings: AdapterSettings) -> int:
    """Number of tokens in cross-attention: the text and the adapter's tokens before it."""
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

    The three take turns, so that other load on the machine meets all of them alike.
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
