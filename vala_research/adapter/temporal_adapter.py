"""GE-Adapter's temporal adapter: a LoRA in the attention and prompt tokens before the text.

GE-Adapter (arXiv 2501.04606). FTC blocks (3.2, Eqs. (1) to (6)) are LoRA (Hu et al. 2021) in the
attention projections. The TSC module (3.3) is `PromptTokens`. The backbone stays frozen.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError
from vala_research.adapter.lora import NAME, ProjectionLora, home_of
from vala_research.adapter.settings import AdapterSettings, signature
from vala_research.adapter.storage import StoredAdapter, prefix_of, read_adapter, write_adapter
from vala_research.diffusion.backbone import UNet
from vala_research.diffusion.experts import Experts
from vala_research.diffusion.patching import Patch, patched
from vala_research.diffusion.records import (
    decoder_self_attentions,
    first_layer,
    is_transformer,
    is_video_model,
    text_width,
)
from vala_research.methods.prompt_tokens import PromptTokens


class TemporalAdapter:
    """A LoRA inside a UNet, and prompt tokens beside it. Make one by `attach` or `load`.

    vision_encoder: folder or hub id of the CLIP model whose image tokens the adapter reads.
    """

    def __init__(
        self,
        unet: UNet,
        settings: AdapterSettings,
        tokens: PromptTokens | None,
        lora: ProjectionLora,
        vision_encoder: str | None = None,
    ):
        self.unet, self.settings, self.tokens, self.lora = unet, settings, tokens, lora
        self.vision_encoder = vision_encoder
        self._asked: list[nn.Parameter] = []  # UNet weights that had gradients before `attach`

    @classmethod
    def attach(
        cls,
        unet: UNet,
        settings: AdapterSettings = AdapterSettings(),
        d_vision: int | None = None,
        generator: torch.Generator | None = None,
        vision_encoder: str | None = None,
    ) -> "TemporalAdapter":
        """Put an untrained LoRA into the UNet and make the tokens.

        A ~ N(0, 1/rank) and B = 0, in float32 or better: the LoRA changes nothing yet. Afterwards
        only the LoRA and the tokens require gradients; the UNet is frozen.
        d_vision: width of the image encoder's hidden states.
        Raises InputError when the UNet has a temporal adapter already, or d_vision is missing.
        """
        if settings.uses_frame_tokens and d_vision is None:
            raise InputError(
                "The width of the image tokens is missing: give d_vision, or settings with "
                "uses_frame_tokens=False."
            )

        check_backbone(unet, settings)
        tokens = None
        if settings.has_tokens:
            width, d_text = d_vision if settings.uses_frame_tokens else None, text_width(unet)
            tokens = PromptTokens(settings.n_shared, width, d_text, settings.pooling, generator)
            home = home_of(first_layer(unet))
            if home.type != "meta":  # `condition` moves the tokens to the text
                tokens.to(home)

        asked = [p for p in unet.parameters() if p.requires_grad]
        lora = ProjectionLora(unet, settings, generator)
        ours = {id(p) for _, p in lora.parameters()}
        for p in unet.parameters():
            p.requires_grad_(id(p) in ours)
        adapter = cls(unet, settings, tokens, lora, vision_encoder)
        adapter._asked = asked
        return adapter

    def in_other(self, unet: UNet) -> "TemporalAdapter":
        """Put the same LoRA into another UNet with the same layers. The weights are shared."""
        lora = ProjectionLora(unet, self.settings, torch.Generator())
        own = dict(self.lora_parameters())
        for name, p in lora.parameters():
            p.data = own[name].data
            p.requires_grad_(own[name].requires_grad)
        return TemporalAdapter(unet, self.settings, self.tokens, lora, self.vision_encoder)

    def lora_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names in the UNet and parameters of the LoRA."""
        return self.lora.parameters()

    def trainable(self) -> list[nn.Parameter]:
        """What training changes: the LoRA, then the tokens."""
        tokens = [] if self.tokens is None else list(self.tokens.parameters())
        return [p for _, p in self.lora_parameters()] + tokens

    @property
    def n_parameters(self) -> int:
        """Number of weights of the LoRA and the tokens."""
        return sum(p.numel() for p in self.trainable())

    def condition(
        self, text: Float[Tensor, "g n d"], vision: Float[Tensor, "f m d_vision"] | None = None
    ) -> Float[Tensor, "g rows l d"]:
        """Put the tokens before the text of every frame, in both guidance branches alike.

        vision: hidden states of the image encoder; frame tokens need them.
        Returns one row per frame, or a single row where all frames have the same tokens.
        """
        if self.tokens is None:
            return text[:, None]
        self.tokens.to(text.device)  # the UNet may have been moved since
        if not self.settings.uses_frame_tokens:
            vision = text.new_zeros(1, 1, 1)
        elif vision is None:
            raise InputError("This adapter has frame tokens: give the frames' image tokens.")
        rows = [self.tokens(vision, row.expand(len(vision), -1, -1)) for row in text]
        return torch.stack(rows)

    @contextmanager
    def active(self, is_active: bool, scale: float = 1.0) -> Iterator[None]:
        """Within the block, turn the LoRA on, multiplied by `scale`, or off.

        Nested blocks: an outer False wins, and scales multiply. Leaving restores everything. Other
        threads wait until then.
        """
        with self.lora.scaled(scale if is_active else 0.0):
            yield

    def detach(self) -> None:
        """Take the LoRA out of the UNet, and unfreeze what `attach` froze."""
        self.lora.remove()
        for p in self._asked:
            p.requires_grad_(True)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write a folder for `load`. Any pipeline's `load_lora_weights` reads its LoRA too.

        Raises FloatingPointError for weights that are not finite; then nothing is written.
        """
        peft = {
            "r": self.settings.rank,
            "lora_alpha": self.settings.alpha,
            "target_modules": sorted(self.lora.layers),
        }
        description = {
            "settings": asdict(self.settings),
            "backbone": signature(self.unet),
            "vision_encoder": self.vision_encoder,
        }
        lora = {_stored_name(name): p for name, p in self.lora_parameters()}
        tokens = {} if self.tokens is None else self.tokens.state_dict()
        write_adapter(folder, description, lora, tokens, peft, prefix_of(self.unet))

    @classmethod
    def load(
        cls, folder: str | os.PathLike | StoredAdapter, unet: UNet, is_trainable: bool = False
    ) -> "TemporalAdapter":
        """Put a stored adapter into this UNet, in the UNet's precision unless it is to be trained.

        folder: written by `save_pretrained`; "miniature" is the adapter of the miniature.
        Raises InputError before anything is changed: no adapter there, a pickle, an adapter of
        another backbone.
        """
        stored = folder if isinstance(folder, StoredAdapter) else read_adapter(folder, unet)
        adapter = cls.attach(
            unet, stored.settings, stored.d_vision, torch.Generator(), stored.vision_encoder
        )
        dtype = unet.dtype
        for name, p in adapter.lora_parameters():
            p.data.copy_(stored.lora[_stored_name(name)])
            if not is_trainable:
                p.data = p.data.to(dtype)
        if adapter.tokens is not None:
            adapter.tokens.load_state_dict(stored.tokens)
        for p in adapter.trainable():
            p.requires_grad_(is_trainable)
        return adapter


def check_backbone(network: UNet, settings: AdapterSettings) -> None:
    """Refuse what a network cannot carry. Raises InputError."""
    if isinstance(network, Experts):
        raise InputError(
            "This model has two transformers, and an adapter belongs to one: make a pipeline of "
            "one of them."
        )
    if settings.uses_frame_tokens and is_transformer(network) and is_video_model(network):
        raise InputError(
            f"A {type(network).__name__} reads one prompt for all frames, so frames have no tokens "
            "of their own: give AdapterSettings(uses_frame_tokens=False)."
        )


def _stored_name(name: str) -> str:
    """The name on disk, without the adapter's name: each pipeline gives it its own."""
    return name.replace(f".{NAME}.", ".")


def hook_sites(unet: UNet) -> list[str]:
    """Layers that the temporal loss reads: all decoder self-attentions but the first.

    In Stable Diffusion 1.5 these are the eight of the paper: up_blocks[1].attentions.{1,2},
    [2].{0,1,2}, [3].{0,1,2}. A decoder with a single one gives that one. A transformer gives those
    of the second half of its blocks.
    """
    names = decoder_self_attentions(unet)
    return names if is_transformer(unet) else names[1:] or names


@contextmanager
def temporal_features(unet: UNet) -> Iterator[dict[str, Tensor]]:
    """Within the block, keep the last outputs of the hook sites: name -> (g f) n d.

    Of a video transformer they are g (f n) d.
    """
    sites, features = set(hook_sites(unet)), {}

    def keep(name: str, _module: nn.Module, forward):
        def kept(*args, **kwargs) -> Tensor:
            features[name] = forward(*args, **kwargs)
            return features[name]

        return kept

    with patched(unet, Patch(lambda name, _: name in sites, forward=keep)):
        yield features
