"""Measure what the miniature can do on scenes it never saw, and write the model card."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation import metrics
from vala_research.evaluation.cases import edit_cases
from vala_research.evaluation.comparison import Run, compare
from vala_research.evaluation.comparison_tables import PLACEMENT
from vala_research.evaluation.edit_settings import EditSetting
from vala_research.evaluation.statistics import summarise
from vala_research.files import write_json, write_text
from vala_research.frames import fit_to_size
from vala_research.miniature.abilities import prompt_accuracy, reconstruction_quality
from vala_research.miniature.configuration import SCHEDULE, TEXT, UNET, VAE, VISION
from vala_research.miniature.edit_table import edit_table, placement_words
from vala_research.sprites.edits import EDITS
from vala_research.sprites.reader import read_attributes
from vala_research.sprites.render import render
from vala_research.sprites.scene import SIZE, WORLD, random_scene, split_generator

# The one editing setting used for every edit type; chosen on validation scenes.
SETTING = EditSetting(attention="extended", guidance_scale=2.0, num_inference_steps=25)


def settings() -> dict[str, EditSetting]:
    """SETTING under every attention policy, with and without injection."""
    return {
        attention + suffix: replace(SETTING, attention=attention, injection=injection)
        for attention in ("own", "first", "sparse_causal", "extended")
        for suffix, injection in (("", 0.0), (" + injection", 0.5))
    }


def measure(
    folder: Path, output: Path, n_prompts: int = 500, n_clips: int = 32, n_frames: int = 4
) -> dict:
    """Measure everything that the card reports.

    folder: the checkpoint, with its CLIPModel in the sibling `<folder>_clip`.
    output: csv file of the edits' rows, from which a run that was cut off goes on.
    n_prompts: sampled from the test split; a fifth as many, at least 20, of held-out pairs.
    n_clips, n_frames: of the test clips that are edited, each by every kind of edit.
    """
    cases = edit_cases(WORLD, "test", n_clips)
    rows = compare(cases, settings(), output, Run(folder, n_frames, SIZE, f"{folder}_clip"))
    pipe = quiet_pipeline(folder)
    return {
        "vae": vae_quality(pipe),
        "prompts": prompt_accuracy(pipe, WORLD, n_prompts),
        "prompts_of_held_out_pairs": prompt_accuracy(
            pipe, WORLD, max(20, n_prompts // 5), held_out=True
        ),
        "reconstruction": reconstruction(pipe),
        "n_frames": n_frames,
        "edits": summary(rows),
    }


@torch.no_grad()
def vae_quality(pipe, n: int = 200) -> dict[str, float]:
    """Round-trip PSNR on test sprites and photographs; share of sprites still read rightly."""
    scenes = [random_scene(split_generator("test", i), world=WORLD) for i in range(n)]
    frames = torch.cat([render(s, 1, SIZE).frames for s in scenes])
    back = pipe.decode(pipe.encode(frames))
    read = read_attributes(back.cpu())
    right = sum(r == s.attributes for r, s in zip(read, scenes, strict=True)) / n
    natural = natural_pictures()
    return {
        "sprites_psnr": metrics.psnr(back.cpu(), frames),
        "natural_psnr": metrics.psnr(pipe.decode(pipe.encode(natural)).cpu(), natural),
        "attributes_read_after_round_trip": right,
    }


def natural_pictures() -> torch.Tensor:
    """Photographs that scikit-image ships, cropped to squares, then shrunk to the sprites' size."""
    from skimage import data

    pictures = []
    for picture in (data.astronaut(), data.chelsea(), data.coffee()):
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
        side = min(x.shape[-2:])
        pictures.append(fit_to_size(fit_to_size(x, (side, side)), (SIZE, SIZE)))
    return torch.cat(pictures)


def reconstruction(pipe, n_clips: int = 4) -> dict[str, dict[str, float]]:
    """Mean PSNR and network evaluations per inversion and number of steps."""
    rows = pd.DataFrame(reconstruction_quality(pipe, WORLD, n_clips))
    means = rows.groupby(["inversion", "steps"], sort=False)[["to_vae", "to_source", "evaluations"]]
    return {f"{inversion} {n}": row.to_dict() for (inversion, n), row in means.mean().iterrows()}


def summary(rows: pd.DataFrame) -> list[dict]:
    """One line per setting and kind of edit: means, and the gain's 95% bootstrap interval.

    edited: the share of clips in which every edited attribute is right in most frames.
    """
    lines = []
    columns = ("psnr", "source_psnr", "success", "warp_error", "clip_f", "seconds", "peak_mib",
               *PLACEMENT)  # fmt: skip
    for (setting, kind), group in rows.groupby(["setting", "kind"], sort=False):
        gain = summarise(group.gain.to_numpy())
        means = group[[c for c in columns if c in group]].mean().to_dict()
        edited = (group[list(EDITS[kind])] > 0.5).all(axis=1).mean()
        lines.append({"setting": setting, "kind": kind, "n": len(group), **means,
                      "edited": float(edited), "gain": gain.mean, "gain_low": gain.low,
                      "gain_high": gain.high})  # fmt: skip
    return lines


