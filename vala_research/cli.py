"""The command line: `vala edit | invert | train | shards | info | quickstart`, thin calls.

What can fail is tried first (names, clip, outputs, model); only then the long work starts, after a
line that says what it will take. Exit status: 2 for bad input, 1 for a failed run.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vala_research import InputError
from vala_research.cli_data import shards, sides
from vala_research.cli_train import train

DTYPES = ("float32", "float16", "bfloat16")
# What assets.demo_clip() shows, and what its edit changes: so the true edit can be drawn.
DEMO_FRAMES, DEMO_SIZE = 16, 64
DEMO_SCENE = dict(shape="star", colour="yellow", background="blue", pattern="plain")
DEMO_MOTION = dict(
    start=(0.36, 0.62), end=(0.64, 0.42), bend=0.25, angle=(-0.2, 0.2), size=(0.24, 0.26)
)
DEMO_EDIT = dict(background="green")


class Commands(TyperGroup):
    """Turns what went wrong into one sentence on stderr and an exit status."""

    def invoke(self, ctx):
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except (InputError, FloatingPointError) as error:
                _stop(error, 2)
            except (MemoryError, OSError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and "memory" not in str(error):
                    raise
                if isinstance(error, OSError):
                    _stop(error, 1)
                _stop("Out of memory: give fewer --frames, a smaller --size or a half --dtype.", 1)
            except Exception as error:  # an option that is missing or of the wrong kind
                if not hasattr(error, "format_message"):
                    raise
                _stop(error.format_message(), 2)


def _show_warning(message, category, *_args, **_kwargs) -> None:
    if issubclass(category, UserWarning):
        typer.echo(f"warning: {message}", err=True)


def _stop(reason: object, status: int) -> None:
    typer.echo(f"vala: {' '.join(str(reason).split())}", err=True)
    raise typer.Exit(status)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Text-driven video editing with image diffusion models.",
)


def main() -> None:
    """The console script."""
    app(prog_name="vala")


ClipPath = Annotated[Path, typer.Argument(metavar="CLIP", help="Video, gif or folder of frames.")]
SourcePrompt = Annotated[str, typer.Option(help="What the clip shows.")]
Model = Annotated[str, typer.Option(help="'miniature', a local folder or a hub id.")]
Attention = Annotated[str, typer.Option(help="own, first, sparse_causal, extended or anchors.")]
Inversion = Annotated[str, typer.Option(help="ddim, exact, bilateral or null_text.")]
Injection = Annotated[float, typer.Option(help="First share of the steps fed by the source.")]
Steps = Annotated[int, typer.Option(help="Diffusion steps each way.")]
Guidance = Annotated[float, typer.Option(help="How strongly the prompt acts; 1 is as it is.")]
Frames = Annotated[int | None, typer.Option(help="Use so many frames.", show_default="all")]
Stride = Annotated[int, typer.Option(help="Use every n-th frame.")]
Size = Annotated[str | None, typer.Option(help="SIDE or HEIGHTxWIDTH.", show_default="the model's")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(help=f"Of the networks: {', '.join(DTYPES)}.")]
Seed = Annotated[int, typer.Option(help="Of whatever is drawn at random.")]
Adapter = Annotated[
    str | None, typer.Option(help="Folder of vala train, 'miniature'.", show_default="none")
]
AdapterInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(help="Of T, where it acts: from and to.", show_default="its own"),
]
AdapterScale = Annotated[
    float | None, typer.Option(help="How strongly it acts.", show_default="its own")
]


@app.command()
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
    _check_adapter(adapter, adapter_interval, adapter_scale)
    place = dict(model=model, device=device, dtype=dtype, adapter=adapter)
    if motion is not None:
        place |= dict(
            motion=motion, video_weight=video_weight, fusion_schedule=fusion_schedule, tau=tau
        )
    _edit(clip, output, settings, place, (frames, stride, size), seed, strip, json_path)


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("runs/quickstart"),
    attention: Attention = "anchors",
    injection: Injection = 0.0,
    steps: Steps = 50,
    guidance: Guidance = 2.0,
) -> None:
    """Edit the demo clip, whose true edit is known, and say how near the edit comes to it."""
    from vala_research.assets import demo_clip
    from vala_research.data.sprites import render

    scene, target = demo_scenes()
    truth = (render(target, DEMO_FRAMES, DEMO_SIZE), target)
    settings = dict(
        prompt=target.caption, source_prompt=scene.caption, num_inference_steps=steps,
        guidance_scale=guidance, inversion="ddim", attention=attention, injection=injection,
    )  # fmt: skip
    place = dict(model="miniature", device="auto", dtype="float32")
    clip = Path(demo_clip())
    _try_clip(clip, None, 1, None)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} cannot be made ({error.strerror}): choose another.") from error
    edited, strip, record = (output / n for n in ("edited.mp4", "strip.png", "record.json"))
    _edit(clip, edited, settings, place, (None, 1, str(DEMO_SIZE)), 0, strip, record, truth)


def demo_scenes() -> tuple:
    """The scene that `assets.demo_clip()` shows, and the scene that its edit should show."""
    from vala_research.data.sprites import Motion, Scene

    scene = Scene(**DEMO_SCENE, motion=Motion(**DEMO_MOTION))
    return scene, scene.edited(**DEMO_EDIT)


def _edit(path, output, settings, place, sampling, seed, strip, json_path, truth=None) -> None:
    """Check, announce, edit, write, measure; `truth`: the true edit, rendered, and its scene."""
    import torch

    from vala_research.data.clips import writable, write_clip

    _try_clip(path, *sampling)
    _check_outputs(path, writable(output), strip, json_path)
    _check_names(settings)
    fused = {k: place[k] for k in ("video_weight", "fusion_schedule", "tau") if k in place}
    schedule = _fusion_schedule(**fused) if fused else None
    loaded = {k: v for k, v in place.items() if k not in (*fused, "motion")}
    clip, pipe, device = _load(path, loaded, sampling)
    fusion = _fusion(pipe, place["motion"], schedule) if fused else None
    estimate = _announce(pipe, clip, settings, fusion)
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    edited = pipe(
        clip, output_type="pt", generator=generator, fusion=fusion, **settings
    ).frames[0].cpu()  # fmt: skip
    seconds = time.perf_counter() - start

    # The clip first: nothing that is measured afterwards may cost it.
    written = [write_clip(output, edited, clip.fps, audio_from=clip)]
    numbers = {"frames": len(edited), "seconds": seconds}
    numbers |= _scores(clip.frames, edited, settings, place["model"], truth)
    if strip:
        known = {"true edit": truth[0].frames} if truth else {}
        written.append(_write_strip(strip, {"source": clip.frames, "edit": edited, **known}))
    if json_path:
        used = settings | place | {"device": device, "seed": seed}
        results = {"numbers": numbers, "estimate": estimate}
        written.append(_write_record(json_path, path, written, used, results))
    _report(numbers, written)


@app.command()
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

    from vala_research.data.atomic import written_whole
    from vala_research.evaluation.metrics import psnr

    settings = dict(
        source_prompt=source_prompt, num_inference_steps=steps, attention=attention,
        inversion=inversion, adapter_interval=adapter_interval, adapter_scale=adapter_scale,
    )  # fmt: skip
    _check_adapter(adapter, adapter_interval, adapter_scale)
    place = dict(model=model, device=device, dtype=dtype, adapter=adapter)
    _try_clip(clip, frames, stride, size)
    is_file = output.suffix == ".safetensors"
    if not is_file and (output.suffix or output.is_file()):
        raise InputError(f"{output}: end it in .safetensors, or give a folder.")
    target = output if is_file else output / "latents.safetensors"
    _check_outputs(clip, *([target, target.with_suffix(".json")] if is_file else [output]))
    _check_names(settings)
    source, pipe, device = _load(clip, place, (frames, stride, size))
    scale = 2.0 if inversion == "null_text" else 1.0  # nothing else asks a second branch
    estimate = _announce(pipe, source, settings | {"guidance_scale": scale})

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
    record = _write_record(target.with_suffix(".json"), clip, [target], used, results)
    _report(numbers, [target, record])


app.command()(shards)
app.command()(train)


@app.command()
def info(model: Model = "miniature") -> None:
    """Versions, devices, memory, and what the model is."""
    import psutil
    import torch

    from vala_research.evaluation.provenance import record

    rows = dict(record({})["versions"])
    memory = psutil.virtual_memory()
    rows["cpu"] = f"{os.cpu_count()} cores, {_size(memory.available)} of {_size(memory.total)} free"
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        rows[f"cuda:{i}"] = f"{torch.cuda.get_device_name(i)}, {_size(free)} of {_size(total)} free"
    if torch.backends.mps.is_available():
        rows["mps"] = "available"
    for key, value in rows.items():
        typer.echo(f"{key:<24} {value}")
    pipe = _load_model(model, "cpu", "float32")[0]
    parts = {k: m for k, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    counts = {k: sum(p.numel() for p in m.parameters()) / 1e6 for k, m in parts.items()}
    typer.echo(f"{'model':<24} {model}: {_side(pipe)} px, " + ", ".join(
        f"{k} {n:.2f} M" for k, n in counts.items()
    ))  # fmt: skip


# What is tried before the long work.


def _check_names(settings: dict[str, Any]) -> None:
    """Unknown names and numbers out of range, by the engine's own checks."""
    from vala_research.diffusion.adapter_settings import checked_interval, checked_scale
    from vala_research.diffusion.attention import Injection, get_policy
    from vala_research.diffusion.codec import check_guidance
    from vala_research.diffusion.inversion import get_method

    get_policy(settings["attention"]), get_method(settings["inversion"])
    check_guidance(settings.get("guidance_scale", 1.0))
    Injection.of(settings.get("injection", 0.0))
    checked_interval(settings.get("adapter_interval") or (0, 1))
    checked_scale(settings.get("adapter_scale") or 0)
    if settings["num_inference_steps"] < 1:
        raise InputError(f"--steps is {settings['num_inference_steps']}: give at least 1.")


