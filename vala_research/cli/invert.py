"""`vala invert`: the noise that a clip comes from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from vala_research import InputError
from vala_research.cli.loading import (
    check_adapter,
    check_names,
    check_outputs,
    load_clip_and_model,
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
    Model,
    Size,
    SourcePrompt,
    Steps,
    Stride,
)
from vala_research.cli.report import announce, report, write_record


def invert(
    clip: ClipPath,
    source_prompt: SourcePrompt,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder or .safetensors file.")],
    model: Model = "miniature",
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
    """Find the noise that a clip comes from; write it with a record, say how well it returns."""
    from safetensors.torch import save_file

    from vala_research.evaluation.metrics import psnr
    from vala_research.files import written_whole

    settings = dict(
        source_prompt=source_prompt, num_inference_steps=steps, attention=attention,
        inversion=inversion, adapter_interval=adapter_interval, adapter_scale=adapter_scale,
    )  # fmt: skip
    check_adapter(adapter, adapter_interval, adapter_scale)
    place = dict(model=model, device=device, dtype=dtype, adapter=adapter)
    try_clip(clip, frames, stride, size)
    is_file = output.suffix == ".safetensors"
    if not is_file and (output.suffix or output.is_file()):
        raise InputError(f"{output}: end it in .safetensors, or give a folder.")
    target = output if is_file else output / "latents.safetensors"
    check_outputs(clip, *([target, target.with_suffix(".json")] if is_file else [output]))
    check_names(settings)
    source, pipe, device = load_clip_and_model(clip, place, (frames, stride, size))
    scale = 2.0 if inversion == "null_text" else 1.0  # nothing else asks a second branch
    estimate = announce(pipe, source, settings | {"guidance_scale": scale})

    start = time.perf_counter()
    found = pipe.invert(source, **settings, return_inversion=True)
    seconds = time.perf_counter() - start
    again = pipe.reconstruct(found, source_prompt, steps).cpu()
    numbers = {
        "frames": len(found.latents),
        "seconds": seconds,
        "reconstruction PSNR to the source, dB": psnr(again, source.frames),
        "reconstruction PSNR to the VAE round trip, dB": psnr(
            again, pipe.decode(pipe.encode(source)).cpu()
        ),
    }
    if not is_file:
        output.mkdir(exist_ok=True)
    with written_whole(target) as unfinished:
        tensors = {"latents": found.latents}
        if found.null_text is not None:
            tensors["null_text"] = found.null_text.embeddings  # t n d, in sampling order
        save_file({k: x.cpu().contiguous() for k, x in tensors.items()}, unfinished)
    used = settings | place | {"device": device}
    results = {"numbers": numbers, "estimate": estimate}
    record = write_record(target.with_suffix(".json"), clip, [target], used, results)
    report(numbers, [target, record])
