"""Settings of edits by differences, which invert nothing: FlowEdit and FlowAlign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vala_research import InputError, number_in
from vala_research.diffusion.noise_start import NoiseStart

RATIO = 3.5 / 13.5  # of the guidance of the source prompt to the edit's, as published


@dataclass(frozen=True)
class DifferenceEdit:
    """An edit by differences of clean estimates, in place of an inversion; see `methods.flow_edit`.

    n_max: last share of the steps that edit; before them nothing happens. Less keeps more of the
        clip. n_min: last share of the steps that sample the edit plainly instead.
    n_avg: draws of noise per step, whose differences are averaged.
    source_guidance: guidance of the source prompt; 1 or less turns it off. The edit's guidance is
        that of the call. None keeps the published ratio, 3.5 to 13.5, but not below 1.
    zeta: None is FlowEdit, with fresh noise per step. A number is FlowAlign, with one noise: the
        source prompt is the negative one, and zeta pulls back to the clip at every step.
    mask: 1 where the edit may change the clip, 0 where not; h w or f h w, of any size. "words": a
        mask from the cross-attention to the words in which the prompts differ, see `word_masks`.

    The defaults are FlowEdit's for Stable Diffusion 3: 33 of 50 steps, and that ratio.
    """

    n_max: float = 0.66
    n_min: float = 0.0
    n_avg: int = 1
    source_guidance: float | None = None
    zeta: float | None = None
    mask: Any = None

    @property
    def finds_words(self) -> bool:
        """Whether the mask comes from cross-attention."""
        return isinstance(self.mask, str)

    def __post_init__(self):
        number_in("n_max, the last share of the steps that edit,", self.n_max, 0, 1)
        number_in("n_min, the last share of the steps that sample,", self.n_min, 0, 1)
        number_in("n_avg, draws per step,", self.n_avg, 1, 100, whole=True)
        if self.source_guidance is not None:
            number_in("source_guidance", self.source_guidance, 0, 100)
        if self.zeta is not None:
            number_in("zeta", self.zeta, 0, 1)
        if self.finds_words and self.mask != "words":
            raise InputError(f"The mask is {self.mask!r}: give 'words', or a tensor h w or f h w.")
        if self.n_min > self.n_max:
            raise InputError(
                f"n_min is {self.n_min} and n_max {self.n_max}: give an n_min up to n_max."
            )

    def first_steps(self, n_steps: int) -> tuple[int, int]:
        """The step at which editing begins, and the one at which plain sampling begins."""
        begin, sample = (n_steps - round(x * n_steps) for x in (self.n_max, self.n_min))
        if begin == n_steps:
            raise InputError(
                f"n_max is {self.n_max}: none of {n_steps} steps edits, give at least "
                f"{1 / n_steps:g}."
            )
        return begin, sample

    def source_scale(self, guidance_scale: float) -> float:
        """Guidance of the source prompt beside that of the edit."""
        if self.source_guidance is None:
            return max(1.0, guidance_scale * RATIO)
        return self.source_guidance

    def n_branches(self, guidance_scale: float) -> int:
        """Network evaluations of a frame in one step that edits."""
        if self.zeta is not None:
            return 3
        scales = (self.source_scale(guidance_scale), guidance_scale)
        return self.n_avg * sum(2 if scale > 1 else 1 for scale in scales)

    def n_calls(self, n_steps: int, guidance_scale: float) -> int:
        """Network evaluations of a frame in the whole edit."""
        begin, sample = self.first_steps(n_steps)
        plain = (n_steps - sample) * (2 if guidance_scale > 1 else 1)
        return (sample - begin) * self.n_branches(guidance_scale) + plain


WITHOUT = (NoiseStart, DifferenceEdit)  # edits that invert nothing


def check_inverts(settings: Any) -> None:
    """Raise InputError for the settings of a way to edit that inverts nothing."""
    if isinstance(settings, WITHOUT):
        raise InputError(
            "An edit that starts from noise, or from the clip itself, inverts nothing: give this "
            "to an edit, or another inversion."
        )
