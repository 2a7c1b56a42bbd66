"""What differs between classes of denoisers: one frozen record for each, and nothing elsewhere.

A record says how its network is called, which of its modules are self-attention over sites, where
frames meet in it, and what text it reads. Frames `f` and guidance branches `g` are axes outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    LTXVideoTransformer3DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
    WanTransformer3DModel,
)
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError
from vala_research.diffusion.experts import Experts
from vala_research.diffusion.patching import is_self_attention, named_modules
from vala_research.diffusion.pooled_text import conditions
from vala_research.diffusion.transformer_attention import (
    JointAttention,
    LtxAttention,
    TransformerAttention,
    WanAttention,
)

Rows = Float[Tensor, "g rows n d"]  # text of each branch: one row, or one per frame
Time = float | Tensor  # the timestep of all branches, or one for each
Size = tuple[int, int, int]  # of frames: height and width in pixels; frames per latent frame


@dataclass(frozen=True)
class Record:
    """One class of networks.

    call: `(network, z: g f c h w, t, rows, size, more) -> prediction g f c h w`.
    text_width: its configuration's entry that says how wide its text is.
    sees_time: frames are an axis of its input. joins_frames: they meet in its self-attention, which
        is over all frames then, so that a policy restricts it.
    reads_one_prompt: for all frames. zeroes_padding: of the text behind its end. n_words: of its
        text, at most, where the text encoder itself has no limit. joins_texts: it reads those of
        three encoders, see `prompts.three_texts`.
    attention: its self-attention under a policy; None is that of a UNet.
    """

    call: Callable[..., Tensor]
    text_width: str = "cross_attention_dim"
    sees_time: bool = False
    joins_frames: bool = False
    reads_one_prompt: bool = False
    zeroes_padding: bool = False
    n_words: int | None = None
    joins_texts: bool = False
    attention: type[TransformerAttention] | None = None

    @property
    def is_unet(self) -> bool:
        """Whether it has an encoder and a decoder, as ControlNets and motion modules ask for."""
        return self.attention is None


def _image_unet(network: nn.Module, z: Tensor, t: Time, rows: Rows, size: Size, more: dict):
    f = z.shape[1]
    kwargs = conditions(network, rows.expand(-1, f, -1, -1).flatten(0, 1), size[:2])
    x = rearrange(z, "g f c h w -> (g f) c h w")
    out = network(x, t, return_dict=False, **_merged(kwargs, more))[0]
    return rearrange(out, "(g f) c h w -> g f c h w", f=f)


def _motion_unet(network: nn.Module, z: Tensor, t: Time, rows: Rows, size: Size, more: dict):
    """Words are per frame; the pooled text and the sizes of Stable Diffusion XL are per clip."""
    of_clip = conditions(network, rows[:, 0], size[:2])
    words = rows[:, :, : of_clip["encoder_hidden_states"].shape[1]]
    words = words.expand(-1, z.shape[1], -1, -1).flatten(0, 1)
    kwargs = _merged(of_clip | {"encoder_hidden_states": words}, more)
    return network(z.transpose(1, 2), t, return_dict=False, **kwargs)[0].transpose(1, 2)


def _unet3d(network: nn.Module, z: Tensor, t: Time, rows: Rows, size: Size, more: dict):
    kwargs = _merged({"encoder_hidden_states": rows[:, 0]}, more)  # it repeats it for every frame
    return network(z.transpose(1, 2), t, return_dict=False, **kwargs)[0].transpose(1, 2)


def _merged(kwargs: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a UNet and those of a ControlNet; pictures go beside what the text gives."""
    added = kwargs.get("added_cond_kwargs", {})
    merged = kwargs | more
    if added:
        merged["added_cond_kwargs"] = added | merged["added_cond_kwargs"]
    return merged


def _times(z: Tensor, t: Time) -> Float[Tensor, " g"]:
    """One timestep per row; in training each branch may have its own."""
    return t.float() if isinstance(t, Tensor) else torch.full((len(z),), float(t), device=z.device)


def _wan(network: nn.Module, z: Tensor, t: Time, rows: Rows, size: Size, more: dict):
    x = z.transpose(1, 2)
    return network(x, _times(z, t), rows[:, 0], return_dict=False, **more)[0].transpose(1, 2)


def _ltx(network: nn.Module, z: Tensor, t: Time, rows: Rows, size: Size, more: dict):
    """Tokens go packed. Zero rows of the text are its padding, which attention does not see.

    Places are in pixels and seconds, at 25 frames per second: the network was trained on both.
    """
    f, h, w = z.shape[1], *z.shape[3:]
    text = rows[:, 0]
    out = network(
        rearrange(z, "g f c h w -> g (f h w) c"), encoder_hidden_states=text,
        timestep=_times(z, t), encoder_attention_mask=text.ne(0).any(-1).to(z.dtype),
        num_frames=f, height=h, width=w,
        rope_interpolation_scale=(size[2] / 25, size[0] / h, size[1] / w), return_dict=False,
        **more,
    )[0]  # fmt: skip
    return rearrange(out, "g (f h w) c -> g f c h w", f=f, h=h)


