"""Draw groups of consecutive frames with a caption from clips: same seed, same draw.

A sample is {"frames": f 3 h w in [0, 1], "caption": str, "name": str, "start": int}. The temporal
loss of GE-Adapter 3.1 takes groups of three frames; its released code takes two at stride 2.
"""

import random
import warnings
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from vala_research import InputError
from vala_research.data.clips import as_sides, check_at_least, iter_frames
from vala_research.data.decoding import existing, timeline
from vala_research.data.identity import samples_identity
from vala_research.data.manifests import Entry
from vala_research.frames import fit_to_size

N_NAMED = 20  # clips that a summary names; `skipped` names all


@dataclass(frozen=True)
class GroupSampling:
    """Settings of a draw: a group of frames and its caption.

    n_frames: frames per group, at least 2; the loss over triples needs 3.
    stride: distance of two consecutive frames of a group, in frames of the clip.
    caption: None draws one of the clip's captions. A number, from 0, always takes that caption
        (released GE-Adapter: 3).
    rewrite: maps the drawn caption to the caption for training.
    seed: a draw is a function of the seed and of the sample's number alone.
    """

    n_frames: int = 3
    stride: int = 1
    caption: int | None = None
    rewrite: Callable[[str], str] | None = None
    seed: int = 0

    def __post_init__(self):
        check_at_least(2, n_frames=self.n_frames)
        check_at_least(1, stride=self.stride)
        check_at_least(0, caption=self.caption)

    @property
    def span(self) -> int:
        """Number of frames from the first of a group to its last, both included."""
        return (self.n_frames - 1) * self.stride + 1

    def refusal(self, n_frames: int, captions: tuple[str, ...]) -> str | None:
        """Return the reason why no group can be drawn from a clip, or None."""
        if n_frames < self.span:
            return f"has {n_frames} frames, a group spans {self.span}"
        if not captions:
            return "has no caption"
        if self.caption is not None and self.caption >= len(captions):
            return f"has {len(captions)} captions, none of number {self.caption}"
        return None

    def generator(self, *key: int | str) -> random.Random:
        """Seed the draws of a sample by text: a torch.Generator keeps only 32 bits of its seed."""
        return random.Random("/".join(map(str, (self.seed, *key))))

    def draw(self, rng: random.Random, n_frames: int, captions: tuple[str, ...]) -> tuple[int, str]:
        """Draw (first frame, caption) of a group, uniformly."""
        start, number = rng.randrange(n_frames - self.span + 1), rng.randrange(len(captions))
        caption = captions[number if self.caption is None else self.caption]
        if self.rewrite is None:
            return start, caption
        rewritten = self.rewrite(caption)
        if not isinstance(rewritten, str) or not rewritten.strip():
            raise InputError(f"`rewrite` returned {rewritten!r} for {caption!r}: return text.")
        return start, rewritten


TRIPLES = GroupSampling()


