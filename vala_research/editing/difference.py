"""A stream without an inversion: it moves the clip by differences; see `methods.flow_edit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.diffusion.attending import needs_source
from vala_research.diffusion.difference import DifferenceEdit
from vala_research.diffusion.inversion import Inversion
from vala_research.diffusion.schedule import Step
from vala_research.diffusion.word_masks import WordMask
from vala_research.editing.stream import Stream
from vala_research.editing.stretches import predicted
from vala_research.methods.flow_edit import moved_difference, paired_states

NEGATIVE, PROMPT, SOURCE = 0, 1, 2  # rows of a stream's text


@dataclass
class Draws:
    """Noise that all streams of an edit share: the same for each, and new at every step."""

    generator: Any
    is_fixed: bool  # one noise for all steps
    kept: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def noise(self, step: int, draw: int, like: Tensor) -> Tensor:
        """Draw in order of the steps; the noise of earlier steps is forgotten."""
        key = (0, 0) if self.is_fixed else (step, draw)
        if key not in self.kept:
            self.kept = {k: x for k, x in self.kept.items() if k[0] == key[0]}
            self.kept[key] = randn_tensor(like.shape, self.generator, like.device, like.dtype)
        return self.kept[key]


@dataclass
class DifferenceStream(Stream):
    """A stream whose latent z is the edit's clean clip, from the clip itself on.

    In the last n_min steps z is a noisy latent, as in any stream.
    """

    edit: DifferenceEdit = field(default_factory=DifferenceEdit)
    draws: Draws | None = None
    found: WordMask | None = None

    def start(self, inverted: Inversion) -> None:
        super().start(inverted)
        if self.edit.finds_words:
            size = tuple(inverted.latents.shape[-2:])
            self.found = WordMask(self.edited, self.text.shape[1], size)

    def step(self, i: int, step: Step) -> None:
        """One step of the edit: nothing, a difference, or plain sampling."""
        begin, sample = self.edit.first_steps(len(self.schedule))
        if i >= sample:
            if i == sample:
                self.z = self._states(i, 0, step)[1]
            self.z, _ = self._steps(i, step)
        elif i >= begin:
            levels = step.noisy.s, step.clean.s
            clean = sum(self._clean_difference(i, k, step) for k in range(self._n_draws))
            clip = self.inverted.latents
            moved = moved_difference(
                self.z - clip, clean / self._n_draws, *levels, self.edit.zeta or 0.0
            )
            self.z = clip + moved * self._mask(clip)

    @property
    def _n_draws(self) -> int:
        return 1 if self.edit.zeta is not None else self.edit.n_avg

    def _states(self, i: int, k: int, step: Step) -> tuple[Tensor, Tensor]:
        """The noisy clip and the noisy edit of step i, by draw k."""
        clip = self.inverted.latents
        noise = self.draws.noise(i, k, clip)
        return paired_states(clip, self.z - clip, noise, step.noisy.a, step.noisy.b)

    def _clean_difference(self, i: int, k: int, step: Step) -> Float[Tensor, "f c h w"]:
        """x0 of the noisy edit minus x0 of the noisy clip, under one noise."""
        states = self._states(i, k, step)
        if self.edit.zeta is not None:
            # FlowAlign: the source prompt stands for both, and is the negative of the edit's.
            asked = [(0, SOURCE), (1, SOURCE), (1, PROMPT)]
            of_clip, low, high = self._predictions(step, states, asked)
            of_edit = low + self.guidance_scale * (high - low)
        else:
            scale = self.edit.source_scale(self.guidance_scale)
            of_clip = self._guided(step, states, 0, SOURCE, scale)
            of_edit = self._guided(step, states, 1, PROMPT, self.guidance_scale)
        x0 = [
            self.schedule.split(z, prediction, step.noisy)[0]
            for z, prediction in zip(states, (of_clip, of_edit), strict=True)
        ]
        return x0[1] - x0[0]

    def _guided(
        self, step: Step, states: Sequence[Tensor], which: int, words: int, scale: float
    ) -> Tensor:
        """The prediction at one of the states, with classifier-free guidance above 1."""
        rows = [NEGATIVE, words] if scale > 1 else [words]
        predictions = self._predictions(step, states, [(which, row) for row in rows])
        if len(rows) == 1:
            return predictions[0]
        return predictions[0] + scale * (predictions[1] - predictions[0])

    def _predictions(
        self, step: Step, states: Sequence[Tensor], asked: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "g f c h w"]:
        """The network's predictions; asked: state and row of the text, per branch."""
        x = torch.stack([states[which] for which, _ in asked])
        rows = [row for _, row in asked]
        shown = [int(row == PROMPT) for row in rows]
        more = ()
        if self.found is not None:
            read = {SOURCE: 0, PROMPT: 1}
            more = (self.found.patch([read.get(row) for row in rows], x.shape[1]),)
        return predicted(
            self.backbone, self.attention, x, step.t, self.text[rows], more, shown=shown
        )

    def _mask(self, clip: Float[Tensor, "f c h w"]) -> Tensor | float:
        """The mask at the latents' size; 1 where none is given."""
        if self.found is not None:
            return self.found.mask()
        if self.edit.mask is None:
            return 1.0
        mask = torch.as_tensor(self.edit.mask).to(clip)
        mask = mask.expand(len(clip), *mask.shape[-2:])[:, None]
        return F.interpolate(mask, clip.shape[-2:], mode="area")


def differences(
    streams: Sequence[Stream], edit: DifferenceEdit, z_0: Float[Tensor, "f c h w"] | None,
    latents: Inversion | None, generator: Any,
) -> list[DifferenceStream]:  # fmt: skip
    """The streams as streams of differences, at the clip's clean latents.

    Raises InputError where an inversion is given, features are injected, or frames meet by the
    source's features; and for a mask of another clip.
    """
    if z_0 is None or latents is not None or any(s.inverted is not None for s in streams):
        raise InputError("flow_edit and flow_align start from the clip itself: give no latents.")
    if any(s.n_injected or needs_source(s.attention) for s in streams):
        raise InputError(
            "flow_edit and flow_align invert nothing, so no features of the clip can be injected: "
            "set injection to 0, and an attention that does not follow the source."
        )
    is_given = edit.mask is not None and not edit.finds_words
    shape = tuple(torch.as_tensor(edit.mask).shape) if is_given else ()
    if shape and (len(shape) not in (2, 3) or len(shape) == 3 and shape[0] not in (1, len(z_0))):
        raise InputError(f"The mask has the shape {shape}: give h w, or f h w, f = {len(z_0)}.")
    edit.first_steps(len(streams[0].schedule))
    one = generator[0] if isinstance(generator, list) else generator
    draws = Draws(one, is_fixed=edit.zeta is not None)
    moved = []
    for stream in streams:
        own = {f.name: getattr(stream, f.name) for f in fields(Stream)}
        moved.append(DifferenceStream(**own, edit=edit, draws=draws))
        moved[-1].start(Inversion(z_0, attention=stream.attention))
    return moved