def _check_adapter(adapter: str | None, *how: object) -> None:
    if adapter is None and any(x is not None for x in how):
        raise InputError("--adapter-interval and --adapter-scale are an adapter's: give --adapter.")


def _check_outputs(source: Path, *outputs: Path | None) -> None:
    """Every output can be written, and none is the clip itself."""
    given = [path for path in outputs if path is not None]
    for path in given:
        if path.resolve() == source.resolve():
            raise InputError(f"{path} is the clip itself: write to another name.")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; create it first.")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"{path} cannot be written: the place is read-only, choose another.")
        if path.is_dir() and path.suffix:
            raise InputError(f"{path} is a folder: give the name of a file.")
    if len({path.resolve() for path in given}) < len(given):
        raise InputError("Two outputs have one name: give each its own.")


def _try_clip(path: Path, n_frames: int | None, stride: int, size: str | None) -> None:
    """Its first frame can be read; before anything heavy is imported."""
    from vala_research.data.clips import read_clip

    read_clip(path, n_frames if n_frames is not None and n_frames < 1 else 1, stride, sides(size))


def _load(path: Path, place: dict[str, str], sampling: tuple):
    """The clip at the size asked for or the model's own, the model, and the device's name."""
    from vala_research.data.clips import read_clip

    n_frames, stride, size = sampling
    pipe, device = _load_model(**place)
    return read_clip(path, n_frames, stride, sides(size) or _side(pipe)), pipe, device


