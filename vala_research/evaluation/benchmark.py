"""Edits of sprite clips against their true edits, and what the miniature can do at all.

Every number here has a right answer: the true edit is rendered, the attributes are read back.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from vala_research import InputError
from vala_research.data.sprites import (
    Scene,
    World,
    contrasts,
    random_scene,
    read_attributes,
    render,
    split_generator,
)
from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.schedule import Schedule, sample
from vala_research.evaluation import metrics

EDITS = {
    "shape": ("shape",),
    "colour": ("colour",),
    "background": ("background",),
    "pattern": ("pattern",),
    "several": ("shape", "colour", "background"),
}
ATTRIBUTES = ("shape", "colour", "background", "pattern")


@dataclass(frozen=True)
class EditCase:
    """One clip and one edit of it; the target scene's rendering is the true edit."""

    kind: str
    index: int
    source: Scene
    target: Scene


@dataclass(frozen=True)
class EditSetting:
    """A named point in the editor's space: arguments of `VideoEditPipeline.__call__`."""

    attention: str = "extended"
    inversion: str = "ddim"
    injection: float = 0.0
    guidance_scale: float = 2.0
    num_inference_steps: int = 25
    extra: dict = field(default_factory=dict)

    def arguments(self) -> dict:
        own = {k: v for k, v in vars(self).items() if k != "extra"}
        return own | self.extra


def edit_cases(world: World, split: str, n: int, kinds: Iterable[str] = tuple(EDITS)) -> list:
    """`n` cases of each kind; target values are drawn anew, within the world's rules."""
    cases = []
    for kind in kinds:
        if kind not in EDITS:
            raise InputError(f"Unknown edit {kind!r}: choose one of {', '.join(EDITS)}.")
        for index in range(n):
            generator = split_generator(split, 10_000_000 + index)
            source = random_scene(generator, world=replace(world, empty=0.0))
            cases.append(EditCase(kind, index, source, _target(source, kind, world, generator)))
    return cases


def _target(source: Scene, kind: str, world: World, generator: torch.Generator) -> Scene:
    """The first draw that changes each attribute and keeps contrast and the held-out pairs."""
    values = {"shape": world.shapes, "colour": world.colours,
              "background": world.backgrounds, "pattern": world.patterns}  # fmt: skip
    while True:
        changes = {}
        for key in EDITS[kind]:
            others = [v for v in values[key] if v != getattr(source, key)]
            changes[key] = others[torch.randint(len(others), (), generator=generator).item()]
        target = source.edited(**changes)
        pair = (target.shape, target.colour)
        if pair not in world.held_out and contrasts(target.colour, target.background):
            return target


def run_edits(
    pipe,
    cases: list[EditCase],
    settings: dict[str, EditSetting],
    n_frames: int = 8,
    size: int = 64,
    clip_scorer=None,
) -> Iterator[dict]:
    """One row a case and setting; a clip is inverted once for settings that invert alike.

    Columns: psnr, source_psnr (the unedited clip's) and gain, all in dB against the true edit;
    success (share of frames with every attribute right) and one column an attribute; warp_error
    under the true flow; with a `ClipScorer` CLIP-F over consecutive pairs, the true edit's beside
    it; seconds (the inversion's, where shared, is counted in full) and peak_mib of this row.
    """
    inverted: dict[tuple, tuple] = {}
    for case in tqdm(cases, "edits", disable=None):
        clip, truth = render(case.source, n_frames, size), render(case.target, n_frames, size)
        for name, s in settings.items():
            key = (case.index, case.source, s.attention, s.inversion, s.num_inference_steps)
            forget_peak()
            start = time.perf_counter()
            if key not in inverted:
                found = pipe.invert(
                    clip.frames, case.source.caption, s.num_inference_steps, s.inversion,
                    s.attention, return_inversion=True,
                )  # fmt: skip
                inverted[key] = found, time.perf_counter() - start
                start = time.perf_counter()
            found, seconds = inverted[key]
            frames = pipe(
                None, case.target.caption, case.source.caption, latents=found, output_type="pt",
                **s.arguments(),
            ).frames[0]  # fmt: skip
            seconds += time.perf_counter() - start
            cost = {"seconds": seconds, "peak_mib": peak_mebibytes()}
            row = {"setting": name, "kind": case.kind, "index": case.index}
            yield row | edit_row(frames.cpu(), clip, truth, case.target, clip_scorer) | cost