def hardware() -> str:
    """The kind of processor, without the machine's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} {platform.machine()} CPU cores"


def training_log(run: Path) -> list[dict]:
    """The last line of every stage's csv."""
    lines = []
    for name in ("vae", "clip", "unet"):
        path = run / f"{name}.csv"
        if path.exists():
            *_, last = csv.DictReader(path.open())
            lines.append({"stage": name, **last})
    return lines


def write_card(folder: Path, quality: dict, log: list[dict], hardware: str) -> None:
    """Write README.md (the model card) and quality.json beside the weights."""
    quality = quality | {"training": log, "hardware": hardware}
    write_json(folder / "quality.json", quality, indent=1)
    write_text(folder / "README.md", card_text(quality))


def card_text(quality: dict) -> str:
    """The model card of what `quality.json` holds."""
    vae, prompts = quality["vae"], quality["prompts"]
    stages = [
        f"| {r['stage']} | {r['step']} | {float(r['seconds']) / 60:.0f} |"
        for r in quality["training"]
    ]
    inversions = [
        f"| {name} | {r['to_vae']:.1f} | {r['to_source']:.1f} | {r['evaluations']:.0f} |"
        for name, r in quality["reconstruction"].items()
    ]
    columns = ("shape", "colour", "background", "pattern", "all")
    accuracy = [
        "| " + " | ".join([name, *(f"{row[c]:.2f}" for c in columns), str(row["n"])]) + " |"
        for name, row in (("pairs seen", prompts),
                          ("pairs held out", quality["prompts_of_held_out_pairs"]))
    ]  # fmt: skip
    held_out = [
        f"{colour} {shape}" for shape, colour in sorted(WORLD.held_out)
        if shape in WORLD.shapes and colour in WORLD.colours
    ]  # fmt: skip
    setting = {k: v for k, v in SETTING.arguments().items() if v is not None}
    configuration = {"vae": VAE, "unet": UNET, "text": TEXT, "vision": VISION,
                     "schedule": SCHEDULE, "setting": setting}  # fmt: skip
    return CARD.format(
        hardware=quality["hardware"], stages="\n".join(stages), recon="\n".join(inversions),
        edits=edit_table(quality["edits"]), accuracy="\n".join(accuracy),
        shapes=", ".join(WORLD.shapes), colours=", ".join(WORLD.colours),
        patterns=", ".join(WORLD.patterns), size=SIZE, held_out=", ".join(held_out),
        config=json.dumps(configuration, indent=1), sprites=vae["sprites_psnr"],
        natural=vae["natural_psnr"], guidance=prompts["guidance"], n_frames=quality["n_frames"],
        read=vae["attributes_read_after_round_trip"],
        degrees=math.degrees(WORLD.tilt + WORLD.turn),
        placed=placement_words(quality["edits"]),
    )  # fmt: skip


CARD = """# The miniature

A Stable-Diffusion-class checkpoint (AutoencoderKL, UNet2DConditionModel, CLIPTextModel, DDIM) that
this project trained on its own sprite world, `vala_research.sprites`, with
`python -m vala_research.miniature`. It knows sprites only, {size} x {size} pixels:

* shapes {shapes}, turned by at most {degrees:.0f} degrees
* colours, of objects and backgrounds: {colours}
* patterns {patterns}
* pairs held out of training: {held_out}

## The default edit

The checkpoint brings three parts beside those of Stable Diffusion, each with a card of its own:
motion modules ([`motion_adapter`](motion_adapter/README.md)), a ControlNet that sees the frames
before the edit ([`controlnet`](controlnet/README.md)) and a temporal adapter
([`temporal_adapter`](temporal_adapter/README.md)), which both learnt from true edits of training
scenes. Real clips have none. An edit uses all three where nothing else is said, but no motion
modules in a clip of fewer than 8 frames (`edit_defaults.json`). Plain diffusers loads the image
model alone. Test clips 200 to 204 ([all 100](../../../notebooks/README.md#the-default-edit)):

![Source, edit and true edit of five test clips](../default_edit.png)

The tables below are of the image model alone.

## Training

On {hardware}.

| stage | updates | minutes |
|---|---|---|
{stages}

## Quality, on scenes it never saw

VAE round trip: {sprites:.1f} dB on sprites, {natural:.1f} dB on photographs (it never saw any);
attributes of {read:.0%} of the round-tripped frames are read correctly.

Prompts whose 25-step sample (guidance {guidance:g}) shows each attribute:

| | shape | colour | background | pattern | all four | n |
|---|---|---|---|---|---|---|
{accuracy}

Inversion and reconstruction at guidance 1, mean PSNR in dB:

| inversion, steps | to the VAE round trip | to the source | network evaluations |
|---|---|---|---|
{recon}

Edits of test clips of {n_frames} frames; PSNR in dB to the true edit, beside the unedited source's;
`edited` is the share of clips in which every edited attribute is right in most frames, `success`
the share of frames in which all four attributes are right, read among the whole world's 8 shapes
and 12 colours; E_warp x 1e-3 under the true flow; CLIP-F by the miniature's own CLIP over
consecutive frames; seconds on one core; MiB: peak memory of the process, on a CPU with its
libraries (about 500).{placed}

{edits}

## Configuration

```json
{config}
```
"""
