"""What the miniature can do, measured on scenes it never saw, and the model card that says so."""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F

from vala_research.data.sprites import random_scene, read_attributes, render, split_generator
from vala_research.evaluation import benchmark, metrics
from vala_research.evaluation.statistics import summarise
from vala_research.miniature.configuration import SCHEDULE, SIZE, TEXT, UNET, VAE, VISION, WORLD

# The one editing setting used for every edit type; chosen on validation scenes.
SETTING = benchmark.EditSetting(attention="extended", guidance_scale=2.0, num_inference_steps=25)


def settings() -> dict[str, benchmark.EditSetting]:
    """SETTING under every attention policy, with and without injection."""
    made = {}
    for attention in ("own", "first", "sparse_causal", "extended"):
        for injection in (0.0, 0.5):
            name = attention + (" + injection" if injection else "")
            arguments = SETTING.arguments() | {"attention": attention, "injection": injection}
            made[name] = benchmark.EditSetting(**arguments)
    return made


@torch.no_grad()
def vae_quality(pipe, n: int = 200) -> dict[str, float]:
    """Round-trip PSNR on test sprites and natural pictures; attributes still read afterwards."""
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
    """Photographs that scikit-image ships, squared and shrunk to the miniature's size."""
    from skimage import data

    pictures = []
    for picture in (data.astronaut(), data.chelsea(), data.coffee()):
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
        side = min(x.shape[-2:])
        top, left = (x.shape[-2] - side) // 2, (x.shape[-1] - side) // 2
        x = x[..., top : top + side, left : left + side]
        pictures.append(F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True))
    return torch.cat(pictures).clamp(0, 1)


def measure(
    pipe,
    n_prompts: int = 500,
    n_clips: int = 32,
    names: Iterable[str] | None = None,
    n_frames: int = 8,
) -> tuple[dict, list[dict]]:
    """Everything the card reports, and the rows of the edit benchmark."""
    every = settings()
    chosen = {k: every[k] for k in names or every}
    recon = benchmark.reconstruction_quality(pipe, WORLD, n_clips=4)
    groups: dict[str, list] = {}
    for row in recon:
        groups.setdefault(f"{row['inversion']} {row['steps']}", []).append(row)
    quality = {
        "vae": vae_quality(pipe),
        "prompts": benchmark.prompt_accuracy(pipe, WORLD, n_prompts),
        "prompts_of_held_out_pairs": benchmark.prompt_accuracy(
            pipe, WORLD, max(20, n_prompts // 5), held_out=True
        ),
        "reconstruction": {
            name: {k: sum(r[k] for r in rows) / len(rows) for k in
                   ("to_vae", "to_source", "evaluations")}
            for name, rows in groups.items()
        },
    }  # fmt: skip
    cases = benchmark.edit_cases(WORLD, "test", n_clips)
    rows = list(benchmark.run_edits(pipe, cases, chosen, n_frames, SIZE))
    return quality | {"edits": summary(rows)}, rows


def summary(rows: list[dict]) -> list[dict]:
    """One line a setting and edit type: means, and the gain's 95% bootstrap interval."""
    lines = []
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["setting"], row["kind"]), []).append(row)
    for (setting, kind), group in groups.items():
        gain = summarise([r["gain"] for r in group])
        keys = ("psnr", "source_psnr", "success", "warp_error", "seconds")
        line = {k: sum(r[k] for r in group) / len(group) for k in keys}
        edited = benchmark.EDITS[kind]
        # The edit took where every edited attribute is right in most frames.
        line["edited"] = sum(all(r[k] > 0.5 for k in edited) for r in group) / len(group)
        lines.append({"setting": setting, "kind": kind, "n": len(group), **line,
                      "gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high})  # fmt: skip
    return lines


def hardware() -> str:
    """What it ran on, without naming the machine."""
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
    """README.md (the model card) and quality.json beside the weights."""
    quality = quality | {"training": log, "hardware": hardware}
    (folder / "quality.json").write_text(json.dumps(quality, indent=1) + "\n")
    vae, prompts = quality["vae"], quality["prompts"]
    held_out = quality["prompts_of_held_out_pairs"]
    stages = [f"| {r['stage']} | {r['step']} | {float(r['seconds']) / 60:.0f} |" for r in log]
    recon = [
        f"| {name} | {r['to_vae']:.1f} | {r['to_source']:.1f} | {r['evaluations']:.0f} |"
        for name, r in quality["reconstruction"].items()
    ]
    edits = [
        f"| {e['setting']} | {e['kind']} | {e['psnr']:.1f} | {e['source_psnr']:.1f} | "
        f"{e['gain']:+.1f} [{e['gain_low']:+.1f}, {e['gain_high']:+.1f}] | {e['edited']:.2f} | "
        f"{e['success']:.2f} | {1e3 * e['warp_error']:.1f} | {e['seconds']:.1f} | {e['n']} |"
        for e in quality["edits"]
    ]
    columns = ("shape", "colour", "background", "pattern", "all")
    accuracy = [
        "| " + " | ".join([name, *(f"{row[c]:.2f}" for c in columns), str(row["n"])]) + " |"
        for name, row in (("pairs seen", prompts), ("pairs held out", held_out))
    ]
    text = CARD.format(
        hardware=hardware, stages="\n".join(stages), recon="\n".join(recon),
        edits="\n".join(edits), accuracy="\n".join(accuracy),
        shapes=", ".join(WORLD.shapes), colours=", ".join(WORLD.colours),
        patterns=", ".join(WORLD.patterns), size=SIZE,
        held_out=", ".join(
            f"{c} {s}" for s, c in sorted(WORLD.held_out)
            if s in WORLD.shapes and c in WORLD.colours
        ),
        config=json.dumps({"vae": VAE, "unet": UNET, "text": TEXT, "vision": VISION,
                           "schedule": SCHEDULE, "setting": SETTING.arguments()}, indent=1),
        sprites=vae["sprites_psnr"], natural=vae["natural_psnr"],
        read=vae["attributes_read_after_round_trip"],
    )  # fmt: skip
    (folder / "README.md").write_text(text)


CARD = """# The miniature

A Stable-Diffusion-class checkpoint (AutoencoderKL, UNet2DConditionModel, CLIPTextModel, DDIM) that
this project trained on its own sprite world, `vala_research.data.sprites`, with
`python -m vala_research.miniature`. It knows sprites only: {shapes}; {colours}; patterns
{patterns}; {size} x {size} pixels. Pairs held out of training: {held_out}.

## Training

On {hardware}.

| stage | updates | minutes |
|---|---|---|
{stages}

## Quality, on scenes it never saw

VAE round trip: {sprites:.1f} dB on sprites, {natural:.1f} dB on photographs (it never saw any);
attributes of {read:.0%} of the round-tripped frames are read correctly.

Prompts whose 25-step sample (guidance 3) shows each attribute:

| | shape | colour | background | pattern | all four | n |
|---|---|---|---|---|---|---|
{accuracy}

Inversion and reconstruction at guidance 1, mean PSNR in dB:

| inversion, steps | to the VAE round trip | to the source | network evaluations |
|---|---|---|---|
{recon}

Edits of test clips; PSNR in dB to the true edit, beside the unedited source's; `edited` is the
share of clips in which every edited attribute is right in most frames, `success` the share of
frames in which all four attributes are right; E_warp x 1e-3 under the true flow.

| setting | edit | PSNR | source | gain [95%] | edited | success | E_warp | seconds | n |
|---|---|---|---|---|---|---|---|---|---|
{edits}

## Configuration

```json
{config}
```
"""
