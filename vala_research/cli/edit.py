"""`vala edit` and `vala quickstart`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vala_research import InputError
from vala_research.cli.controls import Controls
from vala_research.cli.fusing import Fusing
from vala_research.cli.loading import (
    check_adapter,
    check_names,
    check_outputs,
    check_unnamed,
    checked_loras,
    filled,
    load_clip_and_model,
    said_what_is_brought,
    try_clip,
)
from vala_research.cli.options import (
    ATTEND,
    INVERT,
    OWN,
    TAKE,
    Adapter,
    AdapterInterval,
    AdapterScale,
    ClipPath,
    Control,
    ControlInterval,
    ControlNet,
    ControlScale,
    DepthModel,
    Device,
    Dtype,
    Editing,
    Frames,
    Guidance,
    Host,
    Injection,
    Lora,
    Model,
    Place,
    Revision,
    Sampling,
    Seed,
    Size,
    SourcePrompt,
    Stride,
    Variant,
    Words,
    option,
)
from vala_research.cli.report import announce, report, write_record
from vala_research.cli.scores import scores_of, strip_format, write_strip

Prompt = option(str, "Describe the edited clip.")
Attention = option(str | None, ATTEND, default=OWN)
Inversion = option(str | None, INVERT, "--inversion", "--method", default=OWN)
Steps = option(int | None, TAKE, default=OWN)
NegativePrompt = option(str | None, "Describe what to move away from.", default="none")
Output = option(Path, "Write an mp4, webm, gif or a folder of frames.", "-o", "--output")
OutputFolder = option(Path, "Write into this folder.", "-o", "--output")
Motion = option(
    str | None, "Fuse with a video model of these AnimateDiff motion modules: 'miniature', a "
    "folder or a hub id; or edit without any: none.", default=OWN,
)  # fmt: skip
VideoWeight = option(float, "Give the video model this weight at step tau.")
Schedule = option(str, "Change the weights by constant, decay_image, decay_video or cosine.")
Tau = option(float, "Start to fuse after this share of the steps.")
Strip = option(Path | None, "Write a before/after picture (png, jpg, pdf, svg ...).")
Json = option(Path | None, "Write how the edit was made (json).", "--json")


@dataclass(frozen=True)
class Outputs:
    """Where the edited clip, a before/after picture and the record are written."""

    clip: Path
    strip: Path | None = None
    record: Path | None = None


def edit(
    clip: ClipPath,
    source_prompt: SourcePrompt,
    prompt: Prompt,
    output: Output,
    model: Model = "miniature",
    variant: Variant = None,
    revision: Revision = None,
    host: Host = None,
    attention: Attention = None,
    inversion: Inversion = None,
    injection: Injection = None,
    words: Words = None,
    steps: Steps = None,
    guidance: Guidance = None,
    negative_prompt: NegativePrompt = None,
    adapter: Adapter = None,
    adapter_interval: AdapterInterval = None,
    adapter_scale: AdapterScale = None,
    lora: Lora = None,
    controlnet: ControlNet = None,
    control: Control = None,
    control_scale: ControlScale = None,
    control_interval: ControlInterval = None,
    depth_model: DepthModel = None,
    motion: Motion = None,
    video_weight: VideoWeight = 0.7,
    fusion_schedule: Schedule = "decay_image",
    tau: Tau = 0.5,
    seed: Seed = 0,
    frames: Frames = None,
    stride: Stride = 1,
    size: Size = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    strip: Strip = None,
    json_path: Json = None,
) -> None:
    """Edit a clip: invert it under one prompt, sample it under another."""
    call = Editing(
        prompt=prompt, source_prompt=source_prompt, negative_prompt=negative_prompt,
        num_inference_steps=steps, guidance_scale=guidance, inversion=inversion,
        attention=attention, injection=injection, adapter_interval=adapter_interval,
        adapter_scale=adapter_scale, words=words, host=host,
    )  # fmt: skip
    loras = checked_loras(lora or [])
    controls = Controls.of(
        controlnet, control, control_scale, control_interval, depth_model=depth_model
    )
    place = Place(
        model, device, dtype, adapter, variant, revision, loras, controls.place, motion and "none"
    )
    fusing = None
    if motion not in (None, "none"):  # the models that fuse are without an adapter
        fusing = Fusing(motion, video_weight, fusion_schedule, tau)
        place = replace(place, adapter=adapter or "none")
    outputs, sampling = Outputs(output, strip, json_path), Sampling(frames, stride, size)
    run_edit(clip, outputs, call, place, sampling, fusing, seed, controls=controls)


def quickstart(
    output: OutputFolder = Path("runs/quickstart"),
    attention: Attention = None,
    injection: Injection = None,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """Edit the demo clip, whose true edit is known, and say how near the edit comes to it."""
    from vala_research.assets import demo_clip
    from vala_research.sprites.edits import DEMO_FRAMES, DEMO_SIZE, demo_scenes
    from vala_research.sprites.render import render

    scene, target = demo_scenes()
    call = Editing(
        prompt=target.caption, source_prompt=scene.caption, num_inference_steps=steps,
        guidance_scale=guidance, attention=attention, injection=injection,
    )  # fmt: skip
    clip, sampling = Path(demo_clip()), Sampling(size=str(DEMO_SIZE))
    try_clip(clip, sampling)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} cannot be made ({error.strerror}): choose another.") from error
    outputs = Outputs(*(output / name for name in ("edited.mp4", "strip.png", "record.json")))
    check_unnamed(outputs.record, outputs.clip, outputs.strip)
    truth = (render(target, DEMO_FRAMES, DEMO_SIZE), target)
    run_edit(clip, outputs, call, Place(), sampling, truth=truth)


def run_edit(
    path: Path, outputs: Outputs, call: Editing, place: Place, sampling: Sampling,
    fusing: Fusing | None = None, seed: int = 0, truth: tuple | None = None,
    controls: Controls = Controls(),
) -> None:  # fmt: skip
    """Check, announce, edit, write, measure; `truth`: the true edit, rendered, and its scene."""
    import torch

    from vala_research.data.clips import write_clip
    from vala_research.editing.defaults import EditDefaults

    # Everything that can be refused is refused before the long work.
    controls.check()
    _check_outputs(path, outputs, try_clip(path, sampling))
    tried = filled(call, EditDefaults())
    check_names(tried, tried.guidance_scale, tried.arguments()["injection"])
    schedule = fusing and fusing.schedule()
    check_adapter(place.adapter != "none", call)
    clip, pipe, device = load_clip_and_model(path, place, sampling)
    controls.load(pipe, clip, sampling)
    check_adapter(pipe.adapter is not None, call)
    place = said_what_is_brought(pipe, place)
    call = filled(call, pipe.edit_defaults)
    fusion = fusing and fusing.fusion(pipe, schedule)
    arguments = call.arguments()
    estimate = announce(pipe, clip, call, call.guidance_scale, arguments["injection"], fusion)

    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    edited = pipe(
        clip, output_type="pt", generator=generator, fusion=fusion,
        frames_per_chunk=estimate.get("frames_per_chunk"), **arguments
    ).frames[0].cpu()  # fmt: skip
    seconds = time.perf_counter() - start

    # The clip is written first: a measurement that fails must not cost it.
    written = [write_clip(outputs.clip, edited, clip.fps, audio_from=clip)]
    numbers = {"frames": len(edited), "seconds": seconds}
    numbers |= scores_of(clip.frames, edited, call.prompt, place.model, truth)
    if outputs.strip:
        written.append(write_strip(outputs.strip, clip.frames, edited, truth))
    if outputs.record:
        used = asdict(call) | asdict(place) | (asdict(fusing) if fusing else {})
        used |= asdict(controls) if controls.nets else {}
        used |= {"device": device, "seed": seed}
        made, results = {p: p for p in written}, {"numbers": numbers, "estimate": estimate}
        written.append(write_record(outputs.record, path, made, used, results))
    report(numbers, written)


def _check_outputs(path: Path, outputs: Outputs, fps: float) -> None:
    from vala_research.data.clips import writable

    is_folder = not writable(outputs.clip, fps).suffix
    files = [outputs.strip, outputs.record, None if is_folder else outputs.clip]
    check_outputs(path, *files, folder=outputs.clip if is_folder else None)
    if outputs.strip:
        strip_format(outputs.strip)
