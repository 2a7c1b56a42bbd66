"""Does fine-tuning of prompt tokens reduce the alignment error |Delta Z|? Fig. 3's caption.

GE-Adapter's theory (arXiv 2504.16016): Delta Z = Z - Z*, with the tokens Z = [T_share ; H W ; text]
of every frame and "ideal" tokens Z*. The paper does not say how to find Z*. Here Z* are free tokens
that the frozen network denoises the clip with best, reached from the untrained tokens by as many
steps as the fine-tuning takes. All of Z* is free; of Z only T_share and W are (Corollary C.15).
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

from vala_research.adapter.loss import target_of
from vala_research.adapter.vision import VisionEncoder
from vala_research.diffusion.backbone import Backbone
from vala_research.evaluation.cases import Case
from vala_research.evaluation.figures import COLOURS
from vala_research.evaluation.statistics import paired_gain
from vala_research.evaluation.verdicts import Claim
from vala_research.methods.prompt_tokens import PromptTokens, pooled_tokens

N_SHARED = 18
# Of Adam. A step of W moves an image token by a sum over the token's entries: hence the lower rate.
TUNED_RATE, FREE_RATE = 0.001, 0.01
STATES = ("before", "after")  # the fine-tuning


def error_rows(
    pipe: Any, encoder: VisionEncoder, cases: Iterable[Case], t: int, n_steps: int
) -> list[dict]:
    """One row per clip and state of its prompt tokens; the adapter's LoRA is off.

    state: "before" and "after" n_steps of fine-tuning T_share and W on the clip at timestep t;
    "ideal" for Z*; "least" for the closest that any T_share and W come to Z*. error: |Z - Z*|_F
    over all frames. loss: mean square error of the network's prediction.
    """
    rows = []
    for clip, case in enumerate(tqdm(list(cases), "tokens", disable=None)):
        with pipe.adapter.active(False) if pipe.adapter else nullcontext():
            states = _token_states(pipe, encoder, case, t, n_steps)
        rows += [{"clip": clip, "t": t, "state": name} | row for name, row in states.items()]
    return rows


def _token_states(
    pipe: Any, encoder: VisionEncoder, case: Case, t: int, n_steps: int
) -> dict[str, dict[str, float]]:
    """The errors and losses of one clip, by state."""
    loss_of = denoising_loss(pipe, case, t)
    device, generator = pipe.device, torch.Generator().manual_seed(case.seed)
    vision = encoder.tokens(case.frames, device).float()
    with torch.no_grad():
        text = pipe.encode_prompt([case.prompt]).float().expand(len(vision), -1, -1)
    tokens = PromptTokens(N_SHARED, encoder.width, text.shape[-1], generator=generator).to(device)

    # Both fits start at the untrained tokens and take equally many steps.
    before = tokens(vision, text).detach()
    ideal = before.clone().requires_grad_()
    ideal_loss = fitted([ideal], lambda: loss_of(ideal), n_steps, FREE_RATE)
    parameters = [p for p in tokens.parameters() if p.requires_grad]
    after_loss = fitted(parameters, lambda: loss_of(tokens(vision, text)), n_steps, TUNED_RATE)
    ideal, after = ideal.detach(), tokens(vision, text).detach()
    with torch.no_grad():
        before_loss = float(loss_of(before))
    return {
        "before": {"error": float((before - ideal).norm()), "loss": before_loss},
        "after": {"error": float((after - ideal).norm()), "loss": after_loss},
        "ideal": {"error": 0.0, "loss": ideal_loss},
        "least": {"error": least_error(pooled_tokens(vision), text, ideal)},
    }


def denoising_loss(pipe: Any, case: Case, t: int) -> Callable[[Tensor], Tensor]:
    """Mean square error of the network's prediction for the clip at timestep t, by its tokens."""
    z_0, scheduler = pipe.encode(case.frames), pipe.scheduler
    generator = torch.Generator().manual_seed(case.seed)
    eps = torch.randn(z_0.shape, generator=generator).to(z_0)
    a = scheduler.alphas_cumprod[t].to(z_0)
    z_t = a.sqrt() * z_0 + (1 - a).sqrt() * eps
    target = target_of(scheduler.config.prediction_type, z_0, eps, a).float()
    backbone = Backbone(pipe.unet)

    def loss(rows: Float[Tensor, "f n d"]) -> Float[Tensor, ""]:
        return (backbone(z_t[None], t, rows[None])[0].float() - target).square().mean()

    return loss


def fitted(
    parameters: list[Tensor], loss_of: Callable[[], Tensor], n_steps: int, rate: float
) -> float:
    """Minimise a loss over these tensors alone by Adam; return the last loss."""
    optimizer = torch.optim.Adam(parameters, rate)
    for _ in range(n_steps):
        gradients = torch.autograd.grad(loss_of(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    with torch.no_grad():
        return float(loss_of())


def least_error(
    image: Float[Tensor, "f p c"], text: Float[Tensor, "f m d"], ideal: Float[Tensor, "f n d"]
) -> float:
    """min |Z - Z*|_F over T_share, W and its bias, which all frames share; Corollary C.15.

    T_share is the mean of its ideals, W a least-squares fit to the image tokens; the text stays.
    """
    n_image, n_text = image.shape[1], text.shape[1]
    shared, frame, words = ideal.split([ideal.shape[1] - n_image - n_text, n_image, n_text], 1)
    columns = torch.cat([image, torch.ones_like(image[..., :1])], -1).flatten(0, 1).double()
    wanted = frame.flatten(0, 1).double()
    fit = columns @ torch.linalg.lstsq(columns, wanted, driver="gelsd").solution
    parts = (shared - shared.mean(0), wanted - fit, words - text)
    return float(torch.stack([part.double().square().sum() for part in parts]).sum().sqrt())


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over clips per state."""
    return rows.groupby("state", sort=False)[["error", "loss"]].mean()


def draw(axes: Axes, rows: pd.DataFrame) -> None:
    """One line per clip from before to after; dashed, the least error of any T_share and W."""
    errors = rows.pivot(index="clip", columns="state", values="error")
    for _, clip in errors.iterrows():
        axes.plot(STATES, clip[list(STATES)], color=COLOURS[0], marker="o", markersize=3, lw=1)
    axes.axhline(errors["least"].mean(), color=COLOURS[1], linestyle="--", lw=1)
    axes.text(1.05, errors["least"].mean(), "least possible", color=COLOURS[1],
              va="bottom", fontsize=7)  # fmt: skip
    axes.set(xlim=(-0.2, 1.6), ylim=(0, None), ylabel="|ΔZ|, Frobenius norm")


def claims(rows: pd.DataFrame) -> list[Claim]:
    """The caption's claim, and whether the fine-tuning that it speaks of did its work at all."""
    stated = []
    for column, sentence in (
        ("loss", "fine-tuned prompt tokens denoise their clip better than untrained ones"),
        ("error", "fine-tuning of prompt tokens reduces |Delta Z| (Fig. 3's caption)"),
    ):
        values = rows.pivot(index="clip", columns="state", values=column)
        gain = paired_gain(values.before.to_numpy(), values.after.to_numpy())
        measured = f"reduction of the {column}, from {values.before.mean():.4g},"
        stated.append(Claim.of_gain(sentence, measured, gain))
    return stated
