"""Does the device make the edits that the CPU makes? The miniature, by mode and dtype.

The CPU's result in float32 is the reference. PSNR between both edits, in dB; larger is better.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vala_research.diffusion.attention import Keyframes
from vala_research.diffusion.bilateral_inversion import BilateralInversion
from vala_research.diffusion.fixed_point import QUICK
from vala_research.diffusion.injection import Injection
from vala_research.diffusion.motion import load_motion_unet
from vala_research.diffusion.null_text import NullTextSettings
from vala_research.editing.extras import BARE
from vala_research.editing.fusion import Fusion
from vala_research.editing.pipeline import VideoEditPipeline
from vala_research.editing.source import Source
from vala_research.evaluation.gpu.machine import Machine, attempted
from vala_research.evaluation.memory import PROMPTS
from vala_research.evaluation.metrics import psnr
from vala_research.methods.anchors import AnchorSettings
from vala_research.methods.fusion import FusionSchedule
from vala_research.sprites.render import render
from vala_research.sprites.scene import WORLD, random_scene, split_generator

# Least PSNR to the CPU's float32. Rounding grows along the steps of an edit: by a factor of
# about a hundred from one part in 1e7 (float32), 1e3 (float16) or 1e2 (bfloat16).
LEAST = {torch.float32: 60.0, torch.float16: 30.0, torch.bfloat16: 18.0}
MODES: dict[str, dict[str, Any]] = {
    "anchors": dict(attention="anchors"),
    "own": dict(attention="own"),
    "first": dict(attention="first"),
    "sparse causal": dict(attention="sparse_causal"),
    "extended": dict(attention="extended"),
    "token anchors": dict(attention=AnchorSettings(8, granularity="token")),
    "refined anchors": dict(attention=AnchorSettings(2, refinement_steps=2)),
    "key frames": dict(attention=Keyframes("uniform", 2)),
    "one frame at a time": dict(frames_per_chunk=1),
    "injection": dict(injection=Injection(0.5, 0.5)),
    "exact": dict(inversion=QUICK),
    "bilateral": dict(inversion="bilateral"),
    "bilateral along frames": dict(inversion=BilateralInversion(place="frames", kernel_size=3)),
    "null text": dict(inversion=NullTextSettings(n_iterations=2)),
    "fusion": {},
    "adapter": dict(adapter_interval=(0.0, 1.0), adapter_scale=1.0),
}
OFFLOADS = ("enable_model_cpu_offload", "enable_sequential_cpu_offload")


def correctness(
    machine: Machine,
    modes: Sequence[str] = tuple(MODES),
    dtypes: Sequence[torch.dtype] = tuple(LEAST),
) -> Iterator[dict]:
    """Yield one row per mode and dtype: psnr, the largest difference, and whether it is right.

    Then one row per offload mode, and one that says whether the same edit twice is the same.
    """
    scale = machine.scale
    clip = render(
        random_scene(split_generator("test", 0), world=WORLD), scale.checked_frames,
        scale.checked_side,
    ).frames  # fmt: skip
    steps, on_cpu = scale.checked_steps, miniature()
    expected = {name: edited(on_cpu, clip, name, steps) for name in modes}
    for dtype in dtypes:
        pipe = miniature(dtype).to(machine.device)
        for name in modes:
            yield attempted(
                {"mode": name, "dtype": str(dtype).removeprefix("torch.")},
                lambda pipe=pipe, name=name, dtype=dtype: compared(
                    edited(pipe, clip, name, steps), expected[name], LEAST[dtype]
                ),
                machine,
            )

    # Offload, and the same edit twice.
    def offloaded(method: str) -> dict:
        if machine.device.type == "cpu":
            return {"error": "offload needs a device other than the CPU"}
        pipe = miniature()
        getattr(pipe, method)(device=machine.device)
        found = edited(pipe, clip, modes[0], steps)
        return compared(found, expected[modes[0]], LEAST[torch.float32])

    def repeated() -> dict:
        pipe = miniature().to(machine.device)
        one, two = (edited(pipe, clip, modes[0], steps) for _ in range(2))
        return compared(one, two, float("inf"))

    for method in OFFLOADS:
        row = {"mode": method.removeprefix("enable_").replace("_", " "), "dtype": "float32"}
        yield attempted(row, lambda method=method: offloaded(method), machine)
    yield attempted({"mode": "the same edit twice", "dtype": "float32"}, repeated, machine)


def miniature(dtype: torch.dtype = torch.float32) -> VideoEditPipeline:
    """The miniature on the CPU."""
    pipe = VideoEditPipeline.from_pretrained("miniature", dtype, **BARE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edited(pipe: VideoEditPipeline, clip: Tensor, name: str, steps: int) -> Tensor:
    """The edit of a mode, on the CPU in float32. Convolutions run in true float32, repeatably."""
    arguments: dict[str, Any] = dict(num_inference_steps=steps, output_type="pt") | MODES[name]
    if name == "fusion":
        video = Source(load_motion_unet(pipe.unet, "miniature"))
        arguments["fusion"] = Fusion([video, Source()], FusionSchedule("constant", (0.5, 0.5)))
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with warnings.catch_warnings(), exact:
        warnings.simplefilter("ignore")  # too few steps for the tolerance: both sides alike
        return with_adapter(
            pipe, name == "adapter", lambda: pipe(clip, *PROMPTS, **arguments).frames[0]
        ).cpu().float()  # fmt: skip


def with_adapter(pipe: VideoEditPipeline, has_adapter: bool, call: Callable[[], Tensor]) -> Tensor:
    """Call with the miniature's adapter loaded, if asked for; afterwards none is loaded."""
    try:
        if has_adapter:
            pipe.load_adapter("miniature")
        return call()
    finally:
        pipe.unload_adapter()


def compared(frames: Tensor, expected: Tensor, least: float) -> dict[str, Any]:
    """PSNR, the largest difference, the least PSNR that is right, and whether it is reached."""
    difference = (frames - expected).abs().max().item()
    decibel = psnr(frames, expected) if difference else float("inf")
    return {"psnr": decibel, "difference": difference, "least": least, "right": decibel >= least}
