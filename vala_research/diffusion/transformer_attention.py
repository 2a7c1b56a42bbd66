"""Self-attention of diffusion transformers under a policy, as processors of diffusers' modules.

A policy sees keys as attention uses them: normed, and rotated where positions are rotations. An
anchor that averages rotated keys has the mean logit of its frames at a site. Its logit gets
log(frames that it stands for) besides, as proportional attention (Bolya et al. 2023, ToMe).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vala_research import InputError
from vala_research.diffusion.attention import AnchorAttention, Policy
from vala_research.diffusion.attention_processor import weighted
from vala_research.diffusion.patching import chunks


@dataclass
class TransformerAttention:
    """Base: queries of each frame, keys and values where the policy says.

    n_tokens: of one frame. is_injected: every branch takes queries and keys from the last one, the
    source; injects_values: its values too.
    """

    policy: Policy
    layer: str
    n_branches: int
    n_tokens: int
    frames_per_chunk: int
    is_injected: bool = False
    injects_values: bool = False
    has_positions = True  # keys are rotated by their place

    def __post_init__(self):
        if not isinstance(self.policy, AnchorAttention):
            return
        if self.has_positions and self.policy.anchors.granularity == "token":
            raise InputError(
                "Token anchors average keys of different sites, whose positions are rotations in "
                "this model: give AnchorSettings(granularity='site')."
            )
        self.policy = replace(self.policy, counts_frames=True)

    def looked_up(
        self, attn: nn.Module, q: Tensor, k: Tensor, v: Tensor
    ) -> Float[Tensor, "g f n d"]:
        """What the policy lets each frame gather; q, k, v: g f n d."""
        out = torch.empty_like(v)
        for g in range(len(q)):
            source = len(q) - 1 if self.is_injected else g
            values = v[-1 if self.injects_values else g]
            lookup = self.policy(k[source], values, self.layer)
            for frames in chunks(q.shape[1], self.frames_per_chunk):
                # Written through `out` itself: views of an iteration may not carry gradients.
                out[g, frames] = weighted(q[source, frames], *lookup(frames), heads=attn.heads)
        return out

    def by_frame(self, *tensors: Float[Tensor, "g m d"]) -> list[Float[Tensor, "g f n d"]]:
        """Sequences of tokens, frame after frame, with the frames as an axis."""
        return [rearrange(x, "g (f n) d -> g f n d", n=self.n_tokens) for x in tensors]


class WanAttention(TransformerAttention):
    """`blocks.i.attn1` of a WanTransformer3DModel."""

    def __call__(
        self, attn: nn.Module, hidden_states: Float[Tensor, "g m c"],
        encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "g m c"]:  # fmt: skip
        q, k = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        q, k = (rotated(x.unflatten(2, (attn.heads, -1)), *rotary_emb).flatten(2) for x in (q, k))
        out = self.looked_up(attn, *self.by_frame(q, k, attn.to_v(hidden_states)))
        return attn.to_out[1](attn.to_out[0](out.flatten(1, 2)))


def rotated(
    x: Float[Tensor, "g m head d"], cos: Float[Tensor, "1 m 1 d"], sin: Float[Tensor, "1 m 1 d"]
) -> Float[Tensor, "g m head d"]:
    """Queries or keys with neighbouring channels turned by their place: RoPE of Wan."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-2).type_as(x)


class LtxAttention(TransformerAttention):
    """`transformer_blocks.i.attn1` of an LTXVideoTransformer3DModel."""

    def __call__(
        self, attn: nn.Module, hidden_states: Float[Tensor, "g m c"],
        encoder_hidden_states: Tensor | None = None, attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "g m c"]:  # fmt: skip
        from diffusers.models.transformers.transformer_ltx import apply_rotary_emb

        q, k = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        q, k = (apply_rotary_emb(x, image_rotary_emb) for x in (q, k))
        out = self.looked_up(attn, *self.by_frame(q, k, attn.to_v(hidden_states)))
        return attn.to_out[1](attn.to_out[0](out.flatten(1, 2)))


class JointAttention(TransformerAttention):
    """`transformer_blocks.i.attn` of an SD3Transformer2DModel: sites and text in one attention.

    Every frame is a row with its own text tokens, which frames attend to besides what the policy
    gives them. The text attends to its own frame and itself.
    """

    has_positions = False  # they were added at the input

    def __call__(
        self, attn: nn.Module, hidden_states: Float[Tensor, "r n c"],
        encoder_hidden_states: Float[Tensor, "r m c"] | None = None, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        g, n = self.n_branches, hidden_states.shape[1]
        of_sites = [attn.to_q, attn.to_k, attn.to_v]
        q, k, v = (to(hidden_states).unflatten(0, (g, -1)) for to in of_sites)
        q, k = normed(attn.norm_q, q, attn.heads), normed(attn.norm_k, k, attn.heads)
        if encoder_hidden_states is None:  # the second attention of Stable Diffusion 3.5
            out = self.looked_up(attn, q, k, v).flatten(0, 1)
            return attn.to_out[1](attn.to_out[0](out))

        of_text = [attn.add_q_proj, attn.add_k_proj, attn.add_v_proj]
        qt, kt, vt = (to(encoder_hidden_states).unflatten(0, (g, -1)) for to in of_text)
        qt = normed(attn.norm_added_q, qt, attn.heads)
        kt = normed(attn.norm_added_k, kt, attn.heads)
        out, text = torch.empty_like(q), torch.empty_like(qt)
        for b in range(g):
            source = g - 1 if self.is_injected else b
            values = v[-1 if self.injects_values else b]
            lookup = self.policy(k[source], values, self.layer)
            for frames in chunks(q.shape[1], self.frames_per_chunk):
                keys, found, *bias = lookup(frames)
                rows = len(kt[b, frames])
                keys, found = (x.expand(rows, -1, -1) for x in (keys, found))
                bias = [torch.cat([x, x.new_zeros(kt.shape[2])]) for x in bias]
                keys = torch.cat([keys, kt[b, frames]], 1)
                found = torch.cat([found, vt[b, frames]], 1)
                out[b, frames] = weighted(q[source, frames], keys, found, *bias, heads=attn.heads)
                own = torch.cat([k[b, frames], kt[b, frames]], 1)
                seen = torch.cat([v[b, frames], vt[b, frames]], 1)
                text[b, frames] = weighted(qt[b, frames], own, seen, heads=attn.heads)
        out, text = out.flatten(0, 1), text.flatten(0, 1)
        out = attn.to_out[1](attn.to_out[0](out))
        return out[:, :n], text if attn.context_pre_only else attn.to_add_out(text)


def normed(norm: nn.Module | None, x: Float[Tensor, "*r d"], heads: int) -> Float[Tensor, "*r d"]:
    """Queries or keys, normed head by head where the module has a norm."""
    return x if norm is None else norm(x.unflatten(-1, (heads, -1))).flatten(-2)
