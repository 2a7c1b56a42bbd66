"""A blind study of pairs of clips: which pairs are shown, on which side, in which order.

The protocol of GE-Adapter's user study (arXiv 2501.04606, Fig. 6), with checks of attention.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vala_research import InputError
from vala_research.data.clips import read_clip
from vala_research.data.tables import read_csv
from vala_research.evaluation.provenance import file_hash
from vala_research.files import write_json

# Asked of every pair, in this order.
QUESTIONS = {
    "text": "Which clip fits the text better?",
    "quality": "In which clip do the single pictures look better?",
    "consistency": "Which clip is steadier over time?",
    "overall": "Which clip do you prefer?",
}
ANSWERS = ("left", "same", "right")
PAIR, IDENTICAL, REPEAT = "pair", "identical", "repeat"  # kinds of trials
N_ORDERS = 48  # orders and sides that are drawn beforehand; a rater's name chooses one
KEY = "study.json"  # says which clip is whose; raters must not see it
COLUMNS = ("prompt", "a", "video_a", "b", "video_b")


@dataclass(frozen=True)
class Pair:
    """Two edits of one clip by one prompt.

    a, b: the editors. source: the clip before the edit, or "". group: compared apart from other
    groups, such as a host.
    """

    prompt: str
    a: str
    video_a: str
    b: str
    video_b: str
    source: str = ""
    group: str = ""


@dataclass(frozen=True)
class Trial:
    """One screen: a pair, an identical pair (one clip on both sides), or a pair once more.

    first: the editor ("a" or "b") whose clip is the first one; the order says on which side it is.
    """

    pair: int
    kind: str
    first: str


@dataclass(frozen=True)
class Study:
    """orders: of each, trials with whether the first clip is on the right."""

    name: str
    pairs: tuple[Pair, ...]
    trials: tuple[Trial, ...]
    orders: tuple[tuple[tuple[int, bool], ...], ...]
    seed: int = 0

    def order_of(self, rater: str) -> int:
        """The number of a rater's order: the name decides, so a study can be taken up again."""
        return fnv1a(rater) % len(self.orders)

    def names_of(self, trial: Trial) -> tuple[str, str]:
        """The editors of a trial's first and second clip."""
        pair = self.pairs[trial.pair]
        return (pair.a, pair.b) if trial.first == "a" else (pair.b, pair.a)

    def clips_of(self, trial: Trial) -> tuple[str, str]:
        """The files of a trial's first and second clip; of an identical pair, twice the first."""
        pair = self.pairs[trial.pair]
        first, second = pair.video_a, pair.video_b
        if trial.first == "b":
            first, second = second, first
        return (first, first) if trial.kind == IDENTICAL else (first, second)

    def save(self, folder: Path) -> Path:
        return write_json(folder / KEY, asdict(self))

    @classmethod
    def load(cls, folder: str | Path) -> Study:
        """Read what `save` wrote. Raises InputError."""
        path = Path(folder) / KEY
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                held["name"], tuple(Pair(**pair) for pair in held["pairs"]),
                tuple(Trial(**trial) for trial in held["trials"]),
                tuple(tuple((t, bool(r)) for t, r in order) for order in held["orders"]),
                held["seed"],
            )  # fmt: skip
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{folder} holds no {KEY} that can be read: give the folder that `vala study make` "
                "wrote."
            ) from error


def fnv1a(text: str) -> int:
    """The 32-bit hash of Fowler, Noll and Vo, which the page computes too."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    return value


def read_pairs(listing: str | Path) -> list[Pair]:
    """The pairs of a csv: prompt, a, video_a, b, video_b[, source, group].

    Paths are relative to the csv. Raises InputError for missing columns, cells or clips, and for
    two clips of different length or size, which would tell them apart.
    """
    path = Path(listing)
    lines = read_csv(path)
    if not lines:
        raise InputError(f"{path} lists no pair: add a line for each.")
    if missing := set(COLUMNS) - set(lines[0]):
        raise InputError(f"{path} has no column {', '.join(sorted(missing))}: add it.")

    pairs = []
    for i, line in enumerate(lines, 2):
        if empty := [name for name in COLUMNS if not line[name]]:
            raise InputError(f"{path}, line {i} lacks its {empty[0]}: add it.")
        if line["a"] == line["b"]:
            raise InputError(f"{path}, line {i} compares {line['a']} with itself: name two.")
        videos = {k: line.get(k) and str(path.parent / line[k])
                  for k in ("video_a", "video_b", "source")}  # fmt: skip
        if gone := [video for video in videos.values() if video and not Path(video).exists()]:
            raise InputError(f"{path}, line {i} names {gone[0]}, which is not there.")
        shapes = [tuple(read_clip(videos[k]).frames.shape) for k in ("video_a", "video_b")]
        if shapes[0] != shapes[1]:
            (f, _, h, w), (f_2, _, h_2, w_2) = shapes
            raise InputError(
                f"{path}, line {i} pairs {f} frames of {h}x{w} with {f_2} of {h_2}x{w_2}: give two "
                "clips of one length and size."
            )
        pairs.append(
            Pair(line["prompt"], line["a"], videos["video_a"], line["b"], videos["video_b"],
                 videos["source"] or "", line.get("group") or "")
        )  # fmt: skip
    return pairs


def draw_study(pairs: Sequence[Pair], checks: float = 0.1, seed: int = 0) -> Study:
    """Draw the trials of a study and their orders.

    checks: identical pairs, and as many repeats with the sides exchanged, each as a share of the
        pairs, rounded up; 0 is none.
    """
    if not 0 <= checks <= 1:
        raise InputError(f"checks is {checks}: give a share of the pairs, from 0 to 1.")
    draw, n = random.Random(seed), len(pairs)
    n_checks = math.ceil(checks * n - 1e-9)
    trials = [Trial(i, PAIR, draw.choice("ab")) for i in range(n)]
    trials += [Trial(i, IDENTICAL, draw.choice("ab")) for i in draw.sample(range(n), n_checks)]
    repeated = draw.sample(range(n), n_checks)
    trials += [Trial(i, REPEAT, trials[i].first) for i in repeated]
    orders = tuple(_order(trials, draw) for _ in range(N_ORDERS))
    return Study(_name(pairs, trials, seed), tuple(pairs), tuple(trials), orders, seed)


def _order(trials: Sequence[Trial], draw: random.Random) -> tuple[tuple[int, bool], ...]:
    """Trials in random order, each with a random side; a repeat has the other side."""
    is_right = {i: draw.random() < 0.5 for i in range(len(trials))}
    for i, trial in enumerate(trials):
        if trial.kind == REPEAT:
            is_right[i] = not is_right[trial.pair]  # pair i is trial i
    order = draw.sample(range(len(trials)), len(trials))
    return tuple((i, is_right[i]) for i in order)


def _name(pairs: Sequence[Pair], trials: Sequence[Trial], seed: int) -> str:
    """A hash of the clips, the prompts and what is drawn."""
    parts = [(p.prompt, p.a, p.b, *(file_hash(Path(v)) for v in (p.video_a, p.video_b)))
             for p in pairs]
    text = repr((parts, list(trials), seed))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
