"""Self-attention over frames and branches, as processors of diffusers' Attention."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research.diffusion.attention import Policy
from vala_research.diffusion.patching import chunks


class FrameAttention:
    """Base of attention processors with frames and branches as axes.

    Branches never mix, but for injection: then every branch takes its queries and keys from the
    last one, the source, and keeps its own values; or takes its values from there.
    """

    n_branches: int
    frames_per_chunk: int
    is_injected: bool
    injects_values: bool = False

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = rearrange(hidden_states, "(g f) n c -> g f n c", g=self.n_branches)
        out = rearrange(self.output(attn, x), "g f n c -> (g f) n c")
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor

    def output(self, attn: Attention, x: Float[Tensor, "g f n c"]) -> Float[Tensor, "g f n c"]:
        """What the layer adds to the frames of each branch."""
        raise NotImplementedError

    def layout(self, x: Float[Tensor, "g ..."], branch: int) -> Float[Tensor, "..."]:
        """The branch from which a branch takes its queries and keys."""
        return x[-1 if self.is_injected else branch]


@dataclass
class SelfAttention(FrameAttention):
    """Queries of each frame, keys and values where the policy says.

    Queries go chunk by chunk; scores are never materialised.
    """

    policy: Policy
    layer: str
    n_branches: int
    frames_per_chunk: int
    is_injected: bool = False
    injects_values: bool = False

    def output(self, attn: Attention, x: Float[Tensor, "g f n c"]) -> Float[Tensor, "g f n c"]:
        out = torch.empty_like(x)
        for g, branch in enumerate(x):
            layout, content = self.layout(x, g), x[-1] if self.injects_values else branch
            lookup = self.policy(attn.to_k(layout), attn.to_v(content), self.layer)
            for frames in chunks(len(branch), self.frames_per_chunk):
                # Written through `out` itself: views of an iteration may not carry gradients.
                out[g, frames] = attend(attn, attn.to_q(layout[frames]), *lookup(frames))
        return out


def attend(
    attn: Attention,
    q: Float[Tensor, "f n d"],
    k: Float[Tensor, "r m d"],
    v: Float[Tensor, "r m d"],
    bias: Float[Tensor, " m"] | None = None,
) -> Float[Tensor, "f n c"]:
    """softmax(q k' / sqrt(d)) v, projected; keys that all frames share (r = 1) are not copied."""
    return projected(attn, gathered(attn, q, k, v, bias))


def gathered(
    attn: Attention,
    q: Float[Tensor, "f n d"],
    k: Float[Tensor, "r m d"],
    v: Float[Tensor, "r m d"],
    bias: Float[Tensor, " m"] | None = None,
) -> Float[Tensor, "f n d"]:
    """softmax(q k' / sqrt(d)) v, with the norms of the module."""
    return weighted(q, k, v, bias, attn.heads, attn.norm_q, attn.norm_k)


def weighted(
    q: Float[Tensor, "f n d"],
    k: Float[Tensor, "r m d"],
    v: Float[Tensor, "r m d"],
    bias: Float[Tensor, " m"] | None = None,
    heads: int = 1,
    norm_q: Callable | None = None,
    norm_k: Callable | None = None,
) -> Float[Tensor, "f n d"]:
    """softmax(q k' / sqrt(d) + bias) v; keys that all frames share (r = 1) are not copied.

    norm_q, norm_k: of a module that norms head by head.
    """
    n_frames = len(q)
    if len(k) == 1:  # one long sequence of queries, rather than f copies of the keys
        q = rearrange(q, "f n d -> 1 (f n) d")
    q, k, v = (rearrange(x, "r n (head d) -> r head n d", head=heads) for x in (q, k, v))
    q = q if norm_q is None else norm_q(q)
    k = k if norm_k is None else norm_k(k)
    mask = None if bias is None else bias.to(q)[None, None, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out = rearrange(out, "r head n d -> r n (head d)")
    return rearrange(out, "r (f n) d -> (r f) n d", f=n_frames // len(k))


def projected(attn: Attention, x: Float[Tensor, "... d"]) -> Float[Tensor, "... c"]:
    """The layer's own output projection."""
    return attn.to_out[1](attn.to_out[0](x))