def edit_row(frames: Tensor, clip, truth, target: Scene, clip_scorer=None) -> dict:
    """Metrics of one edited clip; `clip` and `truth` are the rendered source and true edit."""
    smoothness = {}
    if clip_scorer is not None:
        smoothness["clip_f"] = metrics.clip_frames(frames, clip_scorer)
        smoothness["true_clip_f"] = metrics.clip_frames(truth.frames, clip_scorer)
    edited = metrics.psnr(frames, truth.frames)
    source = metrics.psnr(clip.frames, truth.frames)
    read = read_attributes(frames)
    right = {k: sum(r[k] == getattr(target, k) for r in read) / len(read) for k in ATTRIBUTES}
    return {
        "psnr": edited,
        "source_psnr": source,
        "gain": edited - source,
        "success": metrics.attribute_success(frames, target.attributes),
        **right,
        "warp_error": metrics.warp_error(frames, clip.flow, clip.flow_valid),
    } | smoothness


def forget_peak() -> None:
    """Start `peak_mebibytes` anew, where the system can (CUDA, Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mebibytes() -> float:
    """Peak memory since `forget_peak`: the device's where there is one, else the resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) / 1024 for x in lines if x.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def sample_images(
    pipe, prompts: list[str], generator: torch.Generator, steps: int = 25, guidance: float = 2.0
) -> Tensor:
    """Text to image by deterministic DDIM: one frame a prompt, n 3 h w in [0,1]."""
    schedule = Schedule.from_scheduler(pipe.scheduler, steps)
    config, backbone = pipe.unet.config, Backbone(pipe.unet)
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    frames = []
    for start in tqdm(range(0, len(prompts), 16), "samples"):
        batch = prompts[start : start + 16]
        text = pipe.encode_prompt([*batch, *[""] * len(batch)])

        def guided(z: Tensor, t: int, text: Tensor = text) -> Tensor:
            positive, empty = backbone(torch.cat([z, z]), t, text).chunk(2)
            return empty + guidance * (positive - empty)

        z = torch.randn(len(batch), *shape, generator=generator).to(pipe.device)
        z = sample(guided, z, schedule)
        frames.append(pipe.decode(rearrange(z, "g f c h w -> (g f) c h w")).cpu())
    return torch.cat(frames)


def prompt_accuracy(
    pipe,
    world: World,
    n: int,
    steps: int = 25,
    guidance: float = 2.0,
    held_out: bool = False,
    split: str = "test",
) -> dict[str, float]:
    """Share of prompts of a split whose sample shows each attribute, and all four at once.

    held_out: prompts of the (shape, colour) pairs that training never saw, instead of the others.
    """
    pairs = sorted(p for p in world.held_out if p[0] in world.shapes and p[1] in world.colours)
    scenes = [
        random_scene(
            split_generator(split, i), world=replace(world, empty=0.0),
            pair=pairs[i % len(pairs)] if held_out else None,
        )
        for i in range(n)
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    frames = sample_images(pipe, [s.caption for s in scenes], generator, steps, guidance)
    pairs = list(zip(read_attributes(frames), scenes, strict=True))
    right = {k: sum(r[k] == getattr(s, k) for r, s in pairs) / n for k in ATTRIBUTES}
    correct = sum(r == s.attributes for r, s in pairs) / n
    return right | {"all": correct, "n": n, "guidance": guidance, "steps": steps}


def reconstruction_quality(
    pipe, world: World, n_clips: int, n_frames: int = 4, steps: Iterable[int] = (10, 25, 50)
) -> list[dict]:
    """PSNR to the VAE round trip and to the source of both inversions at guidance 1."""
    rows = []
    for i in range(n_clips):
        scene = random_scene(split_generator("test", i), world=world)
        clip = render(scene, n_frames, pipe.unet.config.sample_size * pipe.vae_scale_factor)
        round_trip = pipe.decode(pipe.encode(clip.frames))
        for n in steps:
            for method in ("ddim", "exact"):
                found = pipe.invert(
                    clip.frames, scene.caption, n, method, "own", return_inversion=True
                )
                frames = pipe.reconstruct(found.latents, scene.caption, n, "own")
                rows.append(
                    {"clip": i, "inversion": method, "steps": n, "evaluations": found.n_evaluations}
                    | metrics.inversion_psnr(frames, clip.frames, round_trip)
                )
    return rows
