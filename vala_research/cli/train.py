"""`vala train`: a temporal adapter from a folder of captioned clips; run again, it goes on."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from vala_research import InputError
from vala_research.cli.loading import load_model, model_side
from vala_research.cli.options import sides as pixels
from vala_research.cli.report import size_text, stop

VISION_ENCODER = "openai/clip-vit-base-patch32"  # GE-Adapter's, 50 tokens of 768


def train(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of clips, or shards.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the adapter.")],
    model: Annotated[str, typer.Option(help="'miniature', a folder or a hub id.")] = "miniature",
    steps: Annotated[int, typer.Option(help="Updates of the weights.")] = 10_000,
    frames: Annotated[int, typer.Option(help="Consecutive frames of a sample.")] = 3,
    stride: Annotated[int, typer.Option(help="Frames of the clip from one to the next.")] = 1,
    size: Annotated[str | None, typer.Option(help="SIDE or HEIGHTxWIDTH.",
                                             show_default="the model's")] = None,
    layout: Annotated[str | None, typer.Option(help="msrvtt, loveu, davis or folder.",
                                               show_default="found")] = None,
    split: Annotated[str | None, typer.Option(help="Of the data set.", show_default="all")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail for an unusable clip.")] = False,
    variant: Annotated[str, typer.Option(help="Temporal loss: triples or released.")] = "triples",
    lambda_diffusion: Annotated[float, typer.Option(help="Weight of the diffusion loss.")] = 0.01,
    lambda_temporal: Annotated[float, typer.Option(help="Weight of the temporal loss.")] = 1.0,
    flicker_weight: Annotated[float, typer.Option(help="Of it, against steady flicker.")] = 0.0,
    temporal_from: Annotated[float, typer.Option(help="Of T, from where the LoRA is on.")] = 0.5,
    attention: Annotated[str, typer.Option(help="own, first, sparse_causal, extended.")] = "own",
    caption_dropout: Annotated[float, typer.Option(help="Share of empty captions.")] = 0.0,
    weighting: Annotated[str, typer.Option(help="Diffusion loss: target or velocity.")] = "target",
    rank: Annotated[int, typer.Option(help="Of the LoRA, which alpha equals.")] = 4,
    blocks: Annotated[str, typer.Option(help="With a LoRA: all, down_up or down.")] = "all",
    n_shared: Annotated[int, typer.Option(help="Prompt tokens that all frames share.")] = 18,
    frame_tokens: Annotated[bool, typer.Option(help="Prompt tokens of each frame.")] = True,
    vision_encoder: Annotated[str | None, typer.Option(help="CLIP model of the frame tokens.",
                                                       show_default=VISION_ENCODER)] = None,
    controlnet: Annotated[str | None, typer.Option(
        help="A frozen ControlNet that sees each frame's Canny edges: folder or hub id.",
        show_default="none")] = None,
    start_from: Annotated[Path | None, typer.Option(help="An adapter to go on from.",
                                                    show_default="none")] = None,
    learning_rate: Annotated[float, typer.Option(help="After the warm-up.")] = 3e-5,
    warmup: Annotated[int, typer.Option(help="Steps until then.")] = 500,
    batch: Annotated[int, typer.Option(help="Samples at once.")] = 1,
    accumulation: Annotated[int, typer.Option(help="Batches a step.")] = 8,
    checkpoint_every: Annotated[int, typer.Option(help="Steps.")] = 500,
    precision: Annotated[str, typer.Option(help="no, fp16 or bf16.")] = "no",
    workers: Annotated[int, typer.Option(help="Processes that read clips.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
) -> None:  # fmt: skip
    """Train a temporal adapter; the same command again goes on where it was killed."""
    from vala_research.adapter.loss import LossSettings
    from vala_research.adapter.settings import AdapterSettings
    from vala_research.adapter.training import TrainingSettings

    loss = LossSettings(
        lambda_diffusion, lambda_temporal, temporal_from, variant, attention, caption_dropout,
        weighting, flicker_weight,
    )  # fmt: skip
    settings = TrainingSettings(
        max_steps=steps, learning_rate=learning_rate, warmup_steps=warmup, batch_size=batch,
        accumulation=accumulation, checkpoint_every=checkpoint_every, mixed_precision=precision,
        seed=seed, n_workers=workers, loss=loss,
    )  # fmt: skip
    made_of = AdapterSettings(
        rank=rank, alpha=rank, blocks=blocks, n_shared=n_shared, uses_frame_tokens=frame_tokens
    )
    if frames < loss.n_frames:
        raise InputError(
            f"--frames is {frames}: the {variant} temporal loss needs at least {loss.n_frames}."
        )
    if output.suffix or output.is_file():
        raise InputError(f"{output}: give the name of a folder for the adapter.")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"Unknown device {device!r}: choose one of auto, cpu, cuda.")
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    place = (model, device, {"fp16": "float16", "bf16": "bfloat16"}.get(precision, "float32"))
    sampling = dict(n_frames=frames, stride=stride, seed=seed)
    where = dict(layout=layout, split=split, strict=strict)
    encoder = vision_encoder or ("miniature" if model == "miniature" else VISION_ENCODER)
    given = dict(encoder=encoder, start_from=start_from, controlnet=controlnet)
    _train(data, output, settings, made_of, place, sampling, where, size, **given)


def _train(
    data, output, settings, made_of, place, sampling, where, size, encoder, start_from, controlnet
) -> None:
    """The data, then the model, one batch of it, then the training."""
    from vala_research.adapter.batches import Control, Encoders, check_training
    from vala_research.adapter.estimate import estimate_training
    from vala_research.adapter.training import train
    from vala_research.data.datasets import GroupSampling
    from vala_research.data.streaming import open_groups
    from vala_research.diffusion.controlnet import canny_edges, load_controlnet

    n_samples = settings.max_steps * settings.accumulation * settings.batch_size
    n_samples *= int(os.environ.get("WORLD_SIZE", 1))
    is_main = os.environ.get("RANK", "0") == "0"
    sides = pixels(size)
    sides = (sides, sides) if isinstance(sides, int) else sides
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of skipped clips: the summary names them
        groups = open_groups(data, GroupSampling(**sampling), sides, n_samples, **where)
    pipe, _ = load_model(*place)
    groups.size = sides or (model_side(pipe), model_side(pipe))
    adapter, vision = _adapter(pipe, made_of, encoder, start_from, settings.seed)
    control = Control(load_controlnet(controlnet, pipe.unet), canny_edges) if controlnet else None
    encoders = Encoders(pipe, vision, control)
    check_training(adapter, encoders, groups, settings.loss)
    if is_main:
        typer.echo(groups.summary())
        expected = estimate_training(adapter, encoders, groups, settings)
        h, w = groups.size
        typer.echo(
            f"{settings.max_steps} steps of {settings.accumulation} x {settings.batch_size} "
            f"samples of {sampling['n_frames']} frames of {h}x{w}, {adapter.n_parameters} weights, "
            f"{pipe.device}: about {size_text(expected.peak_bytes)} and {expected.seconds:.0f} s."
        )
    try:
        train(pipe, adapter, groups, output, settings, vision, control)
    except FloatingPointError as error:
        stop(error, 1)
    if is_main:
        typer.echo(groups.summary())
        typer.echo(f"wrote {output}, log {output / 'log.csv'}")


def _adapter(pipe, made_of, encoder: str, start_from: Path | None, seed: int):
    """The adapter, new or to go on from, and how frames become image tokens."""
    import torch

    from vala_research.adapter.temporal_adapter import TemporalAdapter
    from vala_research.adapter.vision import VisionEncoder

    if start_from is not None:
        adapter = TemporalAdapter.load(start_from, pipe.unet, is_trainable=True)
        encoder = adapter.vision_encoder or encoder
    uses = adapter.settings.uses_frame_tokens if start_from else made_of.uses_frame_tokens
    vision = VisionEncoder.from_pretrained(encoder) if uses else None
    if start_from is None:
        generator = torch.Generator().manual_seed(seed)
        width, name = (vision.width, vision.name) if vision else (None, None)
        adapter = TemporalAdapter.attach(pipe.unet, made_of, width, generator, name)
    return adapter, vision.tokens if vision else None
