"""TokenFlow: what a layer makes of key frames spreads to all frames, token by token.

Geyer et al. 2023 (arXiv 2307.10373), section 4.2. A token of a frame takes the outputs of its
nearest neighbours in two key frames. Neighbours are found on features of the source clip.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vala_research import InputError

PAIRS_AT_ONCE = 2**24  # similarities that one search holds


@dataclass(frozen=True)
class Shares:
    """The two key frames from which each frame takes, and their shares, which sum to one.

    keyframes: numbers among the key frames, two per frame. shares: of these, two per frame.
    """

    keyframes: tuple[tuple[int, int], ...]
    shares: tuple[tuple[float, float], ...]

    @classmethod
    def between(cls, n_frames: int, positions: Sequence[int]) -> Shares:
        """The key frames before and after a frame, by distance; a key frame takes from itself.

        positions: of the key frames in the clip, ascending.

        Differs from paper: its share is a sigmoid of a fraction, which stays between .5 and .73, so
        that a key frame would take half of its output from another one.
        """
        pairs, shares = [], []
        for frame in range(n_frames):
            after = bisect_right(positions, frame)
            before = max(0, after - 1)
            after = min(after, len(positions) - 1)
            width = positions[after] - positions[before]
            share = (frame - positions[before]) / width if width > 0 else 0.0
            pairs.append((before, after))
            shares.append((1 - share, share))
        return cls(tuple(pairs), tuple(shares))

    @classmethod
    def of_batches(cls, n_frames: int, batch: int) -> Shares:
        """The key frames of the frame's own batch and of the batch before: the released code.

        The own one has the share sigmoid(d_before / (d_own + d_before)), where d are distances to
        the middles of the batches. The first batch takes from its own key frame alone.
        """
        pairs, shares = [], []
        for frame in range(n_frames):
            own = frame // batch
            if own == 0:
                pairs.append((0, 0))
                shares.append((1.0, 0.0))
                continue
            d_own, d_before = (abs(frame - (b * batch + batch // 2)) for b in (own, own - 1))
            share = torch.tensor(d_before / (d_own + d_before)).sigmoid().item()
            pairs.append((own, own - 1))
            shares.append((share, 1 - share))
        return cls(tuple(pairs), tuple(shares))


@dataclass(frozen=True)
class Correspondence:
    """Where each token of each frame takes its output: `shares`, and a token in each key frame.

    tokens: f 2 n, the nearest neighbours in the two key frames of a frame.
    """

    shares: Shares
    tokens: Int[Tensor, "f 2 n"]

    def carried(self, values: Float[Tensor, "k m e"]) -> Float[Tensor, "f n e"]:
        """Outputs of the key frames, carried to all frames."""
        pairs = torch.tensor(self.shares.keyframes, device=values.device)
        shares = torch.tensor(self.shares.shares, device=values.device).to(values)
        first, second = (values[pairs[:, i, None], self.tokens[:, i]] for i in (0, 1))
        return shares[:, 0, None, None] * first + shares[:, 1, None, None] * second


def correspond(
    source: Float[Tensor, "f n d"], keyframes: Float[Tensor, "k m d"], shares: Shares
) -> Correspondence:
    """The nearest neighbours of the source's tokens, by cosine, in the key frames of each frame."""
    source, keyframes = F.normalize(source, dim=-1), F.normalize(keyframes, dim=-1)
    pairs = torch.tensor(shares.keyframes, device=source.device)
    n, m = source.shape[1], keyframes.shape[1]
    size = max(1, PAIRS_AT_ONCE // (n * m))
    tokens = torch.empty(*pairs.shape, n, dtype=torch.long, device=source.device)
    for column in (0, 1):
        for start in range(0, len(source), size):
            some = slice(start, start + size)
            similarities = source[some] @ keyframes[pairs[some, column]].transpose(1, 2)  # f n m
            tokens[some, column] = similarities.argmax(-1)
    return Correspondence(shares, tokens)


def propagate(
    source: Float[Tensor, "f n d"],
    keyframes: Float[Tensor, "k m d"],
    values: Float[Tensor, "k m e"],
    positions: Sequence[int],
) -> Float[Tensor, "f n e"]:
    """Spread the values of key frames to all frames of a clip.

    source: features of all frames. keyframes, values: features and values of the key frames.
    positions: of the key frames in the clip, ascending.
    Raises InputError for positions that are not such.
    """
    check_positions(positions, len(source))
    if len(positions) != len(keyframes) or len(values) != len(keyframes):
        raise InputError(
            f"There are {len(positions)} positions, {len(keyframes)} key frames and {len(values)} "
            "values: give one of each per key frame."
        )
    return correspond(source, keyframes, Shares.between(len(source), positions)).carried(values)


def check_positions(positions: Sequence[int], n_frames: int) -> None:
    """Check that key frames lie in a clip, in ascending order. Raises InputError."""
    ascends = list(positions) == sorted(set(positions))
    if not positions or not ascends or positions[0] < 0 or positions[-1] >= n_frames:
        raise InputError(
            f"Key frames {list(positions)} of a clip of {n_frames} frames: give numbers from 0 to "
            f"{n_frames - 1}, each once, in ascending order."
        )
