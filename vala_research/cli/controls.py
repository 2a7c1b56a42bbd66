"""The ControlNets of `vala edit`: what each sees, how strongly and when it acts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vala_research import InputError
from vala_research.cli.options import Sampling

if TYPE_CHECKING:
    from vala_research.data.clips import Clip

DEPTH = "depth"
OPTIONS = "--control, --control-scale, --control-interval and --depth-model"


@dataclass(frozen=True)
class Controls:
    """ControlNets, and by the same order what belongs to each.

    controlnet: none of them is the model's own; "none" alone is without any. control: "frames",
    "canny", "depth", or a clip or folder of pictures. One value counts for all ControlNets.
    depth_model: the estimator of "depth".
    """

    controlnet: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    control_scale: tuple[float, ...] = ()
    control_interval: tuple[str, ...] = ()
    depth_model: str | None = None

    @classmethod
    def of(cls, *lists: Sequence | None, depth_model: str | None) -> Controls:
        """From the lists of the command line, each of them None if it was not given."""
        return cls(*(tuple(given or ()) for given in lists), depth_model=depth_model)

    @property
    def place(self) -> str | None:
        """For `Place`: None keeps the model's own, "none" leaves it out."""
        return "none" if self.controlnet else None

    def settings(self) -> list[tuple[str, float, tuple[float, float]]]:
        """What each ControlNet sees, its scale and its interval. Raises InputError."""
        from vala_research.diffusion.control_pictures import PICTURES
        from vala_research.diffusion.controlnet import GIVEN, ControlSettings

        n = len(self.nets)
        pictures = _each("--control", self.control or ("frames",), n)
        scales = _each("--control-scale", self.control_scale or (1.0,), n)
        intervals = _each("--control-interval", self.control_interval or ("0:1",), n)
        found = list(zip(pictures, scales, map(_ends, intervals), strict=True))
        for picture, scale, interval in found:
            ControlSettings(GIVEN, scale, interval)
            if picture not in (*PICTURES, DEPTH) and not Path(picture).exists():
                raise InputError(
                    f"--control is {picture!r}, which is no file or folder: give a clip or folder "
                    f"of pictures, or one of {', '.join((*PICTURES, DEPTH))}."
                )
        return found

    @property
    def nets(self) -> tuple[str, ...]:
        return () if self.controlnet == ("none",) else self.controlnet

    def check(self) -> None:
        """Refuse what no ControlNet can see, and options of one where none is given."""
        if not self.nets:
            others = (self.control, self.control_scale, self.control_interval, self.depth_model)
            if any(others):
                raise InputError(f"{OPTIONS} belong to a ControlNet: give --controlnet.")
            return
        if "none" in self.nets:
            raise InputError("--controlnet none leaves all out: give it alone.")
        seen = [picture for picture, _, _ in self.settings()]
        if (DEPTH in seen) != (self.depth_model is not None):
            raise InputError(
                "--control depth and --depth-model belong together: give both, such as "
                "--depth-model depth-anything/Depth-Anything-V2-Small-hf."
            )

    def load(self, pipe: Any, clip: Clip, sampling: Sampling) -> None:
        """Load the ControlNets, with what they see of this clip. Raises InputError."""
        for i, (where, (picture, scale, interval)) in enumerate(
            zip(self.nets, self.settings(), strict=True)
        ):
            load = pipe.add_controlnet if i else pipe.load_controlnet
            load(where, self._seen(picture, clip, sampling), scale, interval)

    def _seen(self, picture: str, clip: Clip, sampling: Sampling) -> Any:
        """The name of a picture, or pictures of one's own, frame by frame of the clip."""
        from vala_research.data.clips import read_clip
        from vala_research.diffusion.control_pictures import PICTURES, depth_maps

        if picture == DEPTH:
            return depth_maps(clip.frames, self.depth_model)
        if picture in PICTURES:
            return picture
        h, w = clip.frames.shape[-2:]
        given = read_clip(Path(picture), sampling.n_frames, sampling.stride, (h, w))
        if len(given) < len(clip):
            raise InputError(
                f"{picture} holds {len(given)} of the {len(clip)} frames that the ControlNet is to "
                "see: give one picture per frame."
            )
        return given.frames[: len(clip)]


def _each(option: str, values: tuple, n: int) -> tuple:
    """One value per ControlNet. Raises InputError."""
    if len(values) not in (1, n):
        raise InputError(
            f"{option} is given {len(values)} times for {n} ControlNets: give it once, or once for "
            "each."
        )
    return values if len(values) == n else values * n


def _ends(text: str) -> tuple[float, float]:
    """The ends of --control-interval FROM:TO. Raises InputError."""
    try:
        start, end = map(float, text.split(":"))
    except ValueError as error:
        raise InputError(
            f"--control-interval is {text[:20]!r}: give FROM:TO, two fractions of the steps' T, as "
            "in 0.2:1."
        ) from error
    return start, end
