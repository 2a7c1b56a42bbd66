"""An anchor should resemble itself in the next frame, and no other anchor there.

The contrastive term of VALA (arXiv 2510.22970), as InfoNCE (van den Oord et al. 2018) over frame
summaries, and the small network that trades the term off against the bound.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def frame_summaries(u: Float[Tensor, "f n d"], r: Float[Tensor, "f n k"]) -> Float[Tensor, "f k d"]:
    """Average each anchor's tokens in each frame: m_{f,k} = normalise(sum_i q(k|f,i) u_{f,i})."""
    return F.normalize(torch.einsum("fnk,fnd->fkd", r, u), dim=-1)


def info_nce(
    summaries: Float[Tensor, "f k d"], mass: Float[Tensor, "f k"], temperature: float
) -> Float[Tensor, ""]:
    """Penalise anchor k of frame f unless it resembles anchor k of frame f + 1, and no other there.

    Mean of -log softmax(<m_{f,k}, m_{f+1,j}> / temperature) at j = k. A pair counts only if the
    anchor holds more than a hundredth of both frames.
    """
    similarity = torch.einsum("fkd,fjd->fkj", summaries[:-1], summaries[1:]) / temperature
    present = mass > 0.01 * mass.sum(-1, keepdim=True)
    similarity = similarity.masked_fill(~present[1:, None, :], torch.finfo(similarity.dtype).min)
    both = present[:-1] & present[1:]
    loss = -similarity.log_softmax(-1).diagonal(dim1=1, dim2=2)
    return loss[both].mean() if both.any() else similarity.new_zeros(())


def refined(
    u: Float[Tensor, "f n d"],
    logits: Float[Tensor, "f n k"],
    concentrations: Float[Tensor, " k"],
    contrastive_weight: float,
    n_steps: int,
    generator: torch.Generator | None = None,
    width: int = 16,
) -> Float[Tensor, "f n k"]:
    """Refine the posterior by Adam steps on J = -bound / N + lambda_c InfoNCE.

    Each anchor's summaries attend over frames. The result bends the anchor's direction in each
    frame, so that the anchor's place in other frames helps to assign its tokens. The network starts
    as the identity.
    logits: E log pi_k + log p(u | k); the refinement starts at their softmax.
    contrastive_weight: lambda_c. width: channels of the attention head.
    """
    # The network: queries and keys of one attention head, and a gate that is closed at first.
    d, kappa = u.shape[-1], concentrations.to(u)
    device = "cpu" if generator is None else generator.device
    draw = torch.randn(2, d, width, generator=generator, device=device).to(u) / math.sqrt(d)
    query, key = (x.clone().requires_grad_() for x in draw)
    gate = torch.zeros(d, device=u.device, dtype=u.dtype, requires_grad=True)
    optimiser = torch.optim.Adam([query, key, gate], lr=1e-2)

    # Summaries and temperature are constants of the refinement.
    summaries = frame_summaries(u, logits.softmax(-1))
    temperature = 1 / kappa.mean().clamp_min(1.0).item()

    def log_posterior() -> Tensor:
        q, k = summaries @ query, summaries @ key  # f k w
        weight = torch.einsum("fkw,gkw->kfg", q, k).mul(width**-0.5).softmax(-1)
        bend = torch.einsum("kfg,gkd->fkd", weight, summaries) * gate
        return (logits + torch.einsum("fnd,fkd->fnk", u, kappa[:, None] * bend)).log_softmax(-1)

    with torch.enable_grad():
        for _ in range(n_steps):
            log_q = log_posterior()  # entr(q) has no gradient where a posterior underflows to 0
            q = log_q.exp()
            bound = (q * (logits - log_q)).sum(-1).mean()
            contrast = info_nce(frame_summaries(u, q), q.sum(1), temperature)
            optimiser.zero_grad()
            (contrastive_weight * contrast - bound).backward()
            optimiser.step()
        return log_posterior().exp().detach()
