"""Token merging: attention sees similar tokens of several frames once.

Li et al. 2023, VidToMe (arXiv 2312.10656), section 3.2, after Bolya et al. 2023 (arXiv 2210.09461).
Tokens are merged into their most similar destination before the queries, keys and values, and take
its output afterwards. All guidance branches share one matching.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vala_research import chosen_from, number_in

MODES = ("replace", "mean")


@dataclass(frozen=True)
class Matching:
    """Which source tokens are merged into which destination token.

    kept: source tokens that stay. merged: those that are merged. into: their destinations. mode:
    "replace" leaves the destination as it is; "mean" averages it with what is merged into it.
    """

    kept: Int[Tensor, " kept"]
    merged: Int[Tensor, " merged"]
    into: Int[Tensor, " merged"]
    mode: str = "replace"

    def joined(
        self, source: Float[Tensor, "g s d"], destination: Float[Tensor, "g m d"]
    ) -> Float[Tensor, "g r d"]:
        """The tokens that are left: the kept ones of the source, then the destination."""
        if self.mode == "mean":
            moved = source[:, self.merged]
            places = self.into[None, :, None].expand_as(moved)
            destination = destination.scatter_reduce(1, places, moved, "mean", include_self=True)
        return torch.cat([source[:, self.kept], destination], dim=1)

    def parted(
        self, joined: Float[Tensor, "g r d"]
    ) -> tuple[Float[Tensor, "g s d"], Float[Tensor, "g m d"]]:
        """Source and destination again; a merged token has the value of its destination."""
        n_kept = len(self.kept)
        kept, destination = joined[:, :n_kept], joined[:, n_kept:]
        n_source = n_kept + len(self.merged)
        source = joined.new_empty(len(joined), n_source, joined.shape[-1])
        source[:, self.kept], source[:, self.merged] = kept, destination[:, self.into]
        return source, destination


def match(
    source: Float[Tensor, "g s d"],
    destination: Float[Tensor, "g m d"],
    ratio: float,
    mode: str = "replace",
) -> Matching:
    """Match the most similar share `ratio` of the source tokens with a destination.

    Similarity is the cosine, in the branch where it is largest.
    Raises InputError for a ratio outside 0..1, or an unknown mode.
    """
    number_in("The ratio of tokens to merge", ratio, 0, 1)
    chosen_from("mode of merging", mode, MODES)
    source, destination = F.normalize(source, dim=-1), F.normalize(destination, dim=-1)
    n_merged = int(ratio * source.shape[1])

    # The best destination in any branch: similarity and place.
    best, into = (source @ destination.transpose(1, 2)).max(-1)
    best, branch = best.max(0)
    into = into.gather(0, branch[None])[0]
    order = best.argsort(descending=True)
    merged = order[:n_merged]
    return Matching(order[n_merged:], merged, into[merged], mode)


def merge(
    tokens: Float[Tensor, "*g f n d"],
    ratio: float,
    generator: torch.Generator | None = None,
    mode: str = "replace",
) -> tuple[Float[Tensor, "*g r d"], Callable[[Tensor], Tensor]]:
    """Merge the tokens of some frames into those of one frame, which is drawn at random.

    tokens: of one branch, or of g branches that are merged alike. ratio: share of the tokens of the
    other frames that are merged.
    Returns the tokens that are left, and the way back: `g r e -> g f n e`.
    """
    frame = int(torch.randint(tokens.shape[-3], (), generator=generator))
    return merged_into(tokens, frame, ratio, mode)


def merged_into(
    tokens: Float[Tensor, "*g f n d"], frame: int, ratio: float, mode: str = "replace"
) -> tuple[Float[Tensor, "*g r d"], Callable[[Tensor], Tensor]]:
    """As `merge`, into a given frame."""
    x = tokens if tokens.ndim == 4 else tokens[None]
    others = [i for i in range(x.shape[1]) if i != frame]
    source, destination = x[:, others].flatten(1, 2), x[:, frame]
    matching = match(source, destination, ratio, mode)
    joined = matching.joined(source, destination)

    def unmerge(y: Tensor) -> Tensor:
        source, destination = matching.parted(y if y.ndim == 3 else y[None])
        frames = list(source.unflatten(1, (len(others), -1)).unbind(1)) if others else []
        frames.insert(frame, destination)
        out = torch.stack(frames, dim=1)
        return out if tokens.ndim == 4 else out[0]

    return (joined if tokens.ndim == 4 else joined[0]), unmerge
