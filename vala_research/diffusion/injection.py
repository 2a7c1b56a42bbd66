"""Injection: the source's attention maps and features replace the edit's in the first steps.

Tumanyan et al. 2023, Plug-and-Play diffusion features, section 3, and prompt-to-prompt, see
`word_maps`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor, nn

from vala_research import InputError, number_in
from vala_research.diffusion.attending import Attending, get_policy, needs_source
from vala_research.diffusion.attention import Policy
from vala_research.diffusion.attention_processor import FrameAttention
from vala_research.diffusion.backbone import UNet
from vala_research.diffusion.cross_frame import CrossFrame, Meeting, UnderPolicy
from vala_research.diffusion.patching import Patch, is_self_attention
from vala_research.diffusion.records import decoder_self_attentions, n_tokens, record_of
from vala_research.diffusion.transformer_attention import TransformerAttention
from vala_research.diffusion.word_maps import SharedWords, word_patch

# Injection of the source's features.


@dataclass(frozen=True)
class Injection:
    """First fractions of the steps, in [0, 1], in which source features replace the edit's.

    attention: queries and keys of the decoder's self-attention, which hold the layout.
    feature: the residual of one decoder resnet, which holds the shape; the paper uses 0.5 and 0.8.
    values: values of the same self-attention, which hold what is there (Wang et al. 2024, RF-Edit).
    words: cross-attention maps of all layers, for the words that both prompts share, which hold
        where each word acts: prompt-to-prompt. Only the branch of the edit prompt gets them.
    weights: factors of the maps of words of the edit prompt in these steps, such as
        {"blue": 2.0}: above 1 a word acts more, below 1 less, below 0 against itself.
    """

    attention: float = 0.5
    feature: float = 0.8
    words: float = 0.0
    weights: Any = ()
    values: float = 0.0

    def __post_init__(self):
        for name in ("attention", "feature", "words", "values"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"The injection ({name}) is {getattr(self, name)!r}: give a fraction of the "
                    "steps from 0 to 1."
                )
        weights = tuple((word, float(x)) for word, x in dict(self.weights).items())
        for word, factor in weights:
            number_in(f"The weight of the word {word!r}", factor, -100, 100)
        if weights and not self.words:
            raise InputError(
                "Words are weighted in the steps that inject words, and words is 0: give a "
                "fraction of the steps, such as Injection(0, 0, words=0.8, weights={...})."
            )
        object.__setattr__(self, "weights", weights)

    @classmethod
    def of(cls, injection: "float | Injection") -> "Injection":
        """One number sets attention and feature."""
        return injection if isinstance(injection, Injection) else cls(injection, injection)

    def n_steps(self, n_steps: int) -> tuple[int, int, int, int]:
        """How many first steps inject attention, the feature, words, and values."""
        shares = (self.attention, self.feature, self.words, self.values)
        attention, feature, words, values = (round(share * n_steps) for share in shares)
        return attention, feature, words, values


def n_source_steps(attention: Attending, injection: Injection, n_steps: int) -> int:
    """Steps at which an edit sees the source: while it is injected, or where an editor needs it."""
    return n_steps if needs_source(attention) else max(injection.n_steps(n_steps))


def injected_attention_layers(unet: UNet) -> frozenset[str]:
    """All decoder self-attentions but the coarsest (Stable Diffusion 1.5: layers 4 to 11).

    A decoder with one or two such layers gives them all, and a transformer those of its second half
    of blocks.
    """
    names = decoder_self_attentions(unet)
    all_of_them = len(names) <= 2 or not record_of(unet).is_unet
    return frozenset(names if all_of_them else names[1:])


def injected_feature_layer(unet: UNet) -> str:
    """The convolution whose residual is injected: up_blocks.1.resnets.1.conv2 in SD 1.5.

    Other depths: block (n - 1) // 2 of n decoder blocks, its second resnet, or its only one.
    """
    block = (len(unet.up_blocks) - 1) // 2
    resnet = min(1, len(unet.up_blocks[block].resnets) - 1)
    return f"up_blocks.{block}.resnets.{resnet}.conv2"


def check_transformer(
    network: UNet, injects_feature: bool, words: Any, meeting: Any
) -> None:
    """Refuse what only a UNet can do. Raises InputError.

    words: None where none are injected. meeting: an attention, or how frames meet by it.
    """
    name = type(network).__name__
    if injects_feature:
        raise InputError(
            f"The injection (feature) needs a UNet's decoder, and this is a {name}: give "
            "Injection(attention=..., feature=0), or values."
        )
    if words is not None:
        raise InputError(
            f"The injection (words) reads a UNet's cross-attention, and this is a {name}: set "
            "words to 0."
        )
    if isinstance(meeting, CrossFrame) or (
        isinstance(meeting, Meeting) and not isinstance(meeting, UnderPolicy)
    ):
        raise InputError(
            f"The attention of an editor lays out the frames of a UNet, and this is a {name}: "
            "give a policy, such as 'extended', 'own' or 'anchors'."
        )


def attention_patches(
    unet: UNet,
    attention: str | Policy | Meeting,
    n_branches: int,
    frames_per_chunk: int,
    injects_attention: bool = False,
    injects_feature: bool = False,
    words: SharedWords | None = None,
    injects_values: bool = False,
    size: tuple[int, int] | None = None,
) -> list[Patch]:
    """The patches of one network call. When injecting, the last branch is the source.

    words: those whose cross-attention maps are injected into the last branch but one. size: height
    and width of the latents, which tell a transformer's frames apart.
    Raises InputError for what a transformer does not have.
    """
    is_meeting = isinstance(attention, Meeting)
    meeting = attention if is_meeting else UnderPolicy(policy=get_policy(attention))
    injects = injects_attention or injects_values
    layers = injected_attention_layers(unet) if injects else frozenset()
    record = record_of(unet)
    if injects_values and not isinstance(meeting, UnderPolicy):
        raise InputError(
            "The injection (values) goes with a policy, and this attention is an editor's: set "
            "values to 0."
        )
    if not record.is_unet:
        check_transformer(unet, injects_feature, words, meeting)

    def processor(name: str, attn: Attention) -> FrameAttention | TransformerAttention:
        is_late = name in layers
        given = [is_late and injects_attention] + [is_late] * injects_values
        if record.is_unet:
            return meeting.processor(name, n_branches, frames_per_chunk, *given)
        return record.attention(
            meeting.policy, name, n_branches, n_tokens(unet, *size), frames_per_chunk, *given
        )

    patches = [Patch(is_self_attention, processor=processor), *meeting.patches(n_branches)]
    if injects_feature:
        site = injected_feature_layer(unet)

        def source_only(_name: str, _module: nn.Module, forward: Callable) -> Callable:
            def inject(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                source = rearrange(x, "(g f) c h w -> g f c h w", g=n_branches)[-1]
                return forward(source, *args, **kwargs).repeat(n_branches, 1, 1, 1)

            return inject

        patches.append(Patch(lambda name, _: name == site, forward=source_only))
    if words is not None:
        patches.append(word_patch(words, n_branches))
    return patches
