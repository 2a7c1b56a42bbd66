"""Measure the miniature's flow model: `python -m vala_research.miniature.flow_card`.

Prints what its README says: attributes of sampled frames, clips beside the motion model's and true
ones, and reconstructions by plain and exact inversion.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from vala_research import VideoEditPipeline, miniature_path
from vala_research.diffusion.loading import load_network
from vala_research.files import write_json, write_rows
from vala_research.miniature.abilities import prompt_accuracy, reconstruction_quality
from vala_research.miniature.motion_card import (
    gains,
    measure,
    picture,
    prompt_scenes,
    sample_clip,
    table,
    video_model,
)
from vala_research.sprites.scene import WORLD

FLOW, VIDEO = "flow model", "video model"
GUIDANCE = 4.0  # of samples; chosen on validation prompts


def flow_pipeline(folder: Path | None = None) -> VideoEditPipeline:
    """The pipeline of a trained transformer's folder; None is the committed one."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

    if folder is None:
        pipe = VideoEditPipeline.from_pretrained("miniature_flow")
    else:
        words = VideoEditPipeline.from_pretrained("miniature", motion_adapter=None, adapter=None)
        where = folder / "transformer"
        transformer = load_network(WanTransformer3DModel, where, f"The transformer {str(where)!r}")
        pipe = VideoEditPipeline(
            words.vae, words.text_encoder, words.tokenizer, None,
            FlowMatchEulerDiscreteScheduler(), transformer=transformer.float(),
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main() -> None:
    from diffusers import MotionAdapter

    parser = argparse.ArgumentParser(prog="python -m vala_research.miniature.flow_card")
    parser.add_argument("--flow", type=Path, help="the weights (default: the committed ones)")
    parser.add_argument("--prompts", type=int, default=200, help="of pairs seen, and of held-out")
    parser.add_argument("--clips", type=int, nargs=2, default=[32, 12], help="of 8 and 16 frames")
    parser.add_argument("--reconstructed", type=int, default=8, help="clips that are inverted")
    parser.add_argument("--out", type=Path, default=Path("runs/miniature_flow"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipe = flow_pipeline(args.flow)
    quality: dict = {}

    # Frames, one by one.
    if args.prompts:
        for name, held_out in (("prompts", False), ("prompts of held-out pairs", True)):
            asked = pipe, WORLD, args.prompts, 25, GUIDANCE, held_out
            quality[name] = prompt_accuracy(*asked)
            print(name, quality[name])

    # Round trips at guidance 1.
    if args.reconstructed:
        rows = reconstruction_quality(pipe, WORLD, args.reconstructed, 8, (25,), "extended")
        means = pd.DataFrame(rows).groupby("inversion")[["to_vae", "to_source", "evaluations"]]
        quality["reconstruction"] = means.mean().round(2).to_dict("index")
        print(means.mean())

    # Clips, beside those of the motion model from the same noise.
    if any(args.clips):
        adapter = load_network(MotionAdapter, miniature_path("motion"), "The motion modules")
        pipes = {FLOW: pipe, VIDEO: video_model(adapter)}
        rows = [row for n, f in zip(args.clips, (8, 16), strict=True)
                for row in measure(pipes, prompt_scenes(n), f)]  # fmt: skip
        write_rows(args.out / "clips.csv", rows)
        print(table(rows), *gains(rows, FLOW, VIDEO), sep="\n")
        strips = [sample_clip(pipe, s, 8, i) for i, s in enumerate(prompt_scenes(8))]
        picture(strips, args.out / "clips.png")
    write_json(args.out / "quality.json", quality)


if __name__ == "__main__":
    main()