class ClipGroups(Dataset):
    """Data set whose sample i is a group of frames of clip i in a shuffled pass over the clips.

    Each pass of `n_clips` samples shows every clip once, in a new order and with new draws.

    size: (h, w) in pixels, or the side of a square, see `read_clip`. Without it, the clips of a
        batch must have one size.
    n_samples: number of samples, over any number of passes (None: one pass). A training of n steps
        asks for n * batch. It resumes by leaving out the samples that it has seen.
    strict: a clip that cannot be used raises InputError. Otherwise it is left out with a warning;
        `skipped` and `summary()` name it with its reason.

    The constructor checks files, lengths, truncation and captions. It decodes a clip once where
    packets do not tell the number of frames (see `timeline`).
    If a clip proves damaged only when it is read, the next clip of the pass replaces it.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        sampling: GroupSampling = TRIPLES,
        size: int | tuple[int, int] | None = None,
        n_samples: int | None = None,
        strict: bool = False,
    ):
        self.sampling, self.strict = sampling, strict
        self.size = as_sides(size)

        # Sort the entries into usable clips and refused ones.
        self._refused: dict[str, str] = {}
        self._clips: list[tuple[Entry, int]] = []
        entries = list(entries)
        for entry in tqdm(entries, "checking clips", disable=None, leave=False):
            try:
                self._clips.append((entry, self._checked(entry)))
            except InputError as error:
                if strict:
                    raise
                self._refused[entry.name] = str(error)
        if not self._clips:
            raise InputError(f"No clip can be used. {self.summary()}")

        # Shared memory: the workers of a loader find damaged clips, this process reports them.
        self._damaged = torch.zeros(len(self._clips), dtype=torch.bool).share_memory_()
        self.n_samples = len(self._clips) if n_samples is None else n_samples
        if self._refused:
            warnings.warn(self.summary(), stacklevel=2)

    def _checked(self, entry: Entry) -> int:
        """Return the clip's number of frames. Raises InputError if no group can be drawn."""
        n_frames = count_frames(entry)
        if reason := self.sampling.refusal(n_frames, entry.captions):
            raise InputError(f"{entry.name} {reason}: leave it out or change the sampling.")
        return n_frames

    def identity(self) -> dict[str, Any]:
        """What a later training must share: clips, captions and sampling, in plain values."""
        clips = [((e.name, e.captions, n), e.path) for e, n in self._clips]
        return samples_identity(self.sampling, self.size, clips)

    @property
    def n_clips(self) -> int:
        """Number of clips in use."""
        return len(self._clips) - len(self._damaged_names())

    @property
    def skipped(self) -> dict[str, str]:
        """Clips left out so far: {name: reason}."""
        names = self._damaged_names()
        return self._refused | {n: f"{n} is damaged: its frames cannot be decoded" for n in names}

    def summary(self) -> str:
        """Say in one line how many clips are used and which are skipped."""
        return summarised(len(self._clips) + len(self._refused), self.skipped)

    def _damaged_names(self) -> list[str]:
        flags = getattr(self, "_damaged", torch.zeros(0))
        return [self._clips[i][0].name for i in flags.nonzero().flatten().tolist()]

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)

        # The order of the clips depends on the seed and on the number of the pass alone.
        number, place = divmod(i, len(self._clips))
        order = list(range(len(self._clips)))
        self.sampling.generator("pass", number).shuffle(order)

        # Take the clip at this place, or the next one that can be decoded.
        for k in order[place:] + order[:place]:
            if self._damaged[k]:
                continue
            entry, n_frames = self._clips[k]
            rng = self.sampling.generator(i)
            start, caption = self.sampling.draw(rng, n_frames, entry.captions)
            try:
                frames = read_group(entry.path, start, self.sampling, self.size)
            except InputError as error:
                if self.strict:
                    raise
                self._damaged[k] = True
                warnings.warn(f"{entry.name} is skipped: {error}", stacklevel=2)
                continue
            return {"frames": frames, "caption": caption, "name": entry.name, "start": start}
        raise InputError(f"No clip can be read. {self.summary()}")


def count_frames(entry: Entry) -> int:
    """Count the frames of a clip. Raises InputError if it is missing, unreadable or truncated."""
    if entry.path is None:
        raise InputError(f"{entry.name} is missing: a caption file names it, but no clip exists.")
    try:
        times = timeline(existing(entry.path))
    except OSError as error:
        raise InputError(f"{entry.path} cannot be read ({error}): replace it.") from error
    if times.damaged:
        raise InputError(f"{entry.path} is truncated or damaged: replace it.")
    return len(times.shown)


def read_group(
    path: Path, start: int, sampling: GroupSampling, size: tuple[int, int] | None
) -> Float[Tensor, "f 3 h w"]:
    """Read the frames start, start + stride, ... of a clip; only the group is held in memory."""
    with closing(iter_frames(path, start + sampling.span)) as frames:
        group = list(islice(frames, start, None, sampling.stride))
    if len(group) < sampling.n_frames:
        raise InputError(f"{path} has fewer frames than its packets say: convert it again.")
    group = torch.stack(group)
    return group if size is None else fit_to_size(group, size)


def summarised(n_clips: int, skipped: dict[str, str]) -> str:
    """Return '12 of 14 clips used; 2 skipped: ...' with the first `N_NAMED` reasons."""
    if not skipped:
        return f"{n_clips} of {n_clips} clips used, none skipped."
    n_skipped = len(skipped)
    reasons = "; ".join(islice(skipped.values(), N_NAMED))  # every reason names its clip or file
    more = f"; and {n_skipped - N_NAMED} more" if n_skipped > N_NAMED else ""
    return f"{n_clips - n_skipped} of {n_clips} clips used; {n_skipped} skipped: {reasons}{more}"