def _load_model(model: str, device: str, dtype: str, adapter: str | None = None):
    """The pipeline on its device, its adapter loaded, and the device's name."""
    if dtype not in DTYPES:
        raise InputError(f"Unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
    import diffusers
    import huggingface_hub
    import torch
    import transformers

    from vala_research.diffusion.editing import VideoEditPipeline

    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    name = {"auto": devices[0], "cuda": "cuda:0"}.get(device, device)
    if name not in devices:
        raise InputError(f"No device {device!r} here: choose one of auto, {', '.join(devices)}.")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # of its retries: we say what came of them
    pipe = VideoEditPipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(name)
    if adapter is not None:
        pipe.load_adapter(adapter)
    return pipe, name


def _fusion_schedule(video_weight: float, fusion_schedule: str, tau: float):
    """The weights of a video and an image model."""
    from vala_research.methods.fusion import FusionSchedule

    return FusionSchedule(fusion_schedule, (video_weight, 1 - video_weight), tau)


def _fusion(pipe, motion: str, schedule):
    """The model with motion modules and the model itself; long clips go in windows."""
    from vala_research.diffusion.editing import Fusion, Source
    from vala_research.diffusion.motion import load_motion_unet, max_frames

    video = load_motion_unet(pipe.unet, motion)
    return Fusion([Source(video, window=max_frames(video)), Source()], schedule)


def _side(pipe) -> int:
    """The side of the pictures that the model was trained on, in pixels."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def _announce(pipe, clip, settings: dict[str, Any], fusion=None) -> dict[str, float]:
    """Say what is to come; the time is that of one step of this clip, times their number."""
    import psutil

    n, (h, w) = len(clip), clip.frames.shape[-2:]
    keys = ("num_inference_steps", "guidance_scale", "inversion", "injection")
    known = {k: settings[k] for k in keys if k in settings}
    expected = pipe.estimate(n, h, w, fusion=fusion, **known)
    pipe.set_progress_bar_config(disable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the prompt: the edit itself will warn
        one_step = dict(num_inference_steps=1, attention=settings["attention"])
        pipe.invert(clip.frames[:1], settings["source_prompt"], **one_step)  # warms up
        start = time.perf_counter()
        pipe.invert(clip, settings["source_prompt"], **one_step)
    seconds = (time.perf_counter() - start) * expected.n_evaluations / n
    pipe.set_progress_bar_config(leave=False)
    bound = "at most " if settings["inversion"] in ("exact", "null_text") else ""
    typer.echo(
        f"{n} frames of {h}x{w}, {settings['num_inference_steps']} steps, {pipe.device}: "
        f"{bound}about {_size(expected.peak_bytes)} and {seconds:.0f} s (one step, timed)."
    )
    free = psutil.virtual_memory().available
    if pipe.device.type == "cpu" and expected.peak_bytes > free:
        typer.echo(f"warning: only {_size(free)} are free: give fewer --frames.", err=True)
    return {"seconds": seconds, "peak_bytes": expected.peak_bytes}


# What is measured and written after it.


def _scores(source, edited, settings, model: str, truth) -> dict[str, float]:
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
    from vala_research.data.atomic import written_whole
    from vala_research.evaluation.figures import Picture, strip

    with written_whole(path) as unfinished:
        strip(rows).savefig(unfinished, dpi=Picture.pixels_per_inch)
    return path


def _write_record(path: Path, source: Path, written: list, used: dict, results: dict) -> Path:
    """How the outputs were made, enough to make them again."""
    from vala_research.data.atomic import written_whole
    from vala_research.evaluation.provenance import file_hash, jsonable, record

    made = record(used, inputs=[source])
    made["outputs"] = {str(file): file_hash(file) for file in written}
    with written_whole(path) as unfinished:
        text = json.dumps(made | jsonable(results), indent=2)
        unfinished.write_text(text + "\n", encoding="utf-8")
    return path


def _report(numbers: dict[str, float], written: list[Path]) -> None:
    for name, value in numbers.items():
        text = str(value) if isinstance(value, int) else f"{value:.3f}".rstrip("0").rstrip(".")
        typer.echo(f"  {name:<52} {text:>8}")
    typer.echo("wrote " + ", ".join(map(str, written)))


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