def _sd3(network: nn.Module, z: Tensor, t: Time, rows: Rows, size: Size, more: dict):
    """Frames are rows; the last row of the text is the pooled one, see `pooled_text`."""
    f = z.shape[1]
    text = rows.expand(-1, f, -1, -1).flatten(0, 1)
    out = network(
        z.flatten(0, 1), text[:, :-1], text[:, -1, : network.config.pooled_projection_dim],
        _times(z.flatten(0, 1), t), return_dict=False, **more,
    )[0]  # fmt: skip
    return rearrange(out, "(g f) c h w -> g f c h w", f=f)


VIDEO = dict(sees_time=True, joins_frames=True, reads_one_prompt=True, zeroes_padding=True)
WAN = Record(_wan, "text_dim", n_words=512, attention=WanAttention, **VIDEO)
RECORDS: dict[type, Record] = {
    UNet2DConditionModel: Record(_image_unet),
    UNetMotionModel: Record(_motion_unet, sees_time=True),
    UNet3DConditionModel: Record(_unet3d, sees_time=True, reads_one_prompt=True),
    WanTransformer3DModel: WAN,
    Experts: WAN,
    LTXVideoTransformer3DModel: Record(
        _ltx, "caption_channels", n_words=128, attention=LtxAttention, **VIDEO
    ),
    SD3Transformer2DModel: Record(
        _sd3, "joint_attention_dim", n_words=256, joins_texts=True, attention=JointAttention
    ),
}


def record_of(network: nn.Module) -> Record:
    """The record of a network's class, also of one that torch.compile wraps. Raises InputError."""
    network = getattr(network, "_orig_mod", network)
    for kind in type(network).__mro__:
        if kind in RECORDS:
            return RECORDS[kind]
    known = ", ".join(kind.__name__ for kind in RECORDS if kind is not Experts)
    raise InputError(f"The denoiser is a {type(network).__name__}: give one of {known}.")


def is_transformer(network: nn.Module | None) -> bool:
    """Whether a network is there and no UNet."""
    return network is not None and not record_of(network).is_unet


def refuse_transformer(network: nn.Module, what: str) -> None:
    """Refuse what is made for a UNet. Raises InputError."""
    if is_transformer(network):
        raise InputError(
            f"{what} is made for a UNet, and this model has a {type(network).__name__}: leave it "
            "out, or take a checkpoint of Stable Diffusion."
        )


def is_video_model(network: nn.Module) -> bool:
    """Whether a network sees frames as an axis."""
    return record_of(network).sees_time


def text_width(network: nn.Module) -> int:
    """Width of the text that a network reads."""
    return network.config[record_of(network).text_width]


def n_tokens(network: nn.Module, height: int, width: int) -> int:
    """Tokens of one frame of latents in the self-attention of a transformer."""
    patch = network.config.patch_size
    sides = patch[1:] if isinstance(patch, list | tuple) else (patch, patch)
    in_time = patch[0] if isinstance(patch, list | tuple) else getattr(
        network.config, "patch_size_t", 1
    )  # fmt: skip
    if in_time != 1:
        raise InputError(
            f"The {type(network).__name__} joins {in_time} latent frames to one token: give one "
            "with a patch of one frame."
        )
    return (height // sides[0]) * (width // sides[1])


def n_tokens_of(network: nn.Module, shape: Sequence[int]) -> int | None:
    """Tokens that a transformer sees at once of latents f c h w; None for a UNet."""
    record, (f, _, height, width) = record_of(network), shape
    if record.is_unet:
        return None
    return n_tokens(network, height, width) * (f if record.joins_frames else 1)


def self_attentions(network: nn.Module) -> list[str]:
    """Names of the self-attentions over sites, in the order in which they act."""
    return [name for name, module in named_modules(network) if is_self_attention(name, module)]


def decoder_self_attentions(network: nn.Module) -> list[str]:
    """Names of the decoder's self-attentions over sites, coarse to fine.

    A transformer has no decoder: the second half of its blocks stands for it.
    """
    names = self_attentions(network)
    if record_of(network).is_unet:
        return [name for name in names if name.startswith("up_blocks.")]
    n_blocks = 1 + max(map(_block, names))
    return [name for name in names if _block(name) >= n_blocks // 2]


def blocks_of(names: Sequence[str], share: str) -> list[str]:
    """Modules of a transformer's blocks: of all, or, "down", of the first half."""
    half = (1 + max(map(_block, names))) // 2
    return [name for name in names if share != "down" or _block(name) < half]


def first_layer(network: nn.Module) -> nn.Module:
    """The layer that reads the latents."""
    names = ("conv_in", "patch_embedding", "proj_in")
    return next(getattr(network, n) for n in names if hasattr(network, n))


def _block(name: str) -> int:
    """The number of a transformer's block, in the name of one of its modules."""
    return next(int(part) for part in name.split(".") if part.isdigit())
