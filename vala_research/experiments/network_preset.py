"""Settings that the experiments of the theory share: one network, one clip."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vala_research import VideoEditPipeline, read_clip
from vala_research.evaluation.cases import Case, sprite_cases
from vala_research.experiments.contract import STABLE_DIFFUSION, Preset
from vala_research.sprites.scene import WORLD


@dataclass(frozen=True, kw_only=True)
class NetworkPreset(Preset):
    """Base of the settings of experiments that ask one network."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {}, "paper": {"model": STABLE_DIFFUSION}
    }  # fmt: skip

    model: str = "miniature"  # or a folder or a hub id
    seed: int = 0  # of everything random


@dataclass(frozen=True, kw_only=True)
class ClipPreset(NetworkPreset):
    """Base of the settings of experiments on one clip."""

    clip: str = ""  # a video, gif or folder of frames; "": a sprite clip
    n_frames: int = 4  # of the clip

    @property
    def inputs(self) -> list[str]:
        """Files whose hashes `emit` records."""
        return [self.clip] if self.clip else []

    def case(self, pipe: VideoEditPipeline, prompt: str = "") -> Case:
        """Read the clip at the model's own size. The prompt of a sprite clip is its caption."""
        if not self.clip:
            (case,) = sprite_cases(1, WORLD, self.n_frames, side_of(pipe))
            return replace(case, seed=self.seed)
        frames = read_clip(self.clip, self.n_frames, size=side_of(pipe)).frames
        return Case(frames, prompt, "", seed=self.seed)


def side_of(pipe: VideoEditPipeline) -> int:
    """Side of the square frames that a model was trained on, in pixels."""
    side = pipe.unet.config.get("sample_size")
    return side * pipe.vae_scale_factor if side else pipe.vae.config.sample_size
