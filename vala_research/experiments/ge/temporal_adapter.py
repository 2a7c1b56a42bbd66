"""Notebook 31: an adapter makes neighbouring frames alike, over an edit and over its training.

Fig. 4 of GE-Adapter's theory (arXiv 2504.16016): the similarity of latents over an edit, and the
variation of the similarity over the training. The mean similarity stands beside the variation,
because the variation alone is as low for steady flicker.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from matplotlib import rc_context

from vala_research import miniature_path
from vala_research.adapter.temporal_adapter import temporal_features
from vala_research.editing.pipeline import quiet_pipeline
from vala_research.evaluation.cases import ClipCase, EditCase, edit_cases, folder_cases
from vala_research.evaluation.comparison_tables import comparison_table
from vala_research.evaluation.figures import COLOURS, PAGE, STYLE, Picture, drawn
from vala_research.evaluation.verdicts import Claim, n_clips_of
from vala_research.experiments.contract import (
    ATTENTIONS,
    STABLE_DIFFUSION,
    Preset,
    part_of,
    save_rows,
)
from vala_research.experiments.ge.adapter_costs import flop_table, parameter_table, timed
from vala_research.experiments.ge.similarity_variation import (
    ADAPTED,
    ALONE,
    UNITY,
    caption_claims,
    draw_variation,
    variation_of,
)
from vala_research.methods.temporal import frame_similarity
from vala_research.miniature.adapter import TRAINING, build_adapter
from vala_research.sprites.scene import WORLD


@dataclass(frozen=True, kw_only=True)
class Settings(Preset):
    """Parameters of notebook 31."""

    PRESETS = {
        "smoke": dict(n_clips=2, steps=3, training_steps=2),
        "sprites": dict(n_clips=16, steps=15),
        "paper": dict(
            model=STABLE_DIFFUSION, n_frames=16, steps=50, guidance=7.5, training_steps=0
        ),
    }

    CHOICES = {"attention": ATTENTIONS}

    model: str = "miniature"  # or a folder or a hub id
    clips: str = ""  # a folder of clips with edits.csv; "": sprite clips of the test split
    adapter: str = "miniature"  # or a folder that vala train wrote
    n_clips: int = 6  # sprite clips
    n_frames: int = 4  # frames per clip
    attention: str = "sparse_causal"  # attention policy of the edits, as in the training
    steps: int = 10  # diffusion steps each way
    guidance: float = 2.0  # 7.5 is usual for Stable Diffusion
    training_steps: int = 4  # of the recipe, which starts anew here; 0: none

    def cases(self) -> list[EditCase | ClipCase]:
        if self.clips:
            return folder_cases(self.clips)
        return edit_cases(WORLD, "test", self.n_clips, ["several"])

    @property
    def adapter_folder(self) -> Path:
        return Path(miniature_path("adapter") if self.adapter == "miniature" else self.adapter)


def run(settings: Settings, output: str | Path) -> pd.DataFrame:
    """Rows of five parts.

    "recipe": losses of the checkpoints of the miniature's recipe, in its first steps. "similarity":
    `similarity_of_steps` without and with the adapter (column setting). "training": the adapter's
    `training_curve`. "overhead": FLOPs and milliseconds. "parameters": `parameter_table`.
    """
    recipe, cases = [], settings.cases()
    if settings.training_steps:
        training = replace(TRAINING, max_steps=settings.training_steps, checkpoint_every=2)
        recipe = build_adapter(Path(output) / "training", training, 2, 2)
        recipe = [row for row in recipe if row["step"] <= settings.training_steps]  # an earlier run

    pipe = quiet_pipeline(settings.model, settings.dtype)
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    edit = dict(num_inference_steps=settings.steps, guidance_scale=settings.guidance,
                attention=settings.attention)  # fmt: skip
    alone = similarity_of_steps(pipe, cases, settings.n_frames, size, **edit)
    pipe.load_adapter(settings.adapter)
    adapted = similarity_of_steps(pipe, cases, settings.n_frames, size, **edit)
    similarity = [row | {"setting": ALONE} for row in alone]
    similarity += [row | {"setting": ADAPTED} for row in adapted]

    parts = {
        "recipe": recipe,
        "similarity": similarity,
        "training": training_curve(settings.adapter_folder).assign(setting="training")
        .to_dict("records"),
        "overhead": overhead_rows(pipe, cases[0].material(settings.n_frames, size).frames),
        "parameters": parameter_table(),
    }  # fmt: skip
    named = [{"part": part} | row for part, rows in parts.items() for row in rows]
    return save_rows(named, output)


@torch.no_grad()
def similarity_of_steps(
    pipe, cases: Iterable[EditCase | ClipCase], n_frames: int, size: int, **edit
) -> list[dict]:
    """One row per clip and step (counted from noise), t: mean cosines of neighbouring frames.

    latents: after the step. features: at the hook sites, of all guidance branches. variation: root
    of the temporal loss of the features, how much the cosine changes from pair to pair of frames.
    edit: arguments of the pipeline's call, which also say where a loaded adapter acts.
    """
    rows = []
    for number, case in enumerate(cases):
        frames = case.material(n_frames, size).frames
        with temporal_features(pipe.unet) as features:

            def note(_pipe, i: int, t: int, tensors: dict, number=number, features=features):
                clips = [c for x in features.values() for c in x.unflatten(0, (-1, n_frames))]
                similar = torch.stack([frame_similarity(c) for c in clips])
                z = frame_similarity(tensors["latents"]).mean().item()
                rows.append({
                    "clip": number, "step": i, "t": t, "latents": z,
                    "features": similar.mean().item(), "variation": variation_of(similar),
                })  # fmt: skip
                return {}

            pipe(
                frames, case.prompt, case.source_prompt, callback_on_step_end=note,
                output_type="latent", **edit,
            )  # fmt: skip
    return rows


def training_curve(folder: str | Path) -> pd.DataFrame:
    """Columns step, temporal, similarity, variation: of held-out clips (`curves.csv`) or the log.

    variation: root of the temporal loss. Step 0 of `curves.csv` has the adapter off. Each step of
    the log saw other clips and timesteps, so that its rows are means over a fiftieth of the
    training, all with the adapter.
    """
    folder, names = Path(folder), ["step", "temporal", "similarity"]
    if (folder / "curves.csv").exists():
        curve = pd.read_csv(folder / "curves.csv")
    else:
        log = pd.read_csv(folder / "log.csv")[names].dropna()
        curve = log.groupby(log.step * 50 // (log.step.max() + 1)).mean().reset_index(drop=True)
    return curve.assign(variation=curve.temporal**0.5)


def overhead_rows(pipe, frames: torch.Tensor) -> list[dict]:
    """FLOPs on Stable Diffusion 1.5, and milliseconds of a guided forward of these frames here."""
    frames = frames.to(pipe.device)
    z, text = pipe.encode(frames).expand(2, -1, -1, -1, -1), pipe.encode_prompt(["", ""])
    vision = pipe.vision_encoder and pipe.vision_encoder.tokens(frames)
    milliseconds = timed(pipe.adapter, z, text, vision, n_repeats=10)
    return [
        {"setting": name, "flops": flops, "milliseconds": milliseconds[name]}
        for name, flops in flop_table().items()
    ]


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """FLOPs and milliseconds of one forward, over those of the image model alone."""
    overhead = part_of(rows, "overhead").set_index("setting")[["flops", "milliseconds"]]
    return overhead / overhead.loc["bare"]


def edit_gains(settings: Settings) -> pd.DataFrame | None:
    """Gains in edits of test clips, by the `edits.csv` beside the adapter's weights, if any."""
    path = settings.adapter_folder / "edits.csv"
    return comparison_table(pd.read_csv(path), ALONE) if path.exists() else None


