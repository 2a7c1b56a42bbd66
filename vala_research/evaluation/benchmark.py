"""Edits measured one by one, and what the miniature can do at all.

In the sprite world every number has a right answer: the true edit is rendered, the attributes are
read back. Of other clips the rows hold what can be said without one.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vala_research.data.sprites import (
    World,
    random_scene,
    read_attributes,
    render,
    split_generator,
)
from vala_research.diffusion.attention import AnchorAttention, KeyframeAttention, Policy
from vala_research.diffusion.backbone import Backbone
from vala_research.diffusion.editing import ANCHORS, VideoEditPipeline
from vala_research.diffusion.inversion import Inversion
from vala_research.diffusion.schedule import Schedule, sample
from vala_research.diffusion.source import Source
from vala_research.evaluation import metrics
from vala_research.evaluation.edit_cases import ClipCase, EditCase, Material
from vala_research.evaluation.fusion_plans import Plan, inverted_sources
from vala_research.methods.anchors import AnchorSettings, assign_anchors, select_keyframes

Measure = Callable[[Float[Tensor, "f c h w"], Material], dict[str, float]]
ATTRIBUTES = ("shape", "colour", "background", "pattern")


@dataclass(frozen=True)
class Keyframes:
    """Attention to the own frame and to n key frames that `method` chooses from clean latents."""

    method: str
    n: int


@dataclass(frozen=True)
class EditSetting:
    """A named point in the editor's space: arguments of `VideoEditPipeline.__call__`.

    attention: a policy's name, or how the policy of a clip is found: AnchorSettings, Keyframes.
    adapter: the folder of a `TemporalAdapter`, "miniature", or "" for none; adapter_interval and
    adapter_scale None are its own. fusion: several models at once; attention is then its sources'.
    """

    attention: str | AnchorSettings | Keyframes = "extended"
    inversion: str = "ddim"
    injection: float = 0.0
    guidance_scale: float = 2.0
    num_inference_steps: int = 25
    adapter: str = ""
    adapter_interval: tuple[float, float] | None = None
    adapter_scale: float | None = None
    fusion: Plan | None = None
    extra: dict = field(default_factory=dict)

    def arguments(self) -> dict:
        own = {k: v for k, v in vars(self).items() if k not in ("adapter", "fusion", "extra")}
        return own | self.extra

    def inverting(self) -> dict:
        """What the inversion is told beside its name, steps and policy."""
        shared = ("adapter_interval", "adapter_scale", "exact_settings", "bilateral_settings")
        return {k: v for k, v in self.arguments().items() if k in shared}

    def policy(self, z_0: Float[Tensor, "f c h w"], seed: int = 0) -> str | Policy:
        """The attention policy of the clip whose clean latents are z_0; seed: of what is drawn."""
        how = self.attention
        if isinstance(how, str) and how != "anchors":
            return how
        features = rearrange(z_0, "f c h w -> f (h w) c")
        if isinstance(how, Keyframes):
            generator = torch.Generator().manual_seed(seed)
            n = min(how.n, len(z_0))
            return KeyframeAttention(tuple(select_keyframes(features, n, how.method, generator)))
        settings = ANCHORS if how == "anchors" else how
        return AnchorAttention(assign_anchors(features, settings), tuple(z_0.shape[2:]))


def quiet_pipeline(model: str | PathLike, dtype: torch.dtype | None = None) -> VideoEditPipeline:
    """The pipeline of a model on the GPU, where there is one, without progress bars."""
    pipe = VideoEditPipeline.from_pretrained(str(model), dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def run_edits(
    pipe,
    cases: list[EditCase | ClipCase],
    settings: dict[str, EditSetting],
    n_frames: int = 8,
    size: int = 64,
    measure: Measure | None = None,
    clip_scorer=None,
) -> Iterator[dict]:
    """One row a case and setting; a clip is inverted once for settings that invert alike.

    Columns: those of `edit_row`; inversion_psnr of the reconstruction to the VAE round trip;
    seconds (of finding the policy and inverting too, also where they are shared) and peak_mib of
    this row. measure: further columns, of an edited clip and what is known of it (`Material`).
    Settings of one adapter come together, after each other; none stays loaded.
    """
    for adapter in dict.fromkeys(s.adapter for s in settings.values()):
        pipe.unload_adapter()
        if adapter:
            pipe.load_adapter(adapter)
        chosen = {n: s for n, s in settings.items() if s.adapter == adapter}
        yield from _run_edits(pipe, cases, chosen, n_frames, size, measure, clip_scorer)
    pipe.unload_adapter()


def _run_edits(pipe, cases, settings, n_frames, size, measure, clip_scorer) -> Iterator[dict]:
    """The rows of settings that share an adapter."""
    found: dict[tuple, Inverted] = {}
    for case in tqdm(cases, "edits", disable=None):
        material = case.material(n_frames, size)
        known = truth_row(material, clip_scorer)
        for name, s in settings.items():
            how = (s.attention, s.inversion, s.num_inference_steps, str(s.inverting()))
            how = (*how, s.fusion and s.fusion.inverting())
            key = (case.index, case.source_prompt, *how)
            forget_peak()
            if key not in found:
                found[key] = inverted(pipe, material.frames, case.source_prompt, s, case.index)
            start, given = time.perf_counter(), found[key]
            if s.fusion is None:
                start_at = {"latents": given.inversion, "attention": given.policy}
            else:
                drawn = torch.Generator().manual_seed(case.index)  # an image source from noise
                start_at = {"fusion": s.fusion.fusion(given.sources), "generator": drawn}
            frames = pipe(
                None if s.fusion is None else material.frames, case.prompt, case.source_prompt,
                output_type="pt", **s.arguments() | start_at,
            ).frames[0].cpu()  # fmt: skip
            seconds = found[key].seconds + time.perf_counter() - start
            cost = {"inversion_psnr": found[key].psnr, "seconds": seconds,
                    "peak_mib": peak_mebibytes()}  # fmt: skip
            row = {"setting": name, "kind": case.kind, "index": case.index} | known
            further = {} if measure is None else measure(frames, material)
            yield row | edit_row(frames, case, material, clip_scorer) | further | cost


def edited_frames(
    pipe, case: EditCase | ClipCase, settings: dict[str, EditSetting], n_frames: int, size: int
) -> dict[str, Float[Tensor, "f c h w"]]:
    """The edits of one case by name, for a strip."""
    kept: list[Tensor] = []

    def keep(frames: Tensor, _material: Material) -> dict[str, float]:
        kept.append(frames)
        return {}

    rows = run_edits(pipe, [case], settings, n_frames, size, keep)
    found = dict(zip([row["setting"] for row in rows], kept, strict=True))
    return {name: found[name] for name in settings}


@dataclass(frozen=True)
class Inverted:
    """One clip inverted under one policy, or by the sources of a fusion: what edits of it share."""

    policy: str | Policy | None
    inversion: Inversion | None
    psnr: float
    seconds: float
    sources: list[Source] = field(default_factory=list)


def inverted(
    pipe, frames: Float[Tensor, "f c h w"], caption: str, s: EditSetting, seed: int = 0
) -> Inverted:
    """Find the clip's policy, invert under it, and reconstruct (which is not timed).

    A fusion's sources invert each for itself; their reconstructions are not measured (NaN).
    """
    if s.fusion is not None:
        sources, seconds = inverted_sources(
            pipe, s.fusion.built(pipe), frames, caption, s.num_inference_steps, s.inversion,
            s.fusion.image_start,
        )  # fmt: skip
        return Inverted(None, None, float("nan"), seconds, sources)
    start = time.perf_counter()
    z_0 = pipe.encode(frames)
    policy, n = s.policy(z_0, seed), s.num_inference_steps
    found = pipe.invert(
        frames, caption, n, s.inversion, policy, return_inversion=True, **s.inverting()
    )  # fmt: skip
    seconds = time.perf_counter() - start
    again = pipe.reconstruct(found, caption, n, policy)
    return Inverted(policy, found, metrics.psnr(again.cpu(), pipe.decode(z_0).cpu()), seconds)


def truth_row(material: Material, clip_scorer=None) -> dict:
    """What no editor changes: the source's PSNR to the true edit, the true edit's CLIP-F."""
    if material.truth is None:
        return {}
    row = {"source_psnr": metrics.psnr(material.frames, material.truth)}
    if clip_scorer is not None:
        row["true_clip_f"] = metrics.clip_frames(material.truth, clip_scorer)
    return row


def edit_row(
    frames: Float[Tensor, "f c h w"], case: EditCase | ClipCase, material: Material,
    clip_scorer=None,
) -> dict:  # fmt: skip
    """Metrics of one edited clip.

    warp_error under the source's flow; with a `ClipScorer` CLIP-T to the prompt and CLIP-F over
    consecutive pairs. Where the true edit is known, psnr to it and gain over the source's, in dB;
    warp_error_truth, E_warp under the true edit's own flow, by which a right new outline does not
    lose and an old one does; success (share of frames with every attribute right) and one column
    an attribute. Elsewhere psnr is to the source: how much was kept.
    """
    reference = material.frames if material.truth is None else material.truth
    row = {
        "psnr": metrics.psnr(frames, reference),
        "warp_error": metrics.warp_error(frames, material.flow, material.flow_valid),
    }
    if material.truth is not None:
        row["gain"] = row["psnr"] - metrics.psnr(material.frames, material.truth)
        if material.truth_flow is not None:
            followed = material.truth_flow, material.truth_flow_valid
            row["warp_error_truth"] = metrics.warp_error(frames, *followed)
        read, right = read_attributes(frames), case.attributes
        row["success"] = sum(r == right for r in read) / len(read)
        row |= {k: sum(r[k] == right[k] for r in read) / len(read) for k in ATTRIBUTES}
    if clip_scorer is not None:
        row["clip_t"] = metrics.clip_text(frames, case.prompt, clip_scorer)
        row["clip_f"] = metrics.clip_frames(frames, clip_scorer)
    return row


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
