"""VidToMe as an editor: chunks of frames share their similar tokens, and those of earlier chunks.

Li et al. 2023 (arXiv 2312.10656), section 3.2 and 3.3. Its code asks the network chunk by chunk;
here all chunks take turns within each layer, which is the same, and one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor

from vala_research import chosen_from, number_in
from vala_research.diffusion.attention import own
from vala_research.diffusion.attention_processor import FrameAttention, SelfAttention, attend
from vala_research.diffusion.cross_frame import CrossFrame, Meeting
from vala_research.methods.token_merging import MODES, match, merged_into


@dataclass(frozen=True)
class TokenMerging(CrossFrame):
    """Chunks of neighbouring frames, in an order that is drawn at every step.

    chunk: frames per chunk; the first one has a random length. local_ratio: share of tokens that is
    merged into one frame of the chunk, drawn at random. global_ratio: share of tokens that is
    merged with those of earlier chunks; None leaves chunks apart. mode: see `Matching`.
    max_downsample: layers act at this many times fewer sites per side, or less; the coarser ones
    look at each frame alone. Stable Diffusion's 64 and 32, and not 16 and 8, by the default.
    """

    chunk: int = 4
    local_ratio: float = 0.9
    global_ratio: float | None = 0.8
    mode: str = "replace"
    max_downsample: int = 2

    def __post_init__(self):
        number_in("The chunk of token merging", self.chunk, 1, 1000, whole=True)
        for ratio in (self.local_ratio, self.global_ratio or 0.0):
            number_in("The ratio of tokens to merge", ratio, 0, 1)
        chosen_from("mode of merging", self.mode, MODES)
        number_in("max_downsample", self.max_downsample, 1, 1000, whole=True)

    def at(self, t: int, n_frames: int, n_sites: int) -> Chunks:
        g = self.drawing(t)
        turns = [
            Turn(frames, draw(frames.stop - frames.start, g), draw(2, g) == 1)
            for frames in drawn_chunks(n_frames, self.chunk, g)
        ]
        return Chunks(settings=self, turns=tuple(turns), n_sites=n_sites)


@dataclass(frozen=True)
class Turn:
    """A chunk of frames. into: its frame into which the others merge. sends: whether its tokens are
    merged into those of earlier chunks, and not the reverse."""

    frames: slice
    into: int
    sends: bool


def draw(n: int, generator: torch.Generator) -> int:
    """One of n numbers from 0 on."""
    return int(torch.randint(n, (), generator=generator))


def drawn_chunks(n_frames: int, size: int, generator: torch.Generator) -> list[slice]:
    """Chunks of neighbouring frames in a random order: "mix-4" of the released code.

    The first chunk has a random length, so that borders move. A quarter of the chunks comes first,
    at random; the others follow in the order of the clip, or backwards from its end if that is
    nearer to the last random one.
    """
    first = 1 + draw(min(size, n_frames), generator)
    starts = [0, *range(first, n_frames, size)]
    chunks = [slice(a, b) for a, b in zip(starts, [*starts[1:], n_frames], strict=True)]
    if draw(2, generator):
        chunks = [slice(n_frames - c.stop, n_frames - c.start) for c in chunks[::-1]]
    order = torch.randperm(len(chunks), generator=generator).tolist()
    n_random = len(order) // 4
    random, rest = order[:n_random], sorted(order[n_random:])
    if random and abs(rest[-1] - random[-1]) < abs(rest[0] - random[-1]):
        rest = rest[::-1]
    return [chunks[i] for i in (*random, *rest)]


@dataclass(frozen=True)
class Chunks(Meeting):
    """All frames of a clip, in chunks. turns: in their order. n_sites: of a frame of latents."""

    settings: TokenMerging = TokenMerging()
    turns: tuple[Turn, ...] = ()
    n_sites: int = 1

    def processor(
        self, layer: str, n_branches: int, frames_per_chunk: int, is_injected: bool
    ) -> FrameAttention:
        return MergedAttention(n_branches, frames_per_chunk, is_injected, self, layer)


@dataclass
class MergedAttention(FrameAttention):
    """Attention on the tokens that merging leaves. meeting: the chunks in their order."""

    n_branches: int
    frames_per_chunk: int
    is_injected: bool
    meeting: Chunks
    layer: str

    def output(self, attn: Attention, x: Float[Tensor, "g f n c"]) -> Float[Tensor, "g f n c"]:
        settings = self.meeting.settings
        if x.shape[2] * settings.max_downsample**2 < self.meeting.n_sites:
            alone = self.n_branches, self.frames_per_chunk, self.is_injected
            return SelfAttention(own, self.layer, *alone).output(attn, x)

        out, earlier = torch.empty_like(x), None
        for turn in self.meeting.turns:
            chunk = x[:, turn.frames]
            local, unmerge = merged_into(chunk, turn.into, settings.local_ratio, settings.mode)
            if earlier is None or settings.global_ratio is None:
                out[:, turn.frames] = unmerge(self.attended(attn, local))
                earlier = local
                continue

            # One side is merged into the other. Later chunks meet what this leaves of the tokens.
            sides = (local, earlier) if turn.sends else (earlier, local)
            matching = match(*sides, settings.global_ratio, settings.mode)
            joined, place = matching.joined(*sides), 0 if turn.sends else 1
            out[:, turn.frames] = unmerge(matching.parted(self.attended(attn, joined))[place])
            earlier = matching.parted(joined)[place]
        return out

    def attended(self, attn: Attention, tokens: Float[Tensor, "g r c"]) -> Float[Tensor, "g r c"]:
        """Attention among the tokens of each branch."""
        out = torch.empty_like(tokens)
        for g, branch in enumerate(tokens):
            layout = self.layout(tokens, g)[None]
            out[g] = attend(attn, attn.to_q(layout), attn.to_k(layout), attn.to_v(branch[None]))[0]
        return out
