"""Settings of experiments whose sprite clips move as usual, fast, or with a cut."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from vala_research import InputError
from vala_research.evaluation.cases import ClipCase, EditCase, edit_cases
from vala_research.experiments.contract import EditPreset
from vala_research.sprites.motions import MOTIONS
from vala_research.sprites.scene import WORLD


@dataclass(frozen=True, kw_only=True)
class MotionPreset(EditPreset):
    """Base of such settings."""

    CHOICES: ClassVar[dict[str, Collection]] = {**EditPreset.CHOICES, "motions": MOTIONS}

    motions: Sequence[str] = ("usual",)  # how the objects of sprite clips move

    def cases(self) -> list[EditCase | ClipCase]:
        """The edits: those of the folder, or of sprite clips under each motion."""
        cases = super().cases()
        if self.clips:
            return cases
        if not self.motions:
            raise InputError(f"motions is empty: give one or more of {', '.join(MOTIONS)}.")
        chosen = dict(world=WORLD, split="test", n=self.n_clips, kinds=self.kinds)
        return [case for motion in self.motions for case in edit_cases(motion=motion, **chosen)]


def motions_of(rows: pd.DataFrame, settings: MotionPreset) -> pd.Series:
    """The motion of each row; it is empty in rows.csv where it is the usual one."""
    usual = pd.Series("" if settings.clips else "usual", rows.index)
    return rows.motion.fillna(usual) if "motion" in rows else usual


def by_motion(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each motion; of one without a name if they do not tell it."""
    return dict(list(rows.groupby("motion", sort=False))) if "motion" in rows else {"": rows}
