"""A verdict holds a claim, the corrected statement, and the numbers that reproduce both.

Every check in `theory` is a function of one statement, without required arguments, that returns a
`Verdict`. The bound must hold under attack and be attained within a stated factor. Where the claim
is false, a counterexample must break the claim as written. "false" means that no reading which the
paper itself states saves the sentence. Where one does, the verdict is "holds with hypothesis", and
the counterexample shows that the hypothesis is needed.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

from theory.readings import READINGS, Reading, part_of

VERDICTS = ("holds", "holds with hypothesis", "false", "vacuous")
ATTAINED = 0.99  # share of a bound from which it counts as attained
ROUNDING = 1e-6  # relative: an attack ends with differences of nearly equal numbers


@dataclass(frozen=True)
class Counterexample:
    """A point at which the paper's inequality `lhs <= rhs` is claimed and does not hold."""

    point: str
    lhs: float
    rhs: float

    @property
    def breaks(self) -> bool:
        """The claim fails here by more than rounding."""
        return self.lhs > self.rhs * (1 + ROUNDING) + 1e-12

    def __str__(self) -> str:
        return f"{self.point}: {self.lhs:.4g} > {self.rhs:.4g}"


@dataclass(frozen=True)
class Verdict:
    """The result of checking one statement.

    statement: its name, such as "C.7".
    claim: the paper's claim, in one line.
    verdict: one of VERDICTS.
    corrected: the true statement, in one line.
    measured, bound: worst case of the corrected statement, and its bound.
    witness: the point that attains the worst case.
    hypotheses: how each was checked, and whether it held at every point searched.
    least_tightness: factor of the bound that must be attained; 0 if the bound need not be attained.
    n_searched: number of points evaluated.
    """

    statement: str
    claim: str
    verdict: str
    corrected: str
    measured: float
    bound: float
    witness: dict[str, Any] = field(default_factory=dict)
    hypotheses: dict[str, bool] = field(default_factory=dict)
    counterexample: Counterexample | None = None
    least_tightness: float = 0.5
    n_searched: int = 0
    seconds: float = 0.0

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"Unknown verdict {self.verdict!r}: one of {', '.join(VERDICTS)}.")
        if self.verdict == "false" and self.counterexample is None:
            raise ValueError(f"{self.statement} is called false without a counterexample.")
        if self.verdict == "holds" and self.counterexample is not None:
            raise ValueError(f"{self.statement} holds, but has a counterexample.")

    @property
    def reading(self) -> Reading:
        """How the statement is read; empty for one that is not in `READINGS`."""
        return READINGS.get(self.statement) or Reading("", "", "", "", "", "")

    @property
    def tightness(self) -> float:
        """measured / bound. An identity has bound 0, which a measured 0 attains."""
        if self.bound == 0:
            return 1.0 if self.measured <= 1e-12 else math.inf
        return self.measured / self.bound

    @property
    def attained(self) -> bool:
        """The worst case comes within 1 percent of the bound."""
        return self.tightness >= ATTAINED

    @property
    def reproduced(self) -> bool:
        """The bound holds and is attained, hypotheses are met, the counterexample breaks."""
        return (
            math.isfinite(self.measured)
            and self.least_tightness <= self.tightness <= 1 + ROUNDING
            and all(self.hypotheses.values())
            and (self.counterexample is None or self.counterexample.breaks)
        )

    def as_row(self) -> dict[str, Any]:
        """One object of `python -m theory --json`.

        counterexample: None unless the verdict is "false". without_hypothesis: the same for "holds
        with hypothesis". lhs, rhs: both sides of the inequality that fails there.
        """
        names = ("statement", "claim", "verdict", "corrected", "measured", "bound", "tightness")
        row = {name: getattr(self, name) for name in names}
        point = None if self.counterexample is None else str(self.counterexample)
        is_false = self.verdict == "false"
        row |= {"counterexample": point if is_false else None}
        row |= {"without_hypothesis": None if is_false else point}
        row |= {side: getattr(self.counterexample, side, None) for side in ("lhs", "rhs")}

        # What the numbers are, and how the statement is read.
        read = self.reading
        row |= {"part_of": part_of(self.statement), "source": read.source, "words": read.words}
        row |= {"reading": read.reading, "charitable_reading": read.charitable}
        row |= {"proof": read.proof, "quantity": read.quantity, "attained": self.attained}
        row |= {"seconds": round(self.seconds, 3), "reproduced": self.reproduced}
        return row | {"hypotheses": self.hypotheses, "n_searched": self.n_searched}


Check = Callable[..., Verdict]
STATEMENTS: dict[str, Check] = {}
Points = Callable[[], dict[str, bool]]
KNOWN_POINTS: dict[str, list[Points]] = {}  # by statement


def statement(name: str) -> Callable[[Check], Check]:
    """Register a check in the table under its name, and time it."""

    def register(check: Check) -> Check:
        @wraps(check)
        def timed(*args: Any, **kwargs: Any) -> Verdict:
            start = time.perf_counter()
            verdict = check(*args, **kwargs)
            known = {k: v for of in KNOWN_POINTS.get(name, []) for k, v in of().items()}
            return replace(
                verdict, hypotheses=verdict.hypotheses | known, seconds=time.perf_counter() - start
            )

        STATEMENTS[name] = timed
        return timed

    return register


def known_points(*names: str) -> Callable[[Points], Points]:
    """Register a cheap part of these statements' checks: their bounds where they are attained.

    It evaluates each bound at points that are known to attain it, without a search, and returns
    hypotheses of the verdicts. A constant that is wrong by 5 percent does not survive.
    """

    def register(check: Points) -> Points:
        for name in names:
            KNOWN_POINTS.setdefault(name, []).append(check)
        return check

    return register


def attains(value: Any, bound: Any, least: float = 0.999) -> bool:
    """Whether every value reaches `least` of its bound, and none exceeds it."""
    values, bounds = ([float(x) for x in (y if isinstance(y, list | tuple) else [y])]
                      for y in (value, bound))  # fmt: skip
    pairs = zip(values, bounds, strict=True)
    return all(least * b <= v <= b * (1 + ROUNDING) for v, b in pairs)
