"""`vala invert`: the noise that a clip comes from."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path

from vala_research import InputError
from vala_research.cli.loading import (
    check_adapter,
    check_names,
    check_outputs,
    check_unnamed,
    load_clip_and_model,
    said_what_is_brought,
    try_clip,
)
from vala_research.cli.options import (
    Adapter,
    AdapterInterval,
    AdapterScale,
    Attention,
    ClipPath,
    Device,
    Dtype,
    Frames,
    Inversion,
    Inverting,
    Model,
    Place,
    Revision,
    Sampling,
    Size,
    SourcePrompt,
    Steps,
    Stride,
    Variant,
    option,
)
from vala_research.cli.report import announce, report, write_record

Output = option(Path, "Write into a folder or a .safetensors file.", "-o", "--output")


def invert(
    clip: ClipPath,
    source_prompt: SourcePrompt,
    output: Output,
    model: Model = "miniature",
    variant: Variant = None,
    revision: Revision = None,
    attention: Attention = "extended",
    inversion: Inversion = "ddim",
    steps: Steps = 50,
    adapter: Adapter = None,
    adapter_interval: AdapterInterval = None,
    adapter_scale: AdapterScale = None,
    frames: Frames = None,
    stride: Stride = 1,
    size: Size = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Find the noise that a clip comes from, and say how well the clip comes back from it."""
    call = Inverting(
        source_prompt=source_prompt, num_inference_steps=steps, attention=attention,
        inversion=inversion, adapter_interval=adapter_interval, adapter_scale=adapter_scale,
    )  # fmt: skip
    place = Place(model, device, dtype, adapter, variant, revision)
    sampling = Sampling(frames, stride, size)
    run_inversion(clip, output, call, place, sampling)


def run_inversion(
    path: Path, output: Path, call: Inverting, place: Place, sampling: Sampling
) -> None:
    """Check, announce, invert, reconstruct, write."""
    from vala_research.diffusion.difference import check_inverts
    from vala_research.diffusion.inversion import get_inversion
    from vala_research.evaluation.metrics import psnr
    from vala_research.files import write_tensors, written_together

    # Everything that can be refused is refused before the long work.
    check_adapter(place.adapter != "none", call)
    try_clip(path, sampling)
    target, beside = _checked_files(path, output)
    check_names(call)
    check_inverts(get_inversion(call.inversion))
    clip, pipe, device = load_clip_and_model(path, place, sampling)
    check_adapter(pipe.adapter is not None, call)
    place = said_what_is_brought(pipe, place, ("adapter",))
    is_guided = call.inversion == "null_text"  # only null text asks a second branch
    scale = pipe.edit_defaults.guidance_scale if is_guided else 1.0
    estimate = announce(pipe, clip, call, scale)

    start = time.perf_counter()
    chunks = dict(frames_per_chunk=estimate.get("frames_per_chunk"))
    inverted = pipe.invert(clip, **asdict(call), return_inversion=True, **chunks)
    seconds = time.perf_counter() - start
    again = pipe.reconstruct(inverted, call.source_prompt, call.num_inference_steps).cpu()
    round_trip = pipe.decode(pipe.encode(clip)).cpu()
    numbers = {"frames": len(inverted.latents), "seconds": seconds}
    numbers["reconstruction PSNR to the source, dB"] = psnr(again, clip.frames)
    numbers["reconstruction PSNR to the VAE round trip, dB"] = psnr(again, round_trip)

    tensors = {"latents": inverted.latents}
    if inverted.null_text is not None:
        tensors["null_text"] = inverted.null_text.embeddings  # t n d, in sampling order
    used = asdict(call) | asdict(place) | {"device": device}
    results = {"numbers": numbers, "estimate": estimate}
    with written_together(target, beside) as (latents, record):
        write_tensors(latents, tensors)
        write_record(record, path, {target: latents}, used, results)
    report(numbers, [target, beside])


def _checked_files(source: Path, output: Path) -> tuple[Path, Path]:
    """Return the files of latents and record, in a folder or not, where they can be written."""
    is_file = output.suffix == ".safetensors"
    if not is_file and (output.suffix or os.path.isfile(output)):
        raise InputError(f"{output}: end it in .safetensors, or give a folder.")
    target = output if is_file else output / "latents.safetensors"
    beside = target.with_suffix(".json")
    if is_file or os.path.isdir(output):
        check_outputs(source, target, beside)
        check_unnamed(beside, *([] if is_file else [target]))
    else:
        check_outputs(source, folder=output)
    return target, beside
