"""Does the device make the edits that the CPU makes? The miniatures, by mode and dtype.

The CPU's result in float32 is the reference. PSNR between both edits, in dB; larger is better.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vala_research.editing.pipeline import VideoEditPipeline, quiet_pipeline
from vala_research.evaluation.gpu.machine import Machine, attempted
from vala_research.evaluation.gpu.modes import CHECKPOINTS, MODES
from vala_research.evaluation.memory import PROMPTS
from vala_research.evaluation.metrics import psnr
from vala_research.sprites.render import render
from vala_research.sprites.scene import WORLD, random_scene, split_generator

# Least PSNR to the CPU's float32. Rounding grows along the steps of an edit: by a factor of
# about a hundred from one part in 1e7 (float32), 1e3 (float16) or 1e2 (bfloat16).
LEAST = {torch.float32: 60.0, torch.float16: 30.0, torch.bfloat16: 18.0}
OFFLOADS = ("enable_model_cpu_offload", "enable_sequential_cpu_offload")
FIRST = "anchors"  # the mode of what is tried once


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
    steps = scale.checked_steps
    on_cpu = {name: quiet_pipeline(name).to("cpu") for name in CHECKPOINTS}
    expected = {
        name: edited(on_cpu[MODES[name].checkpoint], clip, name, steps)
        for name in {FIRST: None} | dict.fromkeys(modes)
    }
    for dtype in dtypes:
        pipes = {name: quiet_pipeline(name, dtype).to(machine.device) for name in CHECKPOINTS}
        for name in modes:
            pipe = pipes[MODES[name].checkpoint]
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
        pipe = quiet_pipeline(MODES[FIRST].checkpoint).to("cpu")
        getattr(pipe, method)(device=machine.device)
        found = edited(pipe, clip, FIRST, steps)
        return compared(found, expected[FIRST], LEAST[torch.float32])

    def repeated() -> dict:
        pipe = quiet_pipeline(MODES[FIRST].checkpoint).to(machine.device)
        one, two = (edited(pipe, clip, FIRST, steps) for _ in range(2))
        return compared(one, two, float("inf"))

    for method in OFFLOADS:
        row = {"mode": method.removeprefix("enable_").replace("_", " "), "dtype": "float32"}
        yield attempted(row, lambda method=method: offloaded(method), machine)
    yield attempted({"mode": "the same edit twice", "dtype": "float32"}, repeated, machine)


def edited(pipe: VideoEditPipeline, clip: Tensor, name: str, steps: int) -> Tensor:
    """The edit of a mode, on the CPU in float32. Convolutions run in true float32, repeatably."""
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with warnings.catch_warnings(), exact:
        warnings.simplefilter("ignore")  # too few steps for the tolerance: both sides alike
        return MODES[name].edited(pipe, clip, PROMPTS, steps)


def compared(frames: Tensor, expected: Tensor, least: float) -> dict[str, Any]:
    """PSNR, the largest difference, the least PSNR that is right, and whether it is reached."""
    difference = (frames - expected).abs().max().item()
    decibel = psnr(frames, expected) if difference else float("inf")
    return {"psnr": decibel, "difference": difference, "least": least, "right": decibel >= least}
