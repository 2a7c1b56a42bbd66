"""Compare clips of the video model with clips of the image model, frame by frame, and true clips.

`python -m vala_research.miniature.motion_card` samples the captions of test scenes and prints the
table of the weights' README. A sampled clip has no true flow, so E_warp is measured under the flow
that DIS estimates on the clip itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vala_research import VideoEditPipeline, miniature_path
from vala_research.diffusion.loading import load_network
from vala_research.evaluation import metrics
from vala_research.evaluation.comparison_tables import METRICS, Metric
from vala_research.evaluation.statistics import paired_gain, summarise
from vala_research.files import write_rows
from vala_research.sprites.palette import COLOURS, tones
from vala_research.sprites.reader import read_attributes
from vala_research.sprites.render import render
from vala_research.sprites.scene import SIZE, WORLD, Scene, random_scene, split_generator

SAMPLING = dict(num_inference_steps=15, guidance_scale=2.5)
COLUMNS = {
    "success": Metric("success", "success"),
    "coherent": Metric("coherent", "coherent"),
    "difference": Metric("difference", "difference x 1000", 1000, -1),
    "warp_error": METRICS["warp_error"],
    "followed": Metric("followed", "followed"),
    "speed": Metric("speed", "speed"),
    "jump": Metric("jump", "jump", 1, -1),
}


def image_model():
    """Load the miniature as a plain StableDiffusionPipeline."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(miniature_path(), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video_model(adapter):
    """Build a plain AnimateDiffPipeline of the miniature and a MotionAdapter."""
    from diffusers import AnimateDiffPipeline

    image = image_model()
    parts = {k: image.components[k] for k in ("vae", "text_encoder", "tokenizer", "unet")}
    pipe = AnimateDiffPipeline(**parts, scheduler=image.scheduler, motion_adapter=adapter)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample_clip(
    pipe, scene: Scene, n_frames: int, seed: int, **settings
) -> Float[Tensor, "f 3 h w"]:
    """Sample a clip of the scene's caption; every frame starts from its own noise.

    An image model draws the frames one by one. Equal seeds give both models equal noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_frames, 4, SIZE // 4, SIZE // 4, generator=generator)
    if isinstance(pipe, VideoEditPipeline):  # a flow, which samples from these latents
        own = dict(num_inference_steps=25, guidance_scale=4.0) | settings
        return pipe(prompt=scene.caption, latents=noise, output_type="pt", **own).frames[0]
    settings = SAMPLING | dict(height=SIZE, width=SIZE, output_type="pt") | settings
    if not hasattr(pipe, "motion_adapter"):
        return pipe(scene.caption, num_images_per_prompt=n_frames, latents=noise, **settings).images
    latents = noise.transpose(0, 1)[None]
    return pipe(scene.caption, num_frames=n_frames, latents=latents, **settings).frames[0]


def prompt_scenes(n: int, split: str = "test") -> list[Scene]:
    """The first n scenes of a split that show an object."""
    scenes, i = [], 0
    while len(scenes) < n:
        scene = random_scene(split_generator(split, i), world=WORLD)
        scenes += [scene] if scene.shape else []
        i += 1
    return scenes


def object_path(frames: Float[Tensor, "f 3 h w"], scene: Scene) -> Float[Tensor, "f 2"]:
    """Centroid, in pixels, of the pixels that are nearer to the object's colour than to the ground.

    The ground has two tones. A frame without such a pixel has NaN.
    """
    palette = torch.stack([torch.tensor(COLOURS[scene.colour]), *tones(scene.background)])
    gap = torch.cdist(frames.flatten(2).transpose(1, 2), palette[None].expand(len(frames), -1, -1))
    mask = (gap.argmin(-1) == 0).float()  # f n
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in frames.shape[2:]), indexing="ij")
    at = torch.stack([x.flatten(), y.flatten()], -1)
    return mask @ at / mask.sum(1, keepdim=True)


def clip_row(frames: Float[Tensor, "f 3 h w"], scene: Scene) -> dict[str, float]:
    """Measure one clip.

    success: share of frames that show the four attributes of the caption.
    coherent: 1 if all frames show the same four attributes, else 0.
    difference: mean |x_t+1 - x_t|.
    warp_error: E_warp under the clip's own flow by DIS, over the pixels that are followed.
    followed: share of pixels where forward and backward flow agree.
    speed: pixels per frame that the centroid of the object moves.
    jump: change of this step between frames, in pixels.
    """
    read = read_attributes(frames)
    flow, valid = metrics.estimate_flow(frames)
    path = object_path(frames, scene)
    return {
        "success": metrics.attribute_success(frames, scene.attributes),
        "coherent": float(all(r == read[0] for r in read)),
        "difference": frames.diff(dim=0).abs().mean().item(),
        "warp_error": metrics.warp_error(frames, flow, valid),
        "followed": valid.float().mean().item(),
        "speed": path.diff(dim=0).norm(dim=1).nanmean().item(),
        "jump": path.diff(n=2, dim=0).norm(dim=1).nanmean().item(),
    }


def measure(pipes: dict[str, object], scenes: list[Scene], n_frames: int) -> Iterator[dict]:
    """One row per scene and source of clips: each pipeline, and the true clip."""
    for seed, scene in enumerate(tqdm(scenes, f"{n_frames} frames")):
        clips = {name: sample_clip(p, scene, n_frames, seed) for name, p in pipes.items()}
        clips["true clip"] = render(scene, n_frames, SIZE).frames
        for name, frames in clips.items():
            yield {"clips": name, "frames": n_frames, "index": seed, **clip_row(frames, scene)}


def table(rows: list[dict]) -> str:
    """Means and 95% bootstrap intervals over clips, in Markdown."""
    lines = ["| clips | frames | n | " + " | ".join(m.axis for m in COLUMNS.values()) + " |"]
    lines.append("|---" * (3 + len(COLUMNS)) + "|")
    for key in dict.fromkeys((r["clips"], r["frames"]) for r in rows):
        group = [r for r in rows if (r["clips"], r["frames"]) == key]
        cells = [_cell([r[c] * m.factor for r in group]) for c, m in COLUMNS.items()]
        lines.append(f"| {key[0]} | {key[1]} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gains(rows: list[dict], name: str, baseline: str) -> list[str]:
    """Paired differences between two sources of clips, one line per number of frames and column."""
    lines = []
    for f in dict.fromkeys(r["frames"] for r in rows):
        same = [r for r in rows if r["frames"] == f]
        for column, metric in COLUMNS.items():
            g = paired_gain(*(
                [metric.factor * r[column] for r in same if r["clips"] == n]
                for n in (name, baseline)
            ))  # fmt: skip
            lines.append(f"{f} frames, {metric.axis}: {g.mean:+.3g} [{g.low:+.3g}, {g.high:+.3g}]")
    return lines


def _cell(values: list[float]) -> str:
    s = summarise(values)
    return f"{s.mean:.3g} [{s.low:.3g}, {s.high:.3g}]"


def picture(clips: list[Float[Tensor, "f 3 h w"]], path: Path) -> None:
    """Write clips as strips, one below the other, with a white line between frames."""
    from PIL import Image

    rows = [torch.nn.functional.pad(c, (1, 1, 1, 1), value=1.0) for c in clips]
    whole = torch.cat([torch.cat(list(r), 2) for r in rows], 1)
    pixels = whole.permute(1, 2, 0).clamp(0, 1).mul(255).round().byte().numpy()
    Image.fromarray(pixels).save(path)


def main() -> None:
    from diffusers import MotionAdapter

    parser = argparse.ArgumentParser(prog="python -m vala_research.miniature.motion_card")
    parser.add_argument("--motion", type=Path, help="the weights (default: the committed ones)")
    parser.add_argument("--clips", type=int, nargs=2, default=[64, 24], help="of 8 and 16 frames")
    parser.add_argument("--out", type=Path, default=Path("runs/miniature_motion"))
    args = parser.parse_args()
    folder = args.motion or miniature_path("motion")
    adapter = load_network(MotionAdapter, folder, f"The motion modules {str(folder)!r}")
    pipes = {"video model": video_model(adapter), "image model": image_model()}
    rows = [row for n, f in zip(args.clips, (8, 16), strict=True)
            for row in measure(pipes, prompt_scenes(n), f)]  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    write_rows(args.out / "clips.csv", rows)
    print(table(rows), *gains(rows, "video model", "image model"), sep="\n")
    strips = [
        sample_clip(pipe, scene, 8, seed)
        for seed, scene in enumerate(prompt_scenes(6)) for pipe in reversed(pipes.values())
    ]  # fmt: skip
    picture(strips, args.out / "clips.png")


if __name__ == "__main__":
    main()
