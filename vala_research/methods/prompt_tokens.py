"""Add tokens to the text: some that all frames share, and some from the picture of each frame.

Token-based semantic consistency of GE-Adapter (arXiv 2501.04606) 3.3, Eqs. (13) to (15).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError, chosen_from

POOLINGS = ("pairs", "released", "none")
MOST_SHARED = 4096
STANDARD_DEVIATION = 0.02  # of the initial shared tokens


@dataclass(frozen=True)
class PromptTokenSettings:
    """Number of shared tokens, and pooling of image tokens.

    n_shared: learnt tokens that all frames have; 0 is none.
    pooling: "pairs" averages neighbours; "released" (the published code) keeps the class token and
        every second patch; "none" keeps all.
    """

    n_shared: int = 18
    pooling: str = "pairs"

    def __post_init__(self):
        if not isinstance(self.n_shared, int) or not 0 <= self.n_shared <= MOST_SHARED:
            raise InputError(
                f"n_shared is {str(self.n_shared)[:50]}: give 0 or more tokens, at most "
                f"{MOST_SHARED}."
            )
        chosen_from("pooling", self.pooling, POOLINGS)


def pooled_tokens(
    vision_tokens: Float[Tensor, "b n d"], pooling: str = "pairs"
) -> Float[Tensor, "b p d"]:
    """Keep about half of the tokens: of 50 (ViT-B/32), "pairs" keeps 25 and "released" 26.

    "pairs": H_sub[i] = (H[2i] + H[2i+1]) / 2, Eq. (13). An odd last token stays alone. The class
        token comes first and forms a pair with the first patch, as in the equation.
    "released": token 0, then 1, 3, 5, ...
    "none": all tokens.
    Raises InputError for another pooling.
    """
    PromptTokenSettings(pooling=pooling)
    if pooling == "none":
        return vision_tokens
    if pooling == "released":
        return torch.cat([vision_tokens[:, :1], vision_tokens[:, 1::2]], 1)
    n_paired = vision_tokens.shape[1] // 2 * 2
    pairs = vision_tokens[:, :n_paired].unflatten(1, (-1, 2)).mean(2)
    return torch.cat([pairs, vision_tokens[:, n_paired:]], 1)


class PromptTokens(nn.Module):
    """Build one token sequence per frame, [T_share ; Z_frame ; text]; Eq. (15).

    T_share: `n_shared` learnt tokens, initially N(0, 0.02).
    Z_frame: the frame's pooled image tokens, mapped linearly to the width of the text. The map
        starts with Xavier's uniform weights and zero bias.
    Parameters: n_shared d_text + (d_vision + 1) d_text.
    Untrained tokens are noise that draws attention away from the text.

    d_vision: width of the image tokens. None: no Z_frame; image tokens then only give the number of
        frames.
    d_text: width of the text tokens.
    generator: draws the initial values.

    Differs from paper: the two widths may differ (in the paper W is d x d).
    Raises InputError for a negative number of shared tokens, no width, or an unknown pooling.
    """

    def __init__(
        self,
        n_shared: int,
        d_vision: int | None,
        d_text: int,
        pooling: str = "pairs",
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.settings = PromptTokenSettings(n_shared, pooling)
        if d_text < 1 or (d_vision is not None and d_vision < 1):
            raise InputError(f"Widths of {d_vision} and {d_text}: give tokens at least one number.")

        # T_share.
        self.shared = nn.Parameter(torch.empty(n_shared, d_text))
        draw = torch.empty(
            n_shared, d_text, device="cpu" if generator is None else generator.device
        )
        with torch.no_grad():
            self.shared.copy_(draw.normal_(0, STANDARD_DEVIATION, generator=generator))

        # The map of Z_frame; `skip_init` draws nothing from the global generator.
        self.projection = None
        if d_vision is None:
            return
        self.projection = nn.utils.skip_init(nn.Linear, d_vision, d_text, device=self.shared.device)
        bound = math.sqrt(6 / (d_vision + d_text))
        draw = torch.empty_like(self.projection.weight, device=draw.device)
        with torch.no_grad():
            self.projection.weight.copy_(draw.uniform_(-bound, bound, generator=generator))
            self.projection.bias.zero_()

    def prefix(self, vision_tokens: Float[Tensor, "b n d_vision"]) -> Float[Tensor, "b p d_text"]:
        """[T_share ; Z_frame]: the tokens before any text of these frames."""
        shared = self.shared.expand(len(vision_tokens), -1, -1)
        if self.projection is None:
            return shared
        width = self.projection.in_features
        if vision_tokens.shape[-1] != width:
            raise InputError(
                f"Image tokens are {vision_tokens.shape[-1]} wide, but these prompt tokens were "
                f"made for {width}: use the vision encoder they were trained with."
            )
        if not vision_tokens.shape[1]:
            raise InputError("There are no image tokens: give at least one per frame.")
        if vision_tokens.is_cpu:  # on another device each look waits: see `activation_of`
            refuse_nan(vision_tokens, "image")
        pooled = pooled_tokens(vision_tokens.to(self.shared.dtype), self.settings.pooling)
        return torch.cat([shared, self.projection(pooled).to(shared.dtype)], 1)

    def forward(
        self,
        vision_tokens: Float[Tensor, "b n d_vision"],
        text_tokens: Float[Tensor, "rows m d_text"],
    ) -> Float[Tensor, "b l d_text"]:
        """Put each frame's tokens before its text, in the dtype of the text.

        vision_tokens: hidden states of a CLIP vision encoder, class token first.
        text_tokens: one row per frame.
        Both texts of a guidance pair take the same prefix: call twice. The released code gives
        every frame the image tokens of the first: pass `vision_tokens[:1].expand_as(...)`.
        Raises InputError for other widths, rows that do not match, no image tokens, NaN on the
        CPU (on other devices nothing waits for the answer).
        """
        if text_tokens.shape[-1] != self.shared.shape[-1]:
            raise InputError(
                f"Text tokens are {text_tokens.shape[-1]} wide, but these prompt tokens were made "
                f"for {self.shared.shape[-1]}: use the text encoder they were trained with."
            )
        if len(text_tokens) != len(vision_tokens):
            raise InputError(
                f"There are {len(vision_tokens)} frames of image tokens and {len(text_tokens)} "
                "rows of text: expand the text to one row per frame."
            )
        if text_tokens.is_cpu:  # elsewhere the network that reads them notices
            refuse_nan(text_tokens, "text")
        return torch.cat([self.prefix(vision_tokens).to(text_tokens.dtype), text_tokens], 1)


def refuse_nan(tokens: Float[Tensor, "b n d"], name: str) -> None:
    """Refuse tokens that are not finite, by the first frame that has some."""
    is_finite = tokens.isfinite().flatten(1).all(1)
    if not is_finite.all():
        raise InputError(
            f"The {name} tokens of frame {int((~is_finite).nonzero()[0])} hold NaN or infinity: "
            "look for an overflow in their encoder, often of float16; use bfloat16 or float32."
        )
