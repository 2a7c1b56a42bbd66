"""`vala train`: a temporal adapter from a folder of captioned clips; run again, it goes on."""

from __future__ import annotations

import os
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vala_research import InputError, chosen_from
from vala_research.cli.loading import load_model, model_side
from vala_research.cli.options import Layout, Model, Place, Seed, Size, Split, Strict, option, sides
from vala_research.cli.report import size_text, stop

ENCODER = "openai/clip-vit-base-patch32"  # GE-Adapter's, 50 tokens of 768
DEVICES = ("auto", "cpu", "cuda")
HALF = {"fp16": "float16", "bf16": "bfloat16"}  # the dtype of the networks by precision


@dataclass(frozen=True)
class Parts:
    """Networks that stay frozen beside the model, and an adapter to go on from."""

    vision_encoder: str
    controlnet: str | None = None
    start_from: Path | None = None


Data = Annotated[Path, typer.Argument(metavar="DATA", help="Read this folder of clips, or shards.")]
Output = option(Path, "Write the adapter into this folder.", "-o", "--output")
CONTROLNET_HELP = "Condition on Canny edges by this frozen ControlNet: a folder or a hub id."


def train(
    data: Data,
    output: Output,
    model: Model = "miniature",
    steps: option(int, "Update the weights this many times.") = 10_000,
    frames: option(int, "Sample this many frames of a clip.") = 3,
    stride: option(int, "Sample every n-th frame.") = 1,
    size: Size = None,
    layout: Layout = None,
    split: Split = None,
    strict: Strict = False,
    variant: option(str, "Use the variant triples or released of the temporal loss.") = "triples",
    lambda_diffusion: option(float, "Weigh the diffusion loss.") = 0.01,
    lambda_temporal: option(float, "Weigh the temporal loss.") = 1.0,
    flicker_weight: option(float, "Weigh the temporal loss's part against steady flicker.") = 0.0,
    temporal_from: option(float, "Turn the LoRA on from this fraction of T.") = 0.5,
    attention: option(str, "Let frames attend by own, first, sparse_causal or extended.") = "own",
    caption_dropout: option(float, "Leave this share of the captions empty.") = 0.0,
    weighting: option(str, "Weigh the diffusion loss by target or velocity.") = "target",
    rank: option(int, "Give the LoRA this rank, and alpha the same.") = 4,
    blocks: option(str, "Put the LoRA into all, down_up or down.") = "all",
    n_shared: option(int, "Share this many prompt tokens over frames.") = 18,
    frame_tokens: option(bool, "Give each frame its own prompt tokens.") = True,
    vision_encoder: option(str | None, "Read frames with this CLIP.", default=ENCODER) = None,
    controlnet: option(str | None, CONTROLNET_HELP, default="none") = None,
    start_from: option(Path | None, "Go on from this adapter.", default="none") = None,
    learning_rate: option(float, "Learn at this rate after the warm-up.") = 3e-5,
    warmup: option(int, "Warm up for this many steps.") = 500,
    batch: option(int, "Put this many samples into a batch.") = 1,
    accumulation: option(int, "Add up this many batches per step.") = 8,
    checkpoint_every: option(int, "Save after this many steps.") = 500,
    precision: option(str, "Use mixed precision: no, fp16 or bf16.") = "no",
    workers: option(int, "Read clips in this many processes.") = 0,
    device: option(str, f"Run on {', '.join(DEVICES)}.") = "auto",
    seed: Seed = 0,
) -> None:
    """Train a temporal adapter; the same command goes on where it was killed."""
    from vala_research.adapter.loss import LossSettings
    from vala_research.adapter.run import check_unlocked
    from vala_research.adapter.settings import AdapterSettings
    from vala_research.adapter.state import check_place
    from vala_research.adapter.training import TrainingSettings
    from vala_research.data.datasets import GroupSampling
    from vala_research.data.streaming import open_groups

    # Unknown names and numbers out of range are refused by the settings themselves.
    loss = LossSettings(
        lambda_diffusion, lambda_temporal, temporal_from, variant, attention, caption_dropout,
        weighting, flicker_weight,
    )  # fmt: skip
    training = TrainingSettings(
        max_steps=steps, learning_rate=learning_rate, warmup_steps=warmup, batch_size=batch,
        accumulation=accumulation, checkpoint_every=checkpoint_every, mixed_precision=precision,
        seed=seed, n_workers=workers, loss=loss,
    )  # fmt: skip
    adapter = AdapterSettings(
        rank=rank, alpha=rank, blocks=blocks, n_shared=n_shared, uses_frame_tokens=frame_tokens
    )
    if frames < loss.n_frames:
        raise InputError(
            f"--frames is {frames}: the {variant} temporal loss needs at least {loss.n_frames}."
        )
    if output.suffix or output.is_file():
        raise InputError(f"{output}: give the name of a folder for the adapter.")
    check_place(output)
    if os.environ.get("RANK", "0") == "0":  # the process that will hold the lock
        check_unlocked(output)
    chosen_from("device", device, DEVICES)
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"

    # The data before the model. The summary will name the clips that are skipped.
    n_samples = steps * accumulation * batch * int(os.environ.get("WORLD_SIZE", 1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* clips used")
        sampling = GroupSampling(frames, stride, seed=seed)
        groups = open_groups(data, sampling, sides(size), n_samples, layout, split, strict)
    encoder = vision_encoder or ("miniature" if model == "miniature" else ENCODER)
    place = Place(
        model, device, HALF.get(precision, "float32"), adapter="none", controlnet="none",
        motion="none",
    )  # fmt: skip
    run_training(groups, output, training, adapter, place, Parts(encoder, controlnet, start_from))


def run_training(groups, output: Path, settings, made_of, place: Place, parts: Parts) -> None:
    """Load the model, announce, train; `made_of`: the settings of a new adapter."""
    from vala_research.adapter.batches import Encoders, TrainingControl, check_training
    from vala_research.adapter.estimate import estimate_training
    from vala_research.adapter.identity import weights_digest
    from vala_research.adapter.run import Stopped
    from vala_research.adapter.training import train
    from vala_research.diffusion.control_pictures import canny_edges
    from vala_research.diffusion.controlnet import load_controlnet

    pipe, _ = load_model(place)
    groups.size = groups.size or (model_side(pipe), model_side(pipe))
    adapter, vision = _adapter(pipe, made_of, parts, settings.seed)
    control = None
    if parts.controlnet:
        control = TrainingControl(load_controlnet(parts.controlnet, pipe.unet), canny_edges)
    starts_from = weights_digest(adapter.trainable()) if parts.start_from else None
    encoders = Encoders(pipe, vision, control)
    check_memory(groups, settings.batch_size)
    check_training(adapter, encoders, groups, settings.loss)

    is_main = os.environ.get("RANK", "0") == "0"
    if is_main:
        typer.echo(groups.summary())
        expected = estimate_training(adapter, encoders, groups, settings)
        h, w = groups.size
        typer.echo(
            f"{settings.max_steps} steps of {settings.accumulation} x {settings.batch_size} "
            f"samples of {groups.sampling.n_frames} frames of {h}x{w}, "
            f"{adapter.n_parameters} weights, {pipe.device}: "
            f"about {size_text(expected.peak_bytes)} and {expected.seconds:.0f} s."
        )
    try:
        more = {"start-from": starts_from}
        train(pipe, adapter, groups, output, settings, vision, control, more)
    except FloatingPointError as error:
        stop(error, 1)
    except Stopped as error:
        stop(error, 128 + signal.SIGTERM)
    if is_main:
        typer.echo(groups.summary())
        typer.echo(f"wrote {output}, log {output / 'log.csv'}")


def check_memory(groups, batch_size: int) -> None:
    """Refuse a batch whose pictures alone fill this machine's memory."""
    import psutil

    h, w = groups.size
    need = 12 * batch_size * groups.sampling.n_frames * h * w  # three floats a pixel
    if need > psutil.virtual_memory().total:
        raise InputError(
            f"A batch of {batch_size} samples holds {size_text(need)} of pictures, more than this "
            "machine's memory: give a smaller --batch or --size."
        )


def _adapter(pipe, made_of, parts: Parts, seed: int):
    """The adapter, new or to go on from, and how frames become image tokens."""
    import torch

    from vala_research.adapter.temporal_adapter import TemporalAdapter
    from vala_research.adapter.vision import VisionEncoder

    adapter, encoder, uses_frames = None, parts.vision_encoder, made_of.uses_frame_tokens
    if parts.start_from is not None:
        adapter = TemporalAdapter.load(parts.start_from, pipe.unet, is_trainable=True)
        encoder = adapter.vision_encoder or encoder
        uses_frames = adapter.settings.uses_frame_tokens
    vision = None
    if uses_frames:  # the name in an adapter's file must not make a download
        is_asked = encoder == parts.vision_encoder
        vision = VisionEncoder.from_pretrained(encoder, local_files_only=not is_asked)
    if adapter is None:
        generator = torch.Generator().manual_seed(seed)
        width, name = (vision.width, vision.name) if vision else (None, None)
        adapter = TemporalAdapter.attach(pipe.unet, made_of, width, generator, name)
    return adapter, vision.tokens if vision else None
