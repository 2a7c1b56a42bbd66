"""Prompt-to-prompt: the source's cross-attention maps replace the edit's, for words both share.

Hertz et al. 2022 (arXiv 2208.01626), section 3.2: word swap, added phrases, and words that are
weighted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vala_research.diffusion.patching import Patch, is_cross_attention


@dataclass(frozen=True)
class SharedWords:
    """The tokens that a source prompt and an edit prompt share: A(j) of the paper, in blocks.

    blocks: (place in the source prompt, place in the edit prompt, number of tokens) of each block.
    n_tokens: of each prompt, with its padding.
    weights: (place in the edit prompt, factor of its map) of weighted tokens.
    """

    blocks: tuple[tuple[int, int, int], ...]
    n_tokens: int
    weights: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(
        cls, source: Sequence[int], edit: Sequence[int],
        weights: tuple[tuple[int, float], ...] = (),
    ) -> "SharedWords":  # fmt: skip
        """Align two prompts of equally many token ids.

        Equal runs are shared, padding too. So are different runs of equal length between them,
        token by token: the paper's word swap. No other token is shared: the paper's added phrase.
        """
        codes = SequenceMatcher(None, source, edit, autojunk=False).get_opcodes()
        blocks = tuple(
            (i, j, i_end - i) for _, i, i_end, j, j_end in codes if i_end - i == j_end - j
        )
        return cls(blocks, len(source), weights)

    def columns(self, n_columns: int) -> Iterator[tuple[slice, slice]]:
        """Columns of the source's map and of the edit's, block by block.

        n_columns: more than n_tokens where an adapter puts its tokens before both prompts alike.
        Those are shared.
        """
        n_before = n_columns - self.n_tokens
        for i, j, n in ((-n_before, -n_before, n_before), *self.blocks):
            yield slice(n_before + i, n_before + i + n), slice(n_before + j, n_before + j + n)


def mixed(
    edit: Float[Tensor, "... n m"], source: Float[Tensor, "... n m"], words: SharedWords
) -> Float[Tensor, "... n m"]:
    """The edit's map with the source's columns for all shared words; then words are weighted.

    Rows are not normalised again, as in the paper, so they may sum to more or less than 1.
    """
    out = edit.clone()
    for in_source, in_edit in words.columns(edit.shape[-1]):
        out[..., in_edit] = source[..., in_source]
    for place, factor in words.weights:
        out[..., edit.shape[-1] - words.n_tokens + place] *= factor
    return out


def places_of(wanted: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Places of a run of token ids in others: of all its tokens, at all its repetitions."""
    n = len(wanted)
    starts = [i for i in range(len(ids) - n + 1) if n and list(ids[i : i + n]) == list(wanted)]
    return [i + j for i in starts for j in range(n)]


def word_patch(words: SharedWords, n_branches: int) -> Patch:
    """A patch of all spatial cross-attentions. The last branch is the source, the one before it the
    edit prompt's, and no other branch changes.

    It adds the difference that the maps make, `(mixed - own) values`, to what the layer returns. So
    a layer keeps its processor, such as an IP-Adapter's.
    """

    def wrap(_name: str, attn: Attention, forward: Callable) -> Callable:
        def inject(
            hidden_states: Tensor, encoder_hidden_states: Any, *args: Any, **kwargs: Any
        ) -> Tensor:
            out = forward(hidden_states, encoder_hidden_states, *args, **kwargs)
            text = encoder_hidden_states  # with pictures, where there is an IP-Adapter
            text = text[0] if isinstance(text, tuple) else text

            # Only two branches have a part in it, in all their frames.
            x, text, out = (y.unflatten(0, (n_branches, -1)) for y in (hidden_states, text, out))
            more = difference(attn, x[-2:], text[-2:], words)
            return torch.cat([out[:-2], (out[-2] + more)[None], out[-1:]]).flatten(0, 1)

        return inject

    return Patch(is_cross_attention, forward=wrap)


def difference(
    attn: Attention,
    x: Float[Tensor, "2 f n c"],
    text: Float[Tensor, "2 f m d"],
    words: SharedWords,
) -> Float[Tensor, "f n c"]:
    """What the source's maps add to the output of the edit, in a cross-attention layer.

    x, text: of the edit, then of the source. Maps are f head n m, in float32 at least.
    """
    if attn.norm_cross:
        text = torch.stack([attn.norm_encoder_hidden_states(y) for y in text])
    q, k, v = attn.to_q(x), attn.to_k(text), attn.to_v(text[0])
    q, k, v = (rearrange(y, "... n (head d) -> ... head n d", head=attn.heads) for y in (q, k, v))
    q = q if attn.norm_q is None else attn.norm_q(q)
    k = k if attn.norm_k is None else attn.norm_k(k)

    exact = torch.promote_types(x.dtype, torch.float32)
    q, k = q.to(exact) * q.shape[-1] ** -0.5, k.to(exact)
    own, source = (q @ k.transpose(-1, -2)).softmax(-1)
    change = (mixed(own, source, words) - own) @ v.to(exact)
    change = rearrange(change, "f head n d -> f n (head d)").to(x.dtype)

    # The projection of a difference has no bias.
    project = attn.to_out[0]
    return (project(change) - project(torch.zeros_like(change[:, :1]))) / attn.rescale_output_factor
