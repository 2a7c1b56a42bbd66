"""Fig. 4 of GE-Adapter's theory (arXiv 2504.16016): what its caption says, measured and judged.

The caption says that latents of consecutive frames approach a similarity of 1 with the adapter, and
that the adapter lessens the variation of the similarity over the epochs. It gives no numbers and no
definition of the variation. Here it is the root of the temporal loss: the root mean square change
of the cosine from one pair of frames to the next. A model without an adapter does not change over
the epochs, so its curve is level.
"""

from dataclasses import replace
from math import nan

import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from vala_research.evaluation.figures import COLOURS
from vala_research.evaluation.statistics import Gain, paired_gain
from vala_research.evaluation.verdicts import Claim
from vala_research.experiments.contract import part_of

ALONE, ADAPTED = "image model alone", "with the adapter"
UNITY = 0.95  # a mean cosine from here on "approaches unity", as Fig. 4's caption says of latents


def variation_of(similar: Float[Tensor, "sites pairs"]) -> float:
    """Root of the mean temporal loss of these similarities; NaN for fewer than three frames."""
    if similar.shape[1] < 2:
        return nan
    return float((similar.diff(dim=1).square().sum(1) / similar.shape[1]).mean().sqrt())


def draw_variation(axes: Axes, training: pd.DataFrame) -> None:
    """Variation over the training. Without the adapter nothing trains: a level line."""
    variation = 1000 * training.get("variation", training.temporal**0.5)
    axes.plot(training.step, variation, color=COLOURS[1], marker="o", markersize=2)
    if training.step.iloc[0] == 0:  # a log starts later, with the adapter on
        axes.axhline(variation.iloc[0], color=COLOURS[0], linestyle="--", lw=1)
    axes.set(xlabel="training step", title="variation over training", ylim=(0, None))
    axes.set_ylabel("root of the temporal loss x 1000")


def caption_claims(rows: pd.DataFrame) -> list[Claim]:
    """What Fig. 4's caption says, judged; a notebook does not fail where it is not so.

    Of the latents at the end of an edit, and of the variation over an edit and over the training.
    """

    def gain(values: pd.Series, baseline: pd.Series) -> Gain:
        return paired_gain(values.to_numpy(), baseline.to_numpy())

    similarity, training, stated = part_of(rows, "similarity"), part_of(rows, "training"), []
    if {"clip", "variation"} <= set(similarity):
        last = similarity[similarity.step == similarity.step.max()]
        latents = last.pivot(index="clip", columns="setting", values="latents")
        mean = latents[ADAPTED].mean()
        stated += [
            Claim.of_limit("with the adapter the latents approach a cosine of 1 (Fig. 4, left)",
                           f"mean cosine at the end of an edit {mean:.4f}, less {UNITY}:",
                           gain(latents[ADAPTED], 0 * latents[ADAPTED] + UNITY)),
            Claim.of_gain("the latents end more alike with the adapter than without",
                          f"gain in mean cosine, from {latents[ALONE].mean():.4f},",
                          gain(latents[ADAPTED], latents[ALONE])),
        ]  # fmt: skip
        by_clip = similarity.groupby(["clip", "setting"]).variation.mean().unstack()
        stated.append(Claim.of_gain(
            "the features' similarity varies less with the adapter during an edit",
            f"reduction of the variation, from {by_clip[ALONE].mean():.4g},",
            gain(by_clip[ALONE], by_clip[ADAPTED])))  # fmt: skip
    if "variation" in training and training.step.iloc[0] == 0:
        before, after = training.variation.iloc[[0, -1]]
        stated.append(Claim.of_fact(
            "training with the adapter lowers the variation of the similarity (Fig. 4, right)",
            f"per cent of {before:.4g} without the adapter", 100 * after / before,
            after < before))  # fmt: skip
    return [replace(claim, is_asserted=False) for claim in stated]
