"""A few low-rank weights in the attention, and a few tokens a frame, make an image model temporal.

GE-Adapter (arXiv 2501.04606): FTC blocks (3.2, Eqs. (1) to (6)) are LoRA (Hu et al. 2021) in the
attention projections; TSC (3.3) are `PromptTokens` before the text. The backbone stays frozen.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from vala_research import InputError
from vala_research.diffusion.adapter_files import read_adapter, write_adapter
from vala_research.diffusion.backbone import Patch, UNet, is_self_attention, patched
from vala_research.methods.prompt_tokens import PromptTokens, PromptTokenSettings

NAME = "temporal"  # of the LoRA inside the UNet, for peft
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
BLOCKS = {
    "all": ("down_blocks.", "mid_block.", "up_blocks."),
    "down_up": ("down_blocks.", "up_blocks."),
    "down": ("down_blocks.",),
}


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter is made of, and where an edit uses it.

    rank, alpha: of the LoRA, whose output is scaled by alpha / rank. blocks: whose attention has
    it, "all", "down_up" or "down". n_shared, pooling: of `PromptTokenSettings`; uses_frame_tokens:
    whether each frame's picture gives tokens; without these and n_shared = 0 there are none.
    interval: diffusion steps of an edit that the adapter acts on, as fractions of T. scale: of the
    LoRA in an edit (the paper's merge ratio).
    """

    rank: int = 4
    alpha: int = 4
    blocks: str = "all"
    n_shared: int = 18
    uses_frame_tokens: bool = True
    pooling: str = "pairs"
    interval: tuple[float, float] = (0.9, 1.0)
    scale: float = 0.5

    def __post_init__(self):
        if self.rank < 1 or self.alpha <= 0:
            raise InputError(
                f"A LoRA of rank {self.rank} and alpha {self.alpha}: give at least 1 of each."
            )
        if self.blocks not in BLOCKS:
            raise InputError(f"Unknown blocks {self.blocks!r}: choose one of {', '.join(BLOCKS)}.")
        PromptTokenSettings(self.n_shared, self.pooling)
        object.__setattr__(self, "interval", checked_interval(self.interval))
        checked_scale(self.scale)

    @property
    def has_tokens(self) -> bool:
        return self.uses_frame_tokens or self.n_shared > 0


def checked_interval(interval: tuple[float, float]) -> tuple[float, float]:
    """Two ordered fractions of T; InputError otherwise."""
    try:
        low, high = (float(x) for x in interval)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"The adapter's interval is {interval!r}: give two fractions of the diffusion steps, "
            "0 <= from <= to <= 1."
        )
    return low, high


def checked_scale(scale: float) -> float:
    """A finite number; InputError otherwise."""
    if not abs(scale) < float("inf"):
        raise InputError(f"The adapter's scale is {scale!r}: give a finite number, 0 for none.")
    return float(scale)


