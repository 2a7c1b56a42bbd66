"""The edits whose results a device must share with the CPU: every part of the library once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vala_research.diffusion.attention import Keyframes
from vala_research.diffusion.bilateral_inversion import BilateralInversion
from vala_research.diffusion.difference import DifferenceEdit
from vala_research.diffusion.fixed_point import QUICK
from vala_research.diffusion.injection import Injection
from vala_research.diffusion.null_text import NullTextSettings
from vala_research.diffusion.token_flow import TokenFlow
from vala_research.editing.hosts import HOSTS
from vala_research.editing.pipeline import VideoEditPipeline
from vala_research.editing.plan import Plan
from vala_research.evaluation.edit_settings import EditSetting, equip
from vala_research.methods.anchors import AnchorSettings
from vala_research.methods.fusion import FusionSchedule

HALF = FusionSchedule("constant", (0.5, 0.5))
CHECKPOINTS = ("miniature", "miniature_flow")


@dataclass(frozen=True)
class Mode:
    """An edit by a committed checkpoint."""

    setting: EditSetting
    checkpoint: str = "miniature"
    frames_per_chunk: int | None = None

    def edited(
        self, pipe: VideoEditPipeline, clip: Tensor, prompts: tuple[str, str], steps: int
    ) -> Tensor:
        """The edit of a clip, f c h w, on the CPU in float32."""
        s = self.setting
        arguments: dict[str, Any] = s.arguments() | dict(
            num_inference_steps=steps, output_type="pt", frames_per_chunk=self.frames_per_chunk,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        try:
            equip(pipe, **s.parts)
            if s.fusion is not None:
                arguments["fusion"] = s.fusion.fusion(s.fusion.built(pipe))
            return pipe(clip, *prompts, **arguments).frames[0].cpu().float()
        finally:
            equip(pipe)


def _with(attention: Any = "anchors", checkpoint: str = "miniature", **setting: Any) -> Mode:
    return Mode(EditSetting(attention, **{"guidance_scale": 2.0} | setting), checkpoint)


def _host(name: str, **setting: Any) -> Mode:
    host = HOSTS[name]
    values = dict(inversion=host.inversion, injection=host.injection) | setting
    return _with(host.attention, **values)


MODES: dict[str, Mode] = {
    # Attention.
    "anchors": _with(),
    "own": _with("own"),
    "first": _with("first"),
    "sparse causal": _with("sparse_causal"),
    "extended": _with("extended"),
    "token anchors": _with(AnchorSettings(8, granularity="token")),
    "refined anchors": _with(AnchorSettings(2, refinement_steps=2)),
    "key frames": _with(Keyframes("uniform", 2)),
    "one frame at a time": Mode(EditSetting("anchors"), frames_per_chunk=1),
    # Inversion, and edits without one.
    "exact": _with(inversion=QUICK),
    "bilateral": _with(inversion="bilateral"),
    "bilateral along frames": _with(inversion=BilateralInversion(place="frames", kernel_size=3)),
    "null text": _with(inversion=NullTextSettings(n_iterations=2)),
    "from noise": _with(inversion="noise"),
    "FlowEdit": _with("extended", inversion="flow_edit"),
    "FlowEdit, mask of words": _with("extended", inversion=DifferenceEdit(mask="words")),
    "FlowAlign": _with("extended", inversion="flow_align"),
    # What holds the clip, and what a checkpoint may bring.
    "injection": _with(injection=Injection(0.5, 0.5)),
    "prompt to prompt": _with(injection=Injection(0, 0, words=0.5, weights={"blue": 2.0})),
    "adapter": _with(adapter="miniature", adapter_interval=(0.0, 1.0), adapter_scale=1.0),
    "motion modules": _with("own", motion="miniature"),
    "ControlNet": _with(controlnet="miniature"),
    "ControlNet of outlines": _with(controlnet="miniature", control="canny"),
    "fusion": _with(fusion=Plan(("video", "image"), schedule=HALF)),
    # Hosts.
    "Text2Video-Zero": _host("text2video_zero"),
    "TokenFlow": _host("token_flow"),
    "TokenFlow, VALA's key frames": _with(
        TokenFlow(2, "vala"), injection=HOSTS["token_flow"].injection
    ),
    "vid2vid-zero": _host("vid2vid_zero", inversion=NullTextSettings(n_iterations=2)),
    "VidToMe": _host("vid_to_me"),
    "RAVE": _host("rave", controlnet="miniature"),
    "FLATTEN": _host("flatten"),
    # A rectified flow.
    "flow: FlowEdit": _with("extended", "miniature_flow", inversion="flow_edit"),
    "flow: anchors": _with(AnchorSettings(2), "miniature_flow", inversion="flow_edit"),
    "flow: exact": _with("extended", "miniature_flow", inversion=QUICK),
    "flow: values injected": _with(
        "extended", "miniature_flow", inversion="ddim", injection=Injection(0, 0, values=0.5)
    ),
    "flow and image": _with(
        inversion=QUICK, fusion=Plan(("image", "flow"), ("own", None), schedule=HALF)
    ),
}
