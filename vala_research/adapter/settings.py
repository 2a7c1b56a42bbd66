"""Settings of a temporal adapter, and the LoRA that they describe in a UNet.

GE-Adapter (arXiv 2501.04606) 3.2 and 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_ltx import LTXAttention
from diffusers.models.transformers.transformer_wan import WanAttention
from peft import LoraConfig

from vala_research import InputError, chosen_from, number_in
from vala_research.diffusion.backbone import UNet
from vala_research.diffusion.patching import is_temporal
from vala_research.diffusion.records import blocks_of, is_transformer, record_of, text_width
from vala_research.methods.prompt_tokens import PromptTokenSettings

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
BLOCKS = {
    "all": ("down_blocks.", "mid_block.", "up_blocks."),
    "down_up": ("down_blocks.", "up_blocks."),
    "down": ("down_blocks.",),
}


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter consists of, and where an edit uses it.

    rank, alpha: of the LoRA; its output is scaled by alpha / rank.
    blocks: the UNet blocks whose attention has a LoRA: "all", "down_up" or "down". A transformer
        has it in all of its blocks, or, "down", in the first half.
    n_shared, pooling: as in `PromptTokenSettings`.
    uses_frame_tokens: whether the picture of each frame gives tokens. Without them and with
        n_shared = 0, the adapter has no tokens.
    interval: diffusion steps of an edit at which the adapter acts, as fractions of T.
    scale: strength of the LoRA in an edit (the paper's merge ratio).
    token_interval: interval of the tokens; None is that of the LoRA.
    """

    rank: int = 4
    alpha: int = 4
    blocks: str = "all"
    n_shared: int = 18
    uses_frame_tokens: bool = True
    pooling: str = "pairs"
    interval: Sequence[float] = (0.9, 1.0)
    scale: float = 0.5
    token_interval: Sequence[float] | None = None

    def __post_init__(self):
        name = f"A LoRA of rank {str(self.rank)[:20]} and alpha {str(self.alpha)[:20]}: rank"
        number_in(name, self.rank, 1, 1024, whole=True)
        number_in(name.replace(": rank", ": alpha"), self.alpha, 1, 1e6)
        if not isinstance(self.uses_frame_tokens, bool):
            raise InputError(
                f"uses_frame_tokens is {self.uses_frame_tokens!r}: give true or false."
            )
        chosen_from("blocks", self.blocks, BLOCKS)
        PromptTokenSettings(self.n_shared, self.pooling)
        for name in ("interval", "token_interval"):  # json has lists
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checked_interval(getattr(self, name)))
        checked_scale(self.scale)

    @property
    def has_tokens(self) -> bool:
        """Whether the adapter puts any token before the text."""
        return self.uses_frame_tokens or self.n_shared > 0


def checked_interval(interval: Any) -> tuple[float, float]:
    """The interval as two ordered fractions of T. Raises InputError otherwise."""
    try:
        low, high = (float(x) for x in interval)
    except (TypeError, ValueError, OverflowError):
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"The adapter's interval is {interval!r}: give two fractions of the diffusion steps, "
            "0 <= from <= to <= 1."
        )
    return low, high


def checked_scale(scale: float) -> float:
    """The scale as a finite number. Raises InputError otherwise."""
    number_in("The adapter's scale", scale, -1e3, 1e3)
    return float(scale)


def lora_config(unet: UNet, settings: AdapterSettings) -> LoraConfig:
    """peft's description: projections of spatial self- and cross-attention, none along time."""
    names = [
        name for name, module in unet.named_modules()
        if isinstance(module, Attention | WanAttention | LTXAttention) and not is_temporal(name)
        and name.rpartition(".")[2] in ("attn", "attn1", "attn2")
    ]  # fmt: skip
    if record_of(unet).is_unet:
        names = [name for name in names if name.startswith(BLOCKS[settings.blocks])]
    elif names:
        names = blocks_of(names, settings.blocks)
    targets = [f"{name}.{projection}" for name in names for projection in PROJECTIONS]
    if not targets:
        raise InputError(
            f"The UNet has no attention in its blocks {settings.blocks!r}: choose others."
        )
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets,
        init_lora_weights="gaussian",
    )


def signature(unet: UNet) -> dict[str, Any]:
    """What two UNets must share for an adapter of one to fit the other."""
    config = unet.config
    if is_transformer(unet):
        sizes = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels")
        return {size: config[size] for size in sizes} | {"text_width": text_width(unet)}
    return {
        "block_out_channels": list(config.block_out_channels),
        "cross_attention_dim": config.cross_attention_dim,
        "in_channels": config.in_channels,
    }


def lora_shapes(unet: UNet, settings: AdapterSettings) -> dict[str, tuple[int, int]]:
    """Names and shapes (out, in) of the LoRA matrices in a UNet."""
    shapes, r = {}, settings.rank
    for name in lora_config(unet, settings).target_modules:
        layer = unet.get_submodule(name)
        shapes[f"{name}.lora_A.weight"] = (r, layer.in_features)
        shapes[f"{name}.lora_B.weight"] = (layer.out_features, r)
    return shapes