class TemporalAdapter:
    """LoRA inside a UNet, and prompt tokens beside it; made by `attach` or `load`.

    vision_encoder: folder or hub id of the CLIP model whose image tokens it reads.
    """

    def __init__(
        self,
        unet: UNet,
        settings: AdapterSettings,
        tokens: PromptTokens | None,
        vision_encoder: str | None = None,
    ):
        self.unet, self.settings, self.tokens = unet, settings, tokens
        self.vision_encoder = vision_encoder

    @classmethod
    def attach(
        cls,
        unet: UNet,
        settings: AdapterSettings = AdapterSettings(),  # noqa: B008 - frozen
        d_vision: int | None = None,
        generator: torch.Generator | None = None,
        vision_encoder: str | None = None,
    ) -> "TemporalAdapter":
        """Put an untrained LoRA into the UNet, which changes nothing yet, and make the tokens.

        A ~ N(0, 1/rank), B = 0, at least float32. Only these and the tokens require gradients
        afterwards: the UNet is frozen. d_vision: width of the image encoder's hidden states.
        Raises InputError when the UNet has a LoRA already, or d_vision is missing.
        """
        if any(isinstance(m, LoraLayer) for m in unet.modules()):
            raise InputError("The UNet has a LoRA already: fuse and unload it, or detach it.")
        if settings.uses_frame_tokens and d_vision is None:
            raise InputError(
                "The width of the image tokens is missing: give d_vision, or settings with "
                "uses_frame_tokens=False."
            )
        unet.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            unet.add_adapter(lora_config(unet, settings), adapter_name=NAME)
        tokens = None
        if settings.has_tokens:
            width = d_vision if settings.uses_frame_tokens else None
            d_text = unet.config.cross_attention_dim
            tokens = PromptTokens(settings.n_shared, width, d_text, settings.pooling, generator)
            tokens.to(unet.device)
        adapter = cls(unet, settings, tokens, vision_encoder)
        device = "cpu" if generator is None else generator.device
        for name, p in adapter.lora_parameters():
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
            if ".lora_A." in name:
                noise = torch.randn(p.shape, generator=generator, device=device, dtype=p.dtype)
                p.data.copy_(noise / settings.rank)
        return adapter

    def lora_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names in the UNet and parameters of the LoRA."""
        return [(n, p) for n, p in self.unet.named_parameters() if f".{NAME}." in n]

    def trainable(self) -> list[nn.Parameter]:
        """What training changes: the LoRA, then the tokens."""
        tokens = [] if self.tokens is None else list(self.tokens.parameters())
        return [p for _, p in self.lora_parameters()] + tokens

    parameters = trainable

    @property
    def n_parameters(self) -> int:
        """Of the LoRA and the tokens."""
        return sum(p.numel() for p in self.trainable())

    def condition(
        self, text: Float[Tensor, "g n d"], vision: Float[Tensor, "f m d_vision"] | None = None
    ) -> Float[Tensor, "g f l d"]:
        """Tokens before the text of every frame, both guidance branches alike.

        vision: hidden states of the image encoder, which frame tokens need. Frames that all have
        the same tokens share one row: then f = 1.
        """
        if self.tokens is None:
            return text[:, None]
        if not self.settings.uses_frame_tokens:
            vision = text.new_zeros(1, 1, 1)
        elif vision is None:
            raise InputError("This adapter has frame tokens: give the frames' image tokens.")
        rows = [self.tokens(vision, row.expand(len(vision), -1, -1)) for row in text]
        return torch.stack(rows)

    @contextmanager
    def active(self, is_active: bool, scale: float = 1.0) -> Iterator[None]:
        """The LoRA, times `scale`, or the UNet without it; as before on leaving.

        Nested, an outer False wins and scales multiply.
        """
        if not is_active:
            bare = Patch(_is_lora, forward=lambda _, module, __: module.base_layer.forward)
            with patched(self.unet, bare):
                yield
            return
        layers = [m for m in self.unet.modules() if _is_lora("", m)]
        before = [m.scaling[NAME] for m in layers]
        try:
            for module, value in zip(layers, before, strict=True):
                module.scaling[NAME] = value * scale
            yield
        finally:
            for module, value in zip(layers, before, strict=True):
                module.scaling[NAME] = value

    def detach(self) -> None:
        """Take the LoRA out of the UNet, whose own weights were never changed."""
        self.unet.unload_lora()

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """A folder for `load`; its LoRA is one for any pipeline's `load_lora_weights`."""
        config = self.unet.peft_config[NAME]
        keys = ("r", "lora_alpha", "target_modules")
        description = {
            "settings": asdict(self.settings),
            "backbone": signature(self.unet),
            "vision_encoder": self.vision_encoder,
        }
        lora = {n.replace(f".{NAME}.", "."): p for n, p in self.lora_parameters()}
        tokens = {} if self.tokens is None else self.tokens.state_dict()
        peft = {k: getattr(config, k) for k in keys} | {
            "target_modules": sorted(config.target_modules)
        }
        write_adapter(folder, description, lora, tokens, peft)

    @classmethod
    def load(
        cls, folder: str | os.PathLike, unet: UNet, is_trainable: bool = False
    ) -> "TemporalAdapter":
        """What `save_pretrained` wrote, in this UNet; in its precision unless it is to be trained.

        folder: "miniature" is the adapter of the miniature. Raises InputError before anything is
        changed: no adapter there, a pickle, an adapter of another backbone.
        """
        description, lora, tokens = read_adapter(folder)
        settings = _settings_of(description, folder)
        _check_backbone(description, lora, tokens, unet, settings, folder)
        d_vision = tokens["projection.weight"].shape[1] if settings.uses_frame_tokens else None
        adapter = cls.attach(
            unet, settings, d_vision, torch.Generator(), description.get("vision_encoder")
        )
        for name, p in adapter.lora_parameters():
            p.data.copy_(lora[name.replace(f".{NAME}.", ".")])
            if not is_trainable:
                p.data = p.data.to(unet.dtype)
        if adapter.tokens is not None:
            adapter.tokens.load_state_dict(tokens)
        for p in adapter.trainable():
            p.requires_grad_(is_trainable)
        return adapter


