"""`vala edit` and `vala quickstart`."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

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
    Guidance,
    Injection,
    Inversion,
    Model,
    Seed,
    Size,
    SourcePrompt,
    Steps,
    Stride,
)
from vala_research.cli.report import announce, report, write_record
from vala_research.sprites.edits import DEMO_FRAMES, DEMO_SIZE, demo_scenes


def edit(
    clip: ClipPath,
    source_prompt: SourcePrompt,
    prompt: Annotated[str, typer.Option(help="What the edited clip shall show.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="mp4, webm, gif or a folder.")],
    model: Model = "miniature",
    attention: Attention = "anchors",
    inversion: Inversion = "ddim",
    injection: Injection = 0.0,
    steps: Steps = 50,
    guidance: Guidance = 2.0,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What to move away from.", show_default="none")
    ] = None,
    adapter: Adapter = None,
    adapter_interval: AdapterInterval = None,
    adapter_scale: AdapterScale = None,
    motion: Annotated[
        str | None,
        typer.Option(
            help="AnimateDiff motion modules to fuse with: 'miniature', a folder or a hub id.",
            show_default="none",
        ),
    ] = None,
    video_weight: Annotated[float, typer.Option(help="Of the video model, at step tau.")] = 0.7,
    fusion_schedule: Annotated[
        str, typer.Option(help="constant, decay_image, decay_video or cosine.")
    ] = "decay_image",
    tau: Annotated[float, typer.Option(help="Share of the steps before fusing.")] = 0.5,
    seed: Seed = 0,
    frames: Frames = None,
    stride: Stride = 1,
    size: Size = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    strip: Annotated[Path | None, typer.Option(help="Write a before/after picture (png).")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write how it was made.")] = None,
) -> None:
    """Edit a clip: invert it under one prompt, sample it under another."""
    settings = dict(
        prompt=prompt, source_prompt=source_prompt, negative_prompt=negative_prompt,
        num_inference_steps=steps, guidance_scale=guidance, inversion=inversion,
        attention=attention, injection=injection, adapter_interval=adapter_interval,
        adapter_scale=adapter_scale,
    )  # fmt: skip
    check_adapter(adapter, adapter_interval, adapter_scale)
    place = dict(model=model, device=device, dtype=dtype, adapter=adapter)
    if motion is not None:
        place |= dict(
            motion=motion, video_weight=video_weight, fusion_schedule=fusion_schedule, tau=tau
        )
    run_edit(clip, output, settings, place, (frames, stride, size), seed, strip, json_path)


def quickstart(
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("runs/quickstart"),
    attention: Attention = "anchors",
    injection: Injection = 0.0,
    steps: Steps = 50,
    guidance: Guidance = 2.0,
) -> None:
    """Edit the demo clip, whose true edit is known, and say how near the edit comes to it."""
    from vala_research.assets import demo_clip
    from vala_research.sprites.render import render

    scene, target = demo_scenes()
    truth = (render(target, DEMO_FRAMES, DEMO_SIZE), target)
    settings = dict(
        prompt=target.caption, source_prompt=scene.caption, num_inference_steps=steps,
        guidance_scale=guidance, inversion="ddim", attention=attention, injection=injection,
    )  # fmt: skip
    place = dict(model="miniature", device="auto", dtype="float32")
    clip = Path(demo_clip())
    try_clip(clip, None, 1, None)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} cannot be made ({error.strerror}): choose another.") from error
    edited, strip, record = (output / n for n in ("edited.mp4", "strip.png", "record.json"))
    run_edit(clip, edited, settings, place, (None, 1, str(DEMO_SIZE)), 0, strip, record, truth)


def run_edit(path, output, settings, place, sampling, seed, strip, json_path, truth=None) -> None:
    """Check, announce, edit, write, measure; `truth`: the true edit, rendered, and its scene."""
    import torch

    from vala_research.data.clips import writable, write_clip

    try_clip(path, *sampling)
    check_outputs(path, writable(output), strip, json_path)
    check_names(settings)
    fused = {k: place[k] for k in ("video_weight", "fusion_schedule", "tau") if k in place}
    schedule = _fusion_schedule(**fused) if fused else None
    loaded = {k: v for k, v in place.items() if k not in (*fused, "motion")}
    clip, pipe, device = load_clip_and_model(path, loaded, sampling)
    fusion = _fusion(pipe, place["motion"], schedule) if fused else None
    estimate = announce(pipe, clip, settings, fusion)
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    edited = pipe(
        clip, output_type="pt", generator=generator, fusion=fusion, **settings
    ).frames[0].cpu()  # fmt: skip
    seconds = time.perf_counter() - start

    # The clip first: nothing that is measured afterwards may cost it.
    written = [write_clip(output, edited, clip.fps, audio_from=clip)]
    numbers = {"frames": len(edited), "seconds": seconds}
    numbers |= scores_of(clip.frames, edited, settings, place["model"], truth)
    if strip:
        known = {"true edit": truth[0].frames} if truth else {}
        written.append(_write_strip(strip, {"source": clip.frames, "edit": edited, **known}))
    if json_path:
        used = settings | place | {"device": device, "seed": seed}
        results = {"numbers": numbers, "estimate": estimate}
        written.append(write_record(json_path, path, written, used, results))
    report(numbers, written)


def _fusion_schedule(video_weight: float, fusion_schedule: str, tau: float):
    """The weights of a video and an image model."""
    from vala_research.methods.fusion import FusionSchedule

    return FusionSchedule(fusion_schedule, (video_weight, 1 - video_weight), tau)


def _fusion(pipe, motion: str, schedule):
    """The model with motion modules and the model itself; long clips go in windows."""
    from vala_research.diffusion.motion import load_motion_unet, max_frames
    from vala_research.editing.fusion import Fusion
    from vala_research.editing.source import Source

    video = load_motion_unet(pipe.unet, motion)
    return Fusion([Source(video, window=max_frames(video)), Source()], schedule)


# What is measured and written after it.


def scores_of(source, edited, settings, model: str, truth) -> dict[str, float]:
    """The numbers that need no reference, and those against the true edit where it is known."""
    from vala_research.assets import miniature_path
    from vala_research.evaluation import metrics
    from vala_research.evaluation.clip_scores import ClipScorer

    scores = {"PSNR of the edit to the source, dB": metrics.psnr(edited, source)}
    with suppress(InputError):  # one frame, tiny frames, or nothing that can be followed
        flow, valid = metrics.estimate_flow(source)
        error = metrics.warp_error(edited, flow, valid)
        scores["E_warp by the source's flow x 1000, less is better"] = 1000 * error
    if model == "miniature":  # whose CLIPModel lies beside it
        clip = ClipScorer.from_pretrained(miniature_path("clip"))
        text = metrics.clip_text(edited, settings["prompt"], clip)
        scores["CLIP-T to the prompt, more is better"] = text
        if len(edited) > 1:
            scores["CLIP-F of neighbours, more is smoother"] = metrics.clip_frames(edited, clip)
    if truth:
        clip, scene = truth
        scores["PSNR of the source to the true edit, dB"] = metrics.psnr(source, clip.frames)
        scores["PSNR of the edit to the true edit, dB"] = metrics.psnr(edited, clip.frames)
        scores["SSIM of the edit to the true edit"] = metrics.ssim(edited, clip.frames)
        scores["share of frames with every attribute right"] = metrics.attribute_success(
            edited, scene.attributes
        )
    return scores


def _write_strip(path: Path, rows: dict[str, Any]) -> Path:
    from vala_research.evaluation.figures import Picture
    from vala_research.evaluation.sheet import strip
    from vala_research.files import written_whole

    with written_whole(path) as unfinished:
        strip(rows).savefig(unfinished, dpi=Picture.pixels_per_inch)
    return path
