"""Groups of consecutive frames with a caption, drawn from a data set's clips: same seed, same draw.

A sample is {"frames": f 3 h w in [0, 1], "caption": str, "name": str, "start": int}, as the
temporal loss of GE-Adapter 3.1 takes it (three frames; its released code: two, every second one).
"""

import random
import warnings
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from vala_research import InputError
from vala_research.data.clips import iter_frames
from vala_research.data.decoding import existing, timeline
from vala_research.data.manifests import Entry
from vala_research.frames import fit_to_size

N_NAMED = 20  # clips a summary names; `skipped` names all


@dataclass(frozen=True)
class GroupSampling:
    """How a group of frames and its caption are drawn.

    n_frames: frames of a group, at least 2; the loss over triples needs 3.
    stride: frames of the clip from one to the next.
    caption: None draws one of the clip's captions, a number takes always that one (from 0; the
        released GE-Adapter: 3).
    rewrite: called with the drawn caption, returns the one to train on.
    seed: all draws are a function of it, of the sample's number and of nothing else.
    """

    n_frames: int = 3
    stride: int = 1
    caption: int | None = None
    rewrite: Callable[[str], str] | None = None
    seed: int = 0

    def __post_init__(self):
        if self.n_frames < 2:
            raise InputError(f"n_frames is {self.n_frames}: a group has at least 2 frames.")
        if self.stride < 1:
            raise InputError(f"stride is {self.stride}: it counts frames, give 1 or more.")
        if self.caption is not None and self.caption < 0:
            raise InputError(f"caption is {self.caption}: give a number from 0, or None to draw.")

    @property
    def span(self) -> int:
        """Frames from the first of a group to its last, both included."""
        return (self.n_frames - 1) * self.stride + 1

    def refusal(self, n_frames: int, captions: tuple[str, ...]) -> str | None:
        """Why no group can be drawn from a clip, or None."""
        if n_frames < self.span:
            return f"has {n_frames} frames, a group spans {self.span}"
        if not captions:
            return "has no caption"
        if self.caption is not None and self.caption >= len(captions):
            return f"has {len(captions)} captions, none of number {self.caption}"
        return None

    def generator(self, *key: int | str) -> random.Random:
        """Draws of one sample. By name: a torch.Generator keeps 32 bits of its seed only."""
        return random.Random("/".join(map(str, (self.seed, *key))))

    def draw(self, rng: random.Random, n_frames: int, captions: tuple[str, ...]) -> tuple[int, str]:
        """(first frame, caption) of a group, all equally likely."""
        start, number = rng.randrange(n_frames - self.span + 1), rng.randrange(len(captions))
        caption = captions[number if self.caption is None else self.caption]
        if self.rewrite is None:
            return start, caption
        rewritten = self.rewrite(caption)
        if not isinstance(rewritten, str) or not rewritten.strip():
            raise InputError(f"The rewriting hook made {rewritten!r} of {caption!r}: return text.")
        return start, rewritten


TRIPLES = GroupSampling()


class ClipGroups(Dataset):
    """Sample i is a group of frames of clip i in a shuffled pass over the clips.

    Each pass of `n_clips` samples shows every clip once, in an order and with draws of its own.
    n_samples: how many samples there are, over any number of passes (None: one pass); a training
        of n steps asks for n * batch, and resumes by leaving out those it had.
    size: (h, w) in pixels or the side of a square, see `read_clip`; without it the clips of a
        batch must be of one size.
    strict: a clip that cannot be used raises InputError; else it is left out, kept by name and
        reason in `skipped`, told by `summary()`, and warned of.

    What can be known without decoding (files, lengths, truncation, captions) is checked at once.
    A clip found damaged only when it is read is replaced by the next in the pass.
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
        self.size = (size, size) if isinstance(size, int) else size
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"size is {size}: give one side or (height, width), in pixels.")
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
        # Shared: a loader's workers find the damage, this process tells of it.
        self._damaged = torch.zeros(len(self._clips), dtype=torch.bool).share_memory_()
        self.n_samples = len(self._clips) if n_samples is None else n_samples
        if self._refused:
            warnings.warn(self.summary(), stacklevel=2)

    def _checked(self, entry: Entry) -> int:
        """The clip's number of frames, if groups can be drawn from it."""
        n_frames = count_frames(entry)
        if reason := self.sampling.refusal(n_frames, entry.captions):
            raise InputError(f"{entry.name} {reason}: leave it out or change the sampling.")
        return n_frames

    @property
    def n_clips(self) -> int:
        """Clips that are drawn from."""
        return len(self._clips) - len(self._found_damaged())

    @property
    def skipped(self) -> dict[str, str]:
        """The clips left out so far, and why."""
        found = {n: f"{n} is damaged: its frames cannot be decoded" for n in self._found_damaged()}
        return self._refused | found

    def summary(self) -> str:
        """One line: clips used, clips skipped, and which."""
        return summarised(len(self._clips) + len(self._refused), self.skipped)

    def _found_damaged(self) -> list[str]:
        flags = getattr(self, "_damaged", torch.zeros(0))
        return [self._clips[i][0].name for i in flags.nonzero().flatten().tolist()]

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        number, place = divmod(i, len(self._clips))
        order = list(range(len(self._clips)))
        self.sampling.generator("pass", number).shuffle(order)
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
    """How many frames a clip shows, from its packets; InputError if missing or truncated."""
    if entry.path is None:
        raise InputError(f"{entry.name} is missing: a caption file names it, no clip is there.")
    try:
        times = timeline(existing(entry.path))
    except OSError as error:  # a folder whose first picture is none
        raise InputError(f"{entry.path} cannot be read ({error}): replace it.") from error
    if times.damaged:
        raise InputError(f"{entry.path} is truncated or damaged: replace it.")
    return len(times.shown)


def read_group(
    path: Path, start: int, sampling: GroupSampling, size: tuple[int, int] | None
) -> Float[Tensor, "f 3 h w"]:
    """The frames start, start + stride, ... of a clip; memory is that of the group."""
    with closing(iter_frames(path, start + sampling.span)) as frames:
        group = torch.stack(list(islice(frames, start, None, sampling.stride)))
    return group if size is None else fit_to_size(group, size)


def summarised(n_clips: int, skipped: dict[str, str]) -> str:
    """'12 of 14 clips used; 2 skipped: ...', naming the first of them."""
    if not skipped:
        return f"{n_clips} of {n_clips} clips used, none skipped."
    named = "; ".join(islice(skipped.values(), N_NAMED))  # every reason names its clip or file
    more = f"; and {len(skipped) - N_NAMED} more" if len(skipped) > N_NAMED else ""
    return (
        f"{n_clips - len(skipped)} of {n_clips} clips used; {len(skipped)} skipped: {named}{more}"
    )