def lora_config(unet: UNet, settings: AdapterSettings) -> LoraConfig:
    """peft's description: the projections of self- and cross-attention, none of motion modules."""
    found = [
        f"{name}.{projection}"
        for name, module in unet.named_modules()
        if isinstance(module, Attention)
        and name.startswith(BLOCKS[settings.blocks])
        and "motion_modules" not in name
        and name.rpartition(".")[2] in ("attn1", "attn2")
        for projection in PROJECTIONS
    ]
    if not found:
        raise InputError(
            f"The UNet has no attention in its blocks {settings.blocks!r}: choose others."
        )
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=found,
        init_lora_weights="gaussian",
    )


def signature(unet: UNet) -> dict[str, Any]:
    """What two UNets share when an adapter of one fits the other."""
    config = unet.config
    return {
        "block_out_channels": list(config.block_out_channels),
        "cross_attention_dim": config.cross_attention_dim,
        "in_channels": config.in_channels,
    }


def lora_shapes(unet: UNet, settings: AdapterSettings) -> dict[str, tuple[int, int]]:
    """Names and shapes of the LoRA's matrices in a UNet."""
    shapes, r = {}, settings.rank
    for name in lora_config(unet, settings).target_modules:
        layer = unet.get_submodule(name)
        shapes[f"{name}.lora_A.weight"] = (r, layer.in_features)
        shapes[f"{name}.lora_B.weight"] = (layer.out_features, r)
    return shapes


def _settings_of(description: dict[str, Any], folder: str | os.PathLike) -> AdapterSettings:
    try:
        return AdapterSettings(**description["settings"])
    except (TypeError, KeyError) as error:
        raise InputError(
            f"The adapter.json of {str(folder)!r} does not hold an adapter's settings ({error}): "
            "copy or train it again."
        ) from error


def _check_backbone(
    description: dict[str, Any],
    lora: dict[str, Tensor],
    tokens: dict[str, Tensor],
    unet: UNet,
    settings: AdapterSettings,
    folder: str | os.PathLike,
) -> None:
    """Everything fits before anything is changed."""
    ours, theirs = signature(unet), description.get("backbone", {})
    differ = [f"{k} {theirs.get(k)} and not {v}" for k, v in ours.items() if theirs.get(k) != v]
    if differ:
        raise InputError(
            f"The adapter {str(folder)!r} was trained for another backbone ({', '.join(differ)}): "
            "train one for this model."
        )
    expected = lora_shapes(unet, settings)
    found = {name: tuple(x.shape) for name, x in lora.items()}
    wrong = sorted(k for k in {*expected, *found} if expected.get(k) != found.get(k))
    if wrong:
        raise InputError(
            f"The adapter {str(folder)!r} was trained for another backbone: its {wrong[0]} is "
            f"{found.get(wrong[0], 'missing')} and this model's {expected.get(wrong[0], 'missing')}"
            f" ({len(wrong)} such): train one for this model."
        )
    d_text = unet.config.cross_attention_dim
    names = ["shared"] if settings.has_tokens else []
    names += ["projection.weight", "projection.bias"] if settings.uses_frame_tokens else []
    if set(names) != set(tokens) or (
        names and tuple(tokens["shared"].shape) != (settings.n_shared, d_text)
    ):
        raise InputError(
            f"The prompt tokens of {str(folder)!r} are not {settings.n_shared} of width {d_text} "
            "as its settings and this model have them: copy or train it again."
        )


def _is_lora(_name: str, module: nn.Module) -> bool:
    return isinstance(module, LoraLayer) and NAME in module.scaling


# Features that the temporal loss reads.


def hook_sites(unet: UNet) -> list[str]:
    """Decoder self-attentions but the first: in Stable Diffusion 1.5 the eight of the paper.

    up_blocks[1].attentions.{1,2}, [2].{0,1,2}, [3].{0,1,2}; of a single one, that one.
    """
    names = [
        n for n, m in unet.named_modules() if n.startswith("up_blocks.") and is_self_attention(n, m)
    ]
    return names[1:] or names


@contextmanager
def temporal_features(unet: UNet) -> Iterator[dict[str, Tensor]]:
    """Outputs of self-attention at the hook sites, (g f) n d by name, as of the last forward."""
    sites, features = set(hook_sites(unet)), {}

    def keep(name: str, _module: nn.Module, forward):
        def kept(*args, **kwargs) -> Tensor:
            features[name] = forward(*args, **kwargs)
            return features[name]

        return kept

    with patched(unet, Patch(lambda name, _: name in sites, forward=keep)):
        yield features
