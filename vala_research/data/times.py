"""Find the frame rate of a clip, and the frame on screen at each tick, from presentation times."""

import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median

from vala_research.data.pictures import exact_rate
from vala_research.data.tonemap import Brightness

SLOWEST, FASTEST = Fraction(1, 1000), 100_000  # frames per second; others make no sense
LONGEST_GAP = 10.0  # seconds; a larger step is a joint (ffmpeg's own limit)


@dataclass(frozen=True)
class Timeline:
    """The decoded frame that a player shows at each tick.

    rate: ticks per second, the frame rate.
    shown: index of the decoded frame, one per tick, never decreasing.
    start: presentation time of the first frame, in seconds.
    damaged: the file ends early, or its decoder complains.
    n_frames: number of decoded frames, up to the damage.
    brightness: of a clip of high dynamic range.
    """

    rate: Fraction
    shown: Sequence[int]
    start: float = 0.0
    damaged: bool = False
    n_frames: int = 0
    brightness: Brightness | None = None

    def warn_of_losses(self, path: Path) -> None:
        """Warn if a variable rate, resampled at its average, never shows some of the frames."""
        lost = self.n_frames - len(set(self.shown))
        if lost > 0:
            warnings.warn(
                f"{path} has a variable rate: at its average of {float(self.rate):.3g} frames per"
                f" second, {lost} of {self.n_frames} pictures are lost; convert it to a constant"
                " rate to keep them.",
                stacklevel=3,
            )


def without_jumps(times: list[float]) -> list[float]:
    """Let times go on where they jump back or far ahead, since recordings are joined there."""
    gaps = [b - a for a, b in pairwise(times)]
    usual = median([g for g in gaps if g > 0] or [0.04])
    back = [0.0, *(g <= 0 for g in gaps), 0.0]  # beside a jump back, steps mean nothing
    odd = [any(back[i : i + 3]) or g > LONGEST_GAP for i, g in enumerate(gaps)]
    even = [usual if is_odd else g for g, is_odd in zip(gaps, odd, strict=True)]
    fixed = times[:1]
    for gap in even:
        fixed.append(fixed[-1] + gap)
    return times if even == gaps else fixed


def sampling(times: list[float], last: float, declared: list) -> tuple[Fraction, Sequence[int]]:
    """Choose the rate, and the frame on screen at each tick.

    times: presentation times, ascending, in seconds.
    last: duration of the last frame, in seconds; 0 if unknown.
    declared: rates that the header names, the likeliest first.
    """
    n, times = len(times), [t - times[0] for t in times]
    if n == 1:
        return exact_rate(declared[0]), [0]

    # A constant rate shows each frame once. Containers round times (webm: 1 ms, gif: 10 ms).
    span = times[-1] + (last or times[-1] / (n - 1))
    mean = exact_rate(n / span) if span > 0 else 0
    for rate in (*declared, mean):
        if rate and all(abs(t - k / rate) < 0.5 / rate for k, t in enumerate(times)):
            return exact_rate(rate), range(n)

    # Times that make no sense are left aside.
    if not SLOWEST <= mean <= FASTEST:
        return exact_rate(declared[0]), range(n)

    # A variable rate shows, at each tick of the mean rate, the latest frame.
    return mean, [bisect_right(times, k / float(mean) + 1e-6) - 1 for k in range(n)]
