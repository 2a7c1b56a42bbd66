"""Where the words that an edit changes act: a mask from cross-attention, for edits by differences.

Hertz et al. 2022 (arXiv 2208.01626), section 3.2, read masks off cross-attention. Here the maps of
the words in which two prompts differ are added up over layers and steps while an edit runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from vala_research.diffusion.patching import Patch, is_cross_attention

BLUR, GROW = 3, 3  # sites, at the size of the latents


def edited_places(
    source: Sequence[int], edit: Sequence[int], special: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Places of the tokens in which two prompts differ, in each; special tokens are left out."""
    codes = SequenceMatcher(None, source, edit, autojunk=False).get_opcodes()
    changed = [(i, i_end, j, j_end) for kind, i, i_end, j, j_end in codes if kind != "equal"]
    of_source = [p for i, i_end, _, _ in changed for p in range(i, i_end)]
    of_edit = [p for _, _, j, j_end in changed for p in range(j, j_end)]
    return (
        [p for p in of_source if source[p] not in special],
        [p for p in of_edit if edit[p] not in special],
    )


@dataclass
class WordMask:
    """The sum of the maps of edited words, of the source prompt and of the edit prompt.

    places: of edited words, in the source prompt and in the edit prompt, of `n_tokens` tokens each.
    size: height and width of the latents.
    """

    places: tuple[Sequence[int], Sequence[int]]
    n_tokens: int
    size: tuple[int, int]
    sums: dict[int, Tensor] = field(default_factory=dict)  # 0: source, 1: edit; f h w

    def patch(self, prompts: Sequence[int | None], n_frames: int) -> Patch:
        """A patch of all cross-attentions that adds up maps, and changes nothing.

        prompts: of each branch, 0 where it reads the source prompt, 1 the edit prompt, or None.
        """

        def wrap(_name: str, attn: nn.Module, forward: Callable) -> Callable:
            def read(x: Tensor, encoder_hidden_states: Any, *args: Any, **kwargs: Any) -> Tensor:
                text = encoder_hidden_states  # with pictures, where there is an IP-Adapter
                text = text[0] if isinstance(text, tuple) else text
                branches = x.unflatten(0, (len(prompts), -1)), text.unflatten(0, (len(prompts), -1))
                for prompt, sites, words in zip(prompts, *branches, strict=True):
                    if prompt is not None and self.places[prompt]:
                        self._add(prompt, attn, sites, words, n_frames)
                return forward(x, encoder_hidden_states, *args, **kwargs)

            return read

        return Patch(is_cross_attention, forward=wrap)

    @torch.no_grad()
    def _add(
        self, prompt: int, attn: nn.Module, x: Float[Tensor, "r n c"],
        text: Float[Tensor, "r m d"], n_frames: int,
    ) -> None:  # fmt: skip
        """Add the maps of one layer and branch: r is f, or 1 where all frames are one sequence."""
        first = text.shape[1] - self.n_tokens  # an adapter's tokens come before
        columns = [first + place for place in self.places[prompt]]
        frames = x.reshape(n_frames, -1, x.shape[-1])
        words = text.expand(n_frames, -1, -1)
        maps = torch.stack([word_map(attn, a, b)[:, columns].sum(-1)
                            for a, b in zip(frames, words, strict=True)])  # fmt: skip
        (h, w), n = self.size, maps.shape[1]
        factor = (h * w / n) ** 0.5
        grid = maps.float().unflatten(1, (round(h / factor), round(w / factor)))[:, None]
        grown = F.interpolate(grid, self.size, mode="bilinear", align_corners=False)[:, 0]
        self.sums[prompt] = self.sums.get(prompt, 0) + grown

    def mask(self) -> Float[Tensor, "f 1 h w"] | float:
        """1 where the edited words of either prompt act more than on average; 1 without any.

        Maps are blurred, cut at their mean over the clip, and what is left grows by a site: words
        act most at outlines, and a mask that ends there would cut the object.
        """
        found = [F.avg_pool2d(x[:, None], BLUR, 1, BLUR // 2, count_include_pad=False)
                 for x in self.sums.values()]  # fmt: skip
        if not found:
            return 1.0
        kept = torch.stack([(x > x.mean()).float() for x in found]).amax(0)
        return F.max_pool2d(kept, GROW, 1, GROW // 2)


def word_map(
    attn: nn.Module, x: Float[Tensor, "n c"], text: Float[Tensor, "m d"]
) -> Float[Tensor, "n m"]:
    """How the sites of one frame attend to the words, mean over heads."""
    q, k = attn.to_q(x), attn.to_k(text)
    by_head = isinstance(attn, Attention)  # others norm before they split into heads
    if not by_head:
        q, k = attn.norm_q(q), attn.norm_k(k)
    q, k = (y.float().unflatten(-1, (attn.heads, -1)).transpose(0, 1) for y in (q, k))
    if by_head and attn.norm_q is not None:
        q, k = attn.norm_q(q), attn.norm_k(k)
    return (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1).mean(0)
