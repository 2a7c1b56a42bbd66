"""What the miniature can do, measured on scenes it never saw, and the model card that says so."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from vala_research.editing import pipeline
from vala_research.evaluation import benchmark, metrics
from vala_research.evaluation.cases import edit_cases
from vala_research.evaluation.clip_scores import ClipScorer
from vala_research.evaluation.statistics import summarise
from vala_research.files import written_whole
from vala_research.miniature import abilities
from vala_research.miniature.configuration import SCHEDULE, TEXT, UNET, VAE, VISION
from vala_research.sprites import edits
from vala_research.sprites.reader import read_attributes
from vala_research.sprites.render import render
from vala_research.sprites.scene import SIZE, WORLD, random_scene, split_generator

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
    folder: Path,
    n_prompts: int = 500,
    n_clips: int = 32,
    names: Iterable[str] | None = None,
    n_frames: int = 4,
) -> tuple[dict, list[dict]]:
    """Everything the card reports, and the rows of the edit benchmark; one process a core.

    folder: the checkpoint, with its CLIPModel in the sibling `<folder>_clip`.
    """
    every = settings()
    chosen = {k: every[k] for k in names or every}
    cases = edit_cases(WORLD, "test", n_clips)
    groups = [[c for c in cases if c.index // 2 == i] for i in range((n_clips + 1) // 2)]
    n = 1 if torch.cuda.is_available() else os.cpu_count()
    with ProcessPoolExecutor(n, get_context("spawn"), _load, (folder,)) as pool:
        quality = {
            "vae": pool.submit(_on_pipe, vae_quality),
            "prompts": pool.submit(_on_pipe, abilities.prompt_accuracy, WORLD, n_prompts),
            "prompts_of_held_out_pairs": pool.submit(
                _on_pipe, abilities.prompt_accuracy, WORLD, max(20, n_prompts // 5), held_out=True
            ),
            "reconstruction": pool.submit(_on_pipe, reconstruction),
        }
        parts = pool.map(_edit, groups, repeat(chosen), repeat(n_frames))
        rows = [row for part in tqdm(parts, "edits", len(groups)) for row in part]
        quality = {name: found.result() for name, found in quality.items()}
    rows.sort(
        key=lambda r: (list(chosen).index(r["setting"]), list(edits.EDITS).index(r["kind"]))
    )
    return quality | {"n_frames": n_frames, "edits": summary(rows)}, rows


def _load(folder: Path) -> None:
    """The pipeline and the CLIP model of this process."""
    global PIPE, SCORER
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    PIPE = pipeline.quiet_pipeline(folder)
    SCORER = ClipScorer.from_pretrained(f"{folder}_clip")


def _on_pipe(function: Callable, *arguments, **options):
    return function(PIPE, *arguments, **options)


def _edit(cases: list, chosen: dict, n_frames: int) -> list[dict]:
    return list(benchmark.run_edits(PIPE, cases, chosen, n_frames, SIZE, clip_scorer=SCORER))


def reconstruction(pipe, n_clips: int = 4) -> dict[str, dict[str, float]]:
    """Mean PSNR and network evaluations of each inversion and number of steps."""
    groups: dict[str, list] = {}
    for row in abilities.reconstruction_quality(pipe, WORLD, n_clips):
        groups.setdefault(f"{row['inversion']} {row['steps']}", []).append(row)
    keys = ("to_vae", "to_source", "evaluations")
    return {
        name: {k: sum(r[k] for r in rows) / len(rows) for k in keys}
        for name, rows in groups.items()
    }


def summary(rows: list[dict]) -> list[dict]:
    """One line a setting and edit type: means, and the gain's 95% bootstrap interval."""
    lines = []
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["setting"], row["kind"]), []).append(row)
    for (setting, kind), group in groups.items():
        gain = summarise([r["gain"] for r in group])
        keys = ("psnr", "source_psnr", "success", "warp_error", "clip_f", "seconds", "peak_mib")
        line = {k: sum(r[k] for r in group) / len(group) for k in keys if k in group[0]}
        edited = edits.EDITS[kind]
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
    with written_whole(folder / "quality.json") as unfinished:
        unfinished.write_text(json.dumps(quality, indent=1) + "\n")
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
        f"{e['success']:.2f} | {1e3 * e['warp_error']:.1f} | {e['clip_f']:.1f} | "
        f"{e['seconds']:.1f} | {e['peak_mib']:.0f} | {e['n']} |"
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
        guidance=prompts["guidance"], n_frames=quality["n_frames"],
        read=vae["attributes_read_after_round_trip"],
        degrees=math.degrees(WORLD.tilt + WORLD.turn),
    )  # fmt: skip
    with written_whole(folder / "README.md") as unfinished:
        unfinished.write_text(text)


CARD = """# The miniature

A Stable-Diffusion-class checkpoint (AutoencoderKL, UNet2DConditionModel, CLIPTextModel, DDIM) that
this project trained on its own sprite world, `vala_research.sprites`, with
`python -m vala_research.miniature`. It knows sprites only, {size} x {size} pixels:

* shapes {shapes}, turned by at most {degrees:.0f} degrees
* colours, of objects and backgrounds: {colours}
* patterns {patterns}
* pairs held out of training: {held_out}

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
libraries (about 500).

| setting | edit | PSNR | source | gain [95%] | edited | success | E_warp | CLIP-F | s | MiB | n |
|---|---|---|---|---|---|---|---|---|---|---|---|
{edits}

## Configuration

```json
{config}
```
"""
