"""Seconds, memory and TFLOP/s of an edit at the scale's size, beside the bare network.

A few steps are timed, and 50 + 50 steps are extrapolated from two lengths of the same edit.
"""

from collections.abc import Callable, Iterator

import torch

from vala_research.editing.pipeline import VideoEditPipeline
from vala_research.evaluation.flops import forward_flops, meta_policy, meta_unet
from vala_research.evaluation.gpu.machine import Machine, attempted, random_pipeline
from vala_research.evaluation.memory import PROMPTS

STEPS = 50  # of the inversion, and of the sampling, to which seconds are extrapolated
ATTENTION, GUIDANCE, N_BRANCHES = "anchors", 7.5, 3  # one branch of inversion, two of sampling
TEXT = 77


def edit_speed(machine: Machine) -> Iterator[dict]:
    """Yield one row per clip length.

    step: seconds of one step of inversion and one of sampling. seconds: of 50 + 50 steps with all
    around them, extrapolated. TFLOP/s: of the step, by counted FLOPs of the UNet. bare: seconds of
    the same frames and branches through the UNet alone. gib: peak memory of the timed edit;
    estimate: what `pipe.estimate` says for it.
    """
    pipe = random_pipeline(machine)
    for n_frames in machine.scale.frames:
        yield attempted(
            {"frames": n_frames, "side": machine.scale.side},
            lambda n_frames=n_frames: edit_row(machine, pipe, n_frames), machine,
        )  # fmt: skip


def edit_row(machine: Machine, pipe: VideoEditPipeline, n_frames: int) -> dict:
    """Measure one row of `edit_speed`."""
    scale = machine.scale
    clip = torch.rand(
        n_frames, 3, scale.side, scale.side, generator=torch.Generator().manual_seed(0)
    )

    def edit(steps: int) -> None:
        pipe(
            clip, *PROMPTS, num_inference_steps=steps, guidance_scale=GUIDANCE,
            attention=ATTENTION, output_type="pt",
        )  # fmt: skip

    few, more = scale.steps
    gib = machine.peak_gib(lambda: edit(few))  # it also warms up
    seconds = [machine.seconds(lambda n=n: edit(n), repeats=1) for n in (few, more)]
    step = (seconds[1] - seconds[0]) / (more - few)
    if step <= 0:
        raise RuntimeError("more steps took less time: other work disturbed the timing")
    estimate = pipe.estimate(n_frames, scale.side, scale.side, few, guidance_scale=GUIDANCE)
    forward, _ = bare_call(machine, pipe.unet, n_frames)
    forward()
    return {
        "steps timed": f"{few}, {more}",
        "step": step,
        "seconds": seconds[0] + (STEPS - few) * step,
        "TFLOP/s": step_tflop(machine, n_frames) / step,
        "bare": N_BRANCHES * machine.seconds(forward, repeats=1),
        "gib": gib,
        "estimate": estimate.peak_bytes / 2**30,
    }


def step_tflop(machine: Machine, n_frames: int, attention: str = ATTENTION) -> float:
    """TFLOP of one step of inversion and one of sampling, counted without weights."""
    unet, side = meta_unet(machine.scale.unet), latent_side(machine)
    policy = meta_policy(attention, n_frames, side, side)
    return N_BRANCHES * forward_flops(unet, policy, n_frames, side, side) / 1e12


def latent_side(machine: Machine) -> int:
    """Side of the latents of the scale's frames."""
    return machine.scale.side // 2 ** (len(machine.scale.vae["block_out_channels"]) - 1)


def bare_call(
    machine: Machine, unet: Callable, n_frames: int, layout: torch.memory_format | None = None
) -> tuple[Callable[[], None], torch.Tensor]:
    """A call of the UNet alone on these many frames, and its input."""
    scale, side = machine.scale, latent_side(machine)
    draw, place = torch.Generator().manual_seed(0), (machine.device, scale.dtype)
    z = torch.randn(n_frames, scale.unet["in_channels"], side, side, generator=draw).to(*place)
    width = scale.unet["cross_attention_dim"]
    text = torch.randn(1, TEXT, width, generator=draw).to(*place).expand(n_frames, -1, -1)
    z = z if layout is None else z.contiguous(memory_format=layout)

    def forward() -> None:
        with torch.no_grad():
            unet(z, 500, encoder_hidden_states=text, return_dict=False)

    return forward, z


def layouts(machine: Machine) -> Iterator[dict]:
    """Yield rows of the bare UNet: as it is, channels-last, compiled, and both.

    Edits are not compiled: they exchange attention processors in every call, and a compiled network
    would be compiled anew each time.
    """
    n_frames = machine.scale.frames[0]
    tflop = step_tflop(machine, n_frames, "own") / N_BRANCHES
    unet = random_pipeline(machine).unet

    def row(layout: torch.memory_format | None, is_compiled: bool) -> dict:
        network = torch.compile(unet) if is_compiled else unet
        forward, _ = bare_call(machine, network, n_frames, layout)
        first = machine.seconds(forward, repeats=1)
        forward()
        seconds = machine.seconds(forward)
        return {"first call": first, "seconds": seconds, "TFLOP/s": tflop / seconds}

    for is_compiled in (False, True):
        for name, layout in (("as it is", None), ("channels last", torch.channels_last)):
            unet.to(memory_format=layout or torch.contiguous_format)
            kind = {"network": "compiled" if is_compiled else "eager", "layout": name}
            kind |= {"frames": n_frames}
            if is_compiled and machine.device.type == "cpu":
                yield kind | {"error": "compiled on a graphics card only"}
                continue
            yield attempted(kind, lambda a=layout, b=is_compiled: row(a, b), machine)
