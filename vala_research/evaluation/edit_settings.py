"""Named points in the editor's space, and what a pipeline has to load for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vala_research import InputError
from vala_research.diffusion.attention import Keyframes
from vala_research.diffusion.control_pictures import PICTURES
from vala_research.diffusion.controlnet import GIVEN
from vala_research.diffusion.cross_frame import CrossFrame
from vala_research.diffusion.difference import DifferenceEdit
from vala_research.diffusion.injection import Injection, n_source_steps
from vala_research.diffusion.inversion import InversionSettings, get_inversion
from vala_research.editing.plan import Plan
from vala_research.methods.anchors import AnchorSettings

ALWAYS = (0.0, 1.0)  # all steps
PARTS = ("motion", "controlnet", "control", "control_scale", "control_interval", "adapter")


@dataclass(frozen=True)
class EditSetting:
    """A named point in the editor's space: arguments of `VideoEditPipeline.__call__`.

    adapter: the folder of a `TemporalAdapter`, "miniature", or "" for none. adapter_interval and
    adapter_scale None are its own. motion, controlnet: likewise, of motion modules and of a
    ControlNet. control: what it sees; "frames" and it acts in the edit alone, "canny", or the name
    of pictures that the clips come with, such as "depth", and it acts in the inversion too.
    fusion: several models at once; attention is then its sources'. negates_source: the source
    prompt is the negative prompt. guidance_interval: the share of the steps in which guidance acts,
    as (0, 0.5) is the first half; the other steps are not guided. Only an edit that is neither
    fused nor made without inversion may have an interval: others raise InputError.
    """

    attention: str | AnchorSettings | Keyframes | CrossFrame = "extended"
    inversion: str | InversionSettings = "ddim"
    injection: float | Injection = 0.0
    guidance_scale: float = 2.0
    num_inference_steps: int = 25
    adapter: str = ""
    adapter_interval: tuple[float, float] | None = None
    adapter_scale: float | None = None
    fusion: Plan | None = None
    motion: str = ""
    controlnet: str = ""
    control: str = "frames"
    control_scale: float = 1.0
    control_interval: tuple[float, float] = (0.0, 1.0)
    strength: float = 1.0
    negates_source: bool = False
    guidance_interval: tuple[float, float] = ALWAYS

    def __post_init__(self):
        if self.guidance_interval == ALWAYS:
            return
        if self.fusion or isinstance(get_inversion(self.inversion), DifferenceEdit):
            raise InputError(
                "guidance_interval: fused edits, and edits without inversion, are guided in all "
                "steps. Leave it out."
            )

    @property
    def n_sampling(self) -> int:
        """Network calls per frame of the sampling: all guidance branches of all sources."""
        n_steps = int(self.num_inference_steps * self.strength)
        scales = [self.guidance_scale]
        if (plan := self.fusion) is not None:
            n_used = len(plan.sources) if plan.schedule.tau < 1 else 1
            scales = [self.guidance_scale if g is None else g for g in plan.guidances[:n_used]]
        if isinstance(difference := get_inversion(self.inversion), DifferenceEdit):
            return sum(difference.n_calls(n_steps, scale) for scale in scales)
        n_guided = sum(is_guided(self.guidance_interval, i, n_steps) for i in range(n_steps))
        edits = sum(n_steps + n_guided * (scale > 1) for scale in scales)
        attention = self.attention if plan is None else "own"
        return edits + n_source_steps(attention, Injection.of(self.injection), n_steps)

    @property
    def parts(self) -> dict[str, Any]:
        """What a pipeline has to load."""
        return {k: getattr(self, k) for k in PARTS}

    def arguments(self) -> dict:
        """The arguments of the edit, but for the fusion and the prompts."""
        others = (*PARTS, "fusion", "negates_source", "guidance_interval")
        given = {k: v for k, v in vars(self).items() if k not in others}
        if self.guidance_interval == ALWAYS:
            return given
        callback = GuidedSteps(self.guidance_scale, self.guidance_interval)
        return given | {"guidance_scale": callback.scale_at(0, 1), "callback_on_step_end": callback}

    def inverting(self) -> dict:
        """Arguments that inversion and edit share: settings that agree in them invert alike."""
        shared = (
            "attention", "inversion", "num_inference_steps", "adapter_interval", "adapter_scale",
            "strength",
        )  # fmt: skip
        return {k: v for k, v in vars(self).items() if k in shared}

    def identity(self, revision: Callable[[str, str], str]) -> EditSetting:
        """The setting with its networks named by what they are, see `provenance.revision`."""
        plan = self.fusion
        if plan is not None:
            plan = replace(plan, motion=revision(plan.motion, "motion"))
            if "flow" in plan.sources:
                plan = replace(plan, flow=revision(plan.flow, "flow"))
        parts = {k: revision(getattr(self, k), k) for k in ("motion", "controlnet", "adapter")}
        return replace(self, fusion=plan, **parts)


def is_guided(interval: tuple[float, float], i: int, n_steps: int) -> bool:
    """Whether step i of n lies in an interval of the steps."""
    return interval[0] * n_steps <= i < interval[1] * n_steps


@dataclass(frozen=True)
class GuidedSteps:
    """A `callback_on_step_end` that guides an edit in an interval of its steps alone.

    Kynkäänniemi et al. 2024 (arXiv 2404.07724) bound the noise levels; here the steps are bounded.
    """

    guidance_scale: float
    interval: tuple[float, float]

    def scale_at(self, i: int, n_steps: int) -> float:
        """The scale of step i of n."""
        return self.guidance_scale if is_guided(self.interval, i, n_steps) else 1.0

    def __call__(self, pipe: Any, i: int, _t: float, _tensors: dict) -> dict:
        pipe._guidance_scale = self.scale_at(i + 1, pipe.num_timesteps)
        return {}


def equip(
    pipe, motion: str = "", controlnet: str = "", control: str = "frames",
    control_scale: float = 1.0, control_interval: tuple[float, float] = (0.0, 1.0),
    adapter: str = "",
) -> None:  # fmt: skip
    """Let a pipeline have these parts and no others."""
    pipe.unload_adapter()
    pipe.unload_motion_adapter()
    pipe.unload_controlnet()
    if motion:
        pipe.load_motion_adapter(motion)
    if controlnet:
        picture = control if control in PICTURES else GIVEN
        how = (control_scale, control_interval, control != "frames")
        pipe.load_controlnet(controlnet, picture, *how)
    if adapter:
        pipe.load_adapter(adapter)


def alike_settings(settings: dict[str, EditSetting]) -> list[dict[str, EditSetting]]:
    """The settings in groups that ask for the same parts."""
    groups: dict[tuple, dict[str, EditSetting]] = {}
    for name, s in settings.items():
        groups.setdefault(tuple(s.parts.values()), {})[name] = s
    return list(groups.values())


def row_order(n_cases: int, settings: dict[str, EditSetting]) -> list[tuple[int, str]]:
    """The rows of `run_edits` in their order: number of the case, name of the setting."""
    return [
        (i, name)
        for alike in alike_settings(settings)
        for i in range(n_cases)
        for name in alike
    ]
