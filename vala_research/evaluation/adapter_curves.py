"""Whether an adapter makes neighbouring frames alike: over the steps of an edit, and over training.

Fig. 4 of the theory paper (arXiv 2504.16016) of GE-Adapter. Similarity stands beside the temporal
loss throughout: the loss alone is as low for steady flicker.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from tqdm import tqdm

from vala_research.diffusion.adapter import TemporalAdapter, temporal_features
from vala_research.diffusion.adapter_loss import LossSettings, adapter_loss, draw_noising
from vala_research.diffusion.training_batches import Encoders, generator_of
from vala_research.evaluation.edit_cases import ClipCase, EditCase
from vala_research.evaluation.figures import COLOURS, STYLE
from vala_research.methods.temporal import frame_similarity


@torch.no_grad()
def similarity_of_steps(
    pipe, cases: Iterable[EditCase | ClipCase], n_frames: int, size: int, **edit
) -> list[dict]:
    """Rows of clip, step (from noise), t, latents, features: mean cosines of neighbouring frames.

    latents: after the step. features: at the hook sites, of all guidance branches. edit: arguments
    of the pipeline's call; the adapter it has loaded acts as they say.
    """
    rows = []
    for number, case in enumerate(cases):
        frames = case.material(n_frames, size).frames
        with temporal_features(pipe.unet) as features:

            def note(_pipe, i: int, t: int, tensors: dict, number=number, features=features):
                clips = [c for x in features.values() for c in x.unflatten(0, (-1, n_frames))]
                similar = torch.stack([frame_similarity(c).mean() for c in clips]).mean().item()
                z = frame_similarity(tensors["latents"]).mean().item()
                rows.append({"clip": number, "step": i, "t": t, "latents": z, "features": similar})
                return {}

            pipe(
                frames, case.prompt, case.source_prompt, callback_on_step_end=note,
                output_type="latent", **edit,
            )  # fmt: skip
    return rows


@torch.no_grad()
def losses_of_checkpoints(
    pipe, folder: str | Path, dataset, n_samples: int, loss: LossSettings, vision=None
) -> list[dict]:
    """Rows of step, diffusion, temporal, similarity on held-out samples, a row a checkpoint.

    Clips, timesteps and noise are the same for every checkpoint; step 0 has the LoRA off.
    """
    encoders, n_timesteps = Encoders(pipe, vision), len(pipe.scheduler.alphas_cumprod)
    drawn = []
    for i in range(n_samples):
        batch = encoders.batch([dataset[i]], [True])
        rng = generator_of(0, i)
        drawn.append((batch, draw_noising(tuple(batch.z_0.shape), n_timesteps, loss, rng, True)))
    rows = []
    for checkpoint in tqdm(sorted(Path(folder).glob("step-*")), "checkpoints", disable=None):
        step = int(checkpoint.name.partition("-")[2])
        adapter = TemporalAdapter.load(checkpoint, pipe.unet)
        if not rows:
            with adapter.active(True, scale=0.0):
                rows.append({"step": 0, **_mean_losses(adapter, pipe.scheduler, drawn, loss)})
        rows.append({"step": step, **_mean_losses(adapter, pipe.scheduler, drawn, loss)})
        adapter.detach()
    return rows


def training_curve(folder: str | Path) -> pd.DataFrame:
    """Columns step, temporal, similarity: on held-out clips (`curves.csv`), else of the log.

    The log's steps each saw other clips and timesteps: means over a fiftieth of the training.
    """
    folder, names = Path(folder), ["step", "temporal", "similarity"]
    if (folder / "curves.csv").exists():
        return pd.read_csv(folder / "curves.csv")
    log = pd.read_csv(folder / "log.csv")[names].dropna()
    return log.groupby(log.step * 50 // (log.step.max() + 1)).mean().reset_index(drop=True)


def _mean_losses(adapter, scheduler, drawn: list, loss: LossSettings) -> dict[str, float]:
    found = [adapter_loss(adapter, scheduler, batch, noising, loss) for batch, noising in drawn]
    names = ("diffusion", "temporal", "similarity")
    return {k: torch.stack([row[k] for row in found]).mean().item() for k in names}


def similarity_figure(steps: pd.DataFrame, training: pd.DataFrame) -> Figure:
    """Left: similarity over the steps of edits, by `setting`. Right: over training, with the loss.

    steps: rows of `similarity_of_steps` with a column `setting`. training: of
    `losses_of_checkpoints`.
    """
    with rc_context(STYLE):
        fig = Figure(figsize=(7.0, 2.7))
        left, middle, right = fig.subplots(1, 3)
        for axes, what in ((left, "latents"), (middle, "features")):
            for (name, rows), colour in zip(
                steps.groupby("setting", sort=False), COLOURS, strict=False
            ):
                mean = rows.groupby("t")[what].mean()
                axes.plot(mean.index, mean, color=colour, marker="o", markersize=2, label=name)
            axes.invert_xaxis()
            axes.set(xlabel="timestep t (noise to clip)", title=f"{what} during an edit")
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
    return fig
