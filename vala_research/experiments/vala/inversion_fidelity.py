"""How faithfully an inversion leads back to its clip, and its cost (notebook 11).

Each row is one method, attention and number of steps. Reconstruction is under the source prompt:
at guidance 1, and guided, as every edit samples. Guidance is where null-text inversion has its
place (Mokady et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd
from jaxtyping import Float
from matplotlib import rc_context
from torch import Tensor
from tqdm import tqdm

from vala_research import read_clip
from vala_research.diffusion.attending import Attending
from vala_research.diffusion.attention import ANCHORS
from vala_research.diffusion.fixed_point import QUICK
from vala_research.diffusion.inversion import InversionSettings
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.metrics import inversion_psnr
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import STABLE_DIFFUSION, Preset, save_rows
from vala_research.methods.anchors import AnchorSettings
from vala_research.sprites.render import render
from vala_research.sprites.scene import WORLD, random_scene, split_generator

ATTENTIONS: dict[str, Attending] = {
    "own": "own",
    "anchors, site": ANCHORS,
    "anchors, token": AnchorSettings(256, granularity="token"),
}


@dataclass(frozen=True)
class Way:
    """A named way there and back: inversion, and the guidance of the reconstruction.

    guidance_scale: None is the guidance of the settings.
    """

    inversion: str | InversionSettings
    guidance_scale: float | None = 1.0


WAYS = {
    "ddim": Way("ddim"),
    "exact, quick": Way(QUICK),
    "exact": Way("exact"),
    "ddim, guided": Way("ddim", None),
    "null text, guided": Way("null_text", None),
}


@dataclass(frozen=True, kw_only=True)
class Settings(Preset):
    """Parameters of notebook 11."""

    PRESETS = {
        "smoke": {},
        "paper": {"model": STABLE_DIFFUSION, "n_frames": 8, "n_clips": 4, "guidance": 7.5},
    }
    CHOICES = {"methods": WAYS, "attentions": ATTENTIONS}

    model: str = "miniature"  # or a folder or a hub id
    clips: str = ""  # a folder of clips, each named by its caption (a_dog_runs.mp4); "": sprites
    n_clips: int = 1  # clips at most
    n_frames: int = 2  # frames per clip, at most
    size: int = 0  # side of the square frames, in pixels; 0: the model's own
    steps: tuple[int, ...] = (25,)  # diffusion steps each way, one run per number
    methods: tuple[str, ...] = ("ddim", "exact, quick", "ddim, guided", "null text, guided")
    attentions: tuple[str, ...] = ("own", "anchors, site")
    guidance: float = 2.0  # of the guided methods; 7.5 is usual for Stable Diffusion

    def files(self) -> list[Path]:
        """The clips of the folder, without hidden files."""
        return sorted(Path(self.clips).glob("[!.]*"))[: self.n_clips] if self.clips else []

    def captioned_clips(self, size: int) -> dict[str, tuple[Float[Tensor, "f c h w"], str]]:
        """Frames and caption of each clip, by name: the files, or test clips of the sprite world.

        size: side of the frames, in pixels.
        """
        if self.clips:
            return {
                path.name: (read_clip(path, self.n_frames, size=size).frames,
                            path.stem.replace("_", " "))
                for path in self.files()
            }  # fmt: skip
        generators = [split_generator("test", i) for i in range(self.n_clips)]
        scenes = [random_scene(generator, world=WORLD) for generator in generators]
        return {
            f"sprite {i}": (render(scene, self.n_frames, size).frames, scene.caption)
            for i, scene in enumerate(scenes)
        }


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """One row per clip, attention, method and number of steps."""
    pipe = quiet_pipeline(settings.model)
    size = settings.size or pipe.unet.config.sample_size * pipe.vae_scale_factor
    clips = settings.captioned_clips(size)
    rows = []
    for name, (frames, caption) in tqdm(clips.items(), "clips", disable=None):
        kinds = product(settings.attentions, settings.methods, settings.steps)
        for attention, method, n in kinds:
            row = {"clip": name, "method": method, "attention": attention, "steps": n}
            way = WAYS[method]
            if way.guidance_scale is None:
                way = replace(way, guidance_scale=settings.guidance)
            how = way, n, ATTENTIONS[attention]
            rows.append(row | fidelity_row(pipe, frames.to(pipe.device), caption, *how))
    return save_rows(rows, output)


def fidelity_row(
    pipe, frames: Float[Tensor, "f c h w"], caption: str, way: Way, n_steps: int,
    attention: Attending,
) -> dict:  # fmt: skip
    """Measure one way there and back.

    Returns:
        evaluations: forward passes of the inversion; backward: its backward passes;
        to_vae: PSNR in dB to decode(encode(clip)), the inversion alone;
        to_source: PSNR in dB to the clip, bounded by the VAE.
    """
    inverted = pipe.invert(
        frames, caption, n_steps, way.inversion, attention, return_inversion=True,
        guidance_scale=way.guidance_scale,
    )  # fmt: skip
    again = pipe(
        None, caption, caption, num_inference_steps=n_steps, guidance_scale=way.guidance_scale,
        latents=inverted, attention=inverted.attention, output_type="pt",
    ).frames[0]  # fmt: skip
    cost = {"evaluations": inverted.n_evaluations, "backward": inverted.n_backward}
    return cost | inversion_psnr(again, frames, pipe.decode(pipe.encode(frames)))


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over clips: one row per method, attention and number of steps."""
    groups = rows.groupby(["method", "attention", "steps"], sort=False)
    means = groups[["evaluations", "backward", "to_vae", "to_source"]].mean()
    return means.assign(worst_to_vae=groups.to_vae.min(), n_clips=groups.size()).reset_index()


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Quick exact inversion is faithful and cheap; anchors cost no fidelity; null text helps.

    The first is claimed of sprite clips alone, which the miniature knows.
    """
    means = table(rows).set_index(["method", "attention", "steps"]).to_dict("index")
    are_sprites = bool(rows["clip"].str.fullmatch(r"sprite \d+").all())
    claims = []

    def claim(sentence: str, measured: str, value: float, holds: bool) -> None:
        n_clips = mean["n_clips"]
        claims.append(Claim.of_fact(sentence, measured, value, holds, n_clips=n_clips))

    for (method, attention, n), mean in means.items():
        where, to_vae = f"(attention {attention!r}, {n} steps)", mean["to_vae"]
        if method == "exact, quick" and are_sprites:
            claim(f"Quick exact inversion reaches 60 dB {where}",
                  "PSNR to the VAE round trip, dB", to_vae, to_vae >= 60)  # fmt: skip
            if n >= 25:  # with fewer steps an early one is nearly singular, and costs more
                ratio = mean["evaluations"] / n
                claim(f"Quick exact inversion costs at most twice DDIM inversion {where}",
                      "evaluations relative to DDIM", ratio, ratio <= 2)  # fmt: skip
        if method == "ddim" and attention != "own" and ("ddim", "own", n) in means:
            gain = to_vae - means["ddim", "own", n]["to_vae"]
            claim(f"Anchors cost less than 1 dB of reconstruction {where}", "gain, dB", gain,
                  gain > -1)  # fmt: skip
        if method == "null text, guided" and ("ddim, guided", attention, n) in means:
            gain = to_vae - means["ddim, guided", attention, n]["to_vae"]
            claim(f"Null text leads back better than guided DDIM {where}", "gain, dB", gain,
                  gain > 0)  # fmt: skip
    return claims


@drawn
def figure(rows: pd.DataFrame) -> Picture:
    """Draw PSNR to the VAE round trip against network passes, one line per method and attention."""
    means = table(rows)
    markers = dict(zip(ATTENTIONS, ("o", "s", "^"), strict=True))
    lines = dict(zip(ATTENTIONS, ("-", "--", ":"), strict=True))
    colours = dict(zip(WAYS, COLOURS, strict=False))
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, 2.9))
        axes = fig.add_subplot(
            xscale="log", xlabel="network passes of the inversion, forward and backward",
            ylabel="PSNR to the VAE round trip (dB)",
        )  # fmt: skip

        # An open marker is a line with anchors.
        for (method, attention), line in means.groupby(["method", "attention"], sort=False):
            face = colours[method] if attention == "own" else "white"
            axes.plot(
                line.evaluations + line.backward, line.to_vae, color=colours[method],
                marker=markers[attention], ls=lines[attention], markerfacecolor=face,
            )  # fmt: skip
        axes.axhline(60, color="#555555", lw=0.8)
        axes.text(axes.get_xlim()[1], 60.6, "60 dB", ha="right", fontsize=7, color="#555555")
        axes.set_xticks(ticks := [10, 25, 50, 100, 250, 500], [str(t) for t in ticks])
        axes.minorticks_off()

        # Colour is the method, marker and dash are the attention: each has its part of the legend.
        handles = [axes.plot([], [], color=colours[m], label=m)[0] for m in means.method.unique()]
        for name in means.attention.unique():
            face = "#555555" if name == "own" else "white"
            style = dict(color="#555555", marker=markers[name], ls=lines[name])
            handles += axes.plot([], [], label=name, markerfacecolor=face, **style)
        fig.legend(handles=handles, loc="outside right center")
    return fig