@drawn
def figure(rows: pd.DataFrame) -> Picture:
    """Above: similarity over the steps of edits. Below: over the training, and its variation.

    Fig. 4 is the first and the last panel.
    """
    training = part_of(rows, "training")
    with rc_context(STYLE):
        fig = Picture(figsize=(PAGE, 4.8))
        left, middle, right = (fig.add_subplot(2, 2, k) for k in (1, 2, 3))
        by_setting = part_of(rows, "similarity").groupby("setting", sort=False)
        for axes, cosine in ((left, "latents"), (middle, "features")):
            for (name, steps), colour in zip(by_setting, COLOURS, strict=False):
                mean = steps.groupby("t")[cosine].mean()
                axes.plot(mean.index, mean, color=colour, marker="o", markersize=2, label=name)
            axes.invert_xaxis()
            axes.set(xlabel="timestep t (noise to clip)", title=f"{cosine} during an edit")
        left.axhspan(UNITY, 1, color="#00000014", lw=0)
        left.text(0.98, 0.975, "unity", color="#666666", fontsize=7, ha="right", va="center",
                  transform=left.get_yaxis_transform())  # fmt: skip
        left.set_ylabel("mean cosine of neighbours")
        fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)

        right.plot(training.step, training.similarity, color=COLOURS[0], marker="o", markersize=2)
        right.set(xlabel="training step", title="features over training")
        right.set_ylabel("mean cosine of features", color=COLOURS[0])
        other = right.twinx()
        other.plot(training.step, 1000 * training.temporal, color=COLOURS[1], linestyle="--")
        other.set_ylabel("temporal loss x 1000", color=COLOURS[1])
        other.grid(False)
        other.spines["right"].set_visible(True)
        draw_variation(fig.add_subplot(2, 2, 4), training)
    return fig


def claims(rows: pd.DataFrame) -> list[Claim]:
    """Neighbouring frames' features become more alike, for little; then Fig. 4's own claims."""
    similarity = part_of(rows, "similarity")
    cosine = similarity.groupby("setting").features.mean()
    gain = cosine[ADAPTED] - cosine[ALONE]
    flops = 100 * (table(rows).flops["LoRA"] - 1)
    share = part_of(rows, "parameters").share.max()
    return [
        Claim.of_fact("the adapter makes neighbouring frames' features more alike during an edit",
                      f"gain in mean cosine, from {cosine[ALONE]:.4f},", gain, gain > 0,
                      n_clips=n_clips_of(similarity)),
        Claim.of_fact("the LoRA adds less than 1% of the FLOPs", "per cent", flops, flops < 1),
        Claim.of_fact("the adapter has less than 1% of the UNet's parameters",
                      "per cent at most", share, share < 1),
        *caption_claims(rows),
    ]  # fmt: skip
