"""Fit a mixture of von Mises-Fisher anchors by coordinate ascent.

    pi ~ Dirichlet(a0), mu_k uniform on the sphere,
    p(u) = sum_k pi_k C_d(kappa_k) exp(kappa_k mu_k . u)

q(pi) is Dirichlet, q(mu_k) von Mises-Fisher, kappa_k a point. Source: Taghia et al. 2014, Bayesian
estimation of the von Mises-Fisher mixture model with variational inference. Every step has a closed
form, except the step of kappa. No step lowers the bound.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vala_research.methods.von_mises_fisher import (
    concentration,
    log_normaliser,
    log_uniform,
    mean_length,
    normaliser_and_length,
)

CHUNK = 1 << 14  # tokens; their logits for eight anchors fit into the cache of a core


@dataclass(frozen=True)
class Mixture:
    """q(pi) = Dirichlet(counts), q(mu_k) = vMF(directions, certainties), and the kappa_k."""

    counts: Float[Tensor, " k"]
    directions: Float[Tensor, "k d"]
    certainties: Float[Tensor, " k"]
    concentrations: Float[Tensor, " k"]
    dirichlet: float

    def __getitem__(self, index: Tensor) -> "Mixture":
        parts = (self.counts, self.directions, self.certainties, self.concentrations)
        return Mixture(*(x[index] for x in parts), self.dirichlet)

    @cached_property
    def _bessel(self) -> tuple[Tensor, Tensor, Tensor]:
        """log C(kappa), log C(beta), A(beta), by one evaluation of the Bessel functions."""
        both = torch.cat([self.concentrations, self.certainties])
        log_c, length = normaliser_and_length(self.directions.shape[-1], both)
        k = len(self.counts)
        return log_c[:k], log_c[k:], length[k:]

    @property
    def expected_log_weights(self) -> Float[Tensor, " k"]:
        """E log pi_k under q(pi)."""
        return torch.digamma(self.counts) - torch.digamma(self.counts.sum())

    def affine(self, like: Tensor) -> tuple[Float[Tensor, "k 1"], Float[Tensor, "k d"]]:
        """(offset, slope) with logits = offset + slope u^T, in the precision of `like`."""
        log_c, _, length = self._bessel
        offset = self.expected_log_weights + log_c
        slope = (self.concentrations * length)[:, None] * self.directions
        return offset.to(like)[:, None], slope.to(like)

    def logits(self, u: Float[Tensor, "t d"]) -> Float[Tensor, "k t"]:
        """E log pi_k + E log p(u | k); the softmax over anchors is the posterior."""
        offset, slope = self.affine(u)
        return torch.addmm(offset, slope, u.T)

    def divergence(self) -> float:
        """The cost of the anchors: KL(q(pi) | prior) + sum_k KL(q(mu_k) | uniform)."""
        # KL(q(pi) | prior) of two Dirichlet distributions.
        a, a0 = self.counts, torch.full_like(self.counts, self.dirichlet)
        weights = torch.lgamma(a.sum()) - torch.lgamma(a).sum() - torch.lgamma(a0.sum())
        weights = weights + torch.lgamma(a0).sum() + ((a - a0) * self.expected_log_weights).sum()

        # KL(q(mu_k) | uniform) = log C_d(beta_k) - log C_d(0) + beta_k A_d(beta_k).
        _, log_c, length = self._bessel
        directions = log_c - log_uniform(self.directions.shape[-1]) + self.certainties * length
        return float(weights + directions.sum())


def fitted(
    u: Float[Tensor, "t d"], n_anchors: int, dirichlet: float, max_sweeps: int, tolerance: float
) -> tuple[Mixture, list[float]]:
    """Fit a mixture to unit tokens: ascend from farthest-first seeds.

    With few tokens the ascent can stop at a poor maximum, with anchors that do not pay for
    themselves. Then two more ascents start from merged groups: of the seeds, and of the first
    result. The highest bound wins. From 64 tokens per anchor on, anchors in use pay for themselves.
    dirichlet: a0. tolerance: in nats per token.
    Returns the mixture, and the bound after each sweep in nats per token.
    """

    def ascended(r: Tensor) -> tuple[Mixture, list[float]]:
        return ascend(u, maximised(r, u, dirichlet), max_sweeps, tolerance)

    r = seeded(u, n_anchors)
    fits = [ascended(r)]

    # Few tokens: ascend from merged groups too.
    if len(r) <= 64 and len(u) <= min(1024, 64 * n_anchors):
        fits.append(ascended(merged(u, r, dirichlet)))
        fits.append(ascended(merged(u, fits[0][0].logits(u).softmax(0), dirichlet)))
    return max(fits, key=lambda fit: fit[1][-1])


def seeded(u: Float[Tensor, "t d"], n_anchors: int) -> Float[Tensor, "k t"]:
    """Choose farthest-first tokens as seeds and assign every token to its nearest seed.

    Deterministic. The first seed is the token nearest to the mean, whatever the order of frames.
    """
    k = min(n_anchors, len(u))
    seeds = [int((u @ F.normalize(u.mean(0), dim=0)).argmax())]
    nearest = u @ u[seeds[0]]
    while len(seeds) < k:
        seeds.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, u @ u[seeds[-1]])
    return F.one_hot((u @ u[seeds].T).argmax(-1), k).to(u).T


def merged(
    u: Float[Tensor, "t d"], r: Float[Tensor, "k t"], dirichlet: float
) -> Float[Tensor, "j t"]:
    """Join pairs of groups, the most likely union first, while that raises the evidence."""
    mass, resultant = r.sum(1).double(), (r @ u).double()
    while len(mass) > 1:
        # Gain of the log evidence for each pair i < j.
        k, a0 = len(mass), torch.tensor(dirichlet, dtype=torch.float64)
        i, j = torch.triu_indices(k, k, 1, device=u.device)
        alone = _evidence(mass, resultant, dirichlet)
        gain = _evidence(mass[i] + mass[j], resultant[i] + resultant[j], dirichlet)
        gain = gain - alone[i] - alone[j] + torch.lgamma(a0)

        # Stop where joining lowers the evidence, with the priors of k - 1 and of k groups.
        one_less = [torch.lgamma(n * a0) - torch.lgamma(n * a0 + len(u)) for n in (k - 1, k)]
        best = int(gain.argmax())
        if gain[best] + one_less[0] - one_less[1] < 0:
            break

        # Join group `gone` to group `into`.
        into, gone = int(i[best]), int(j[best])
        kept = torch.arange(k, device=u.device) != gone
        r, mass, resultant = (x.clone() for x in (r, mass, resultant))
        for x in (r, mass, resultant):
            x[into] += x[gone]
        r, mass, resultant = r[kept], mass[kept], resultant[kept]
    return r


def _evidence(mass: Tensor, resultant: Tensor, dirichlet: float) -> Float[Tensor, " k"]:
    """log p(tokens of one group), mu integrated out, at the best kappa; plus lgamma(counts).

    n log C(kappa) + log C(0) - log C(kappa |resultant|). A single token has the uniform density,
    whatever kappa. kappa starts at the estimate that corrects for one degree of freedom, of mu.
    """
    d, length = resultant.shape[-1], resultant.norm(dim=-1)
    spread = (mass - length).clamp_min(0) / (mass - 1).clamp_min(1e-9)
    kappa = concentration(d, (1 - spread).clamp_min(0))
    for _ in range(2):
        kappa = concentration(d, mean_length(d, kappa * length) * length / mass.clamp_min(1e-300))

    value = mass * log_normaliser(d, kappa) + log_uniform(d) - log_normaliser(d, kappa * length)
    return value + torch.lgamma(dirichlet + mass)


def maximised(r: Float[Tensor, "k t"], u: Float[Tensor, "t d"], dirichlet: float) -> Mixture:
    """M step from responsibilities alone: sums of tokens, and a first estimate of kappa."""
    mass, resultant = r.sum(1).double(), (r @ u).double()
    start = concentration(u.shape[-1], resultant.norm(dim=-1) / (mass + 1))
    return from_sums(mass, resultant, start, dirichlet)


def from_sums(mass: Tensor, resultant: Tensor, kappa: Tensor, dirichlet: float) -> Mixture:
    """M step: q(mu_k) given kappa_k, then kappa_k given q(mu_k). Each raises the bound."""
    d, length = resultant.shape[-1], resultant.norm(dim=-1)
    beta = kappa * length

    # Mean of mu_k . u over the tokens of anchor k, under q(mu_k). The new A_d(kappa_k) equals it.
    agreement = mean_length(d, beta) * length / mass.clamp_min(1e-300)
    directions = resultant / length.clamp_min(1e-300)[:, None]
    best = concentration(d, agreement, start=kappa)
    return Mixture(dirichlet + mass, directions, beta, best, dirichlet)


def posterior(logits: Float[Tensor, "k t"]) -> tuple[float, Float[Tensor, "k t"]]:
    """Sum of the log evidence, and the responsibilities. Faster than a softmax over k."""
    top = logits.amax(0)
    r = logits.sub(top).exp_()
    total = r.sum(0)
    return (top + total.log()).sum(dtype=torch.float64).item(), r.div_(total)


def sweep(u: Tensor, mixture: Mixture) -> tuple[float, Tensor, Tensor]:
    """E step in one pass: sum of the log evidence; mass and resultant of each anchor."""
    evidence, mass, resultant = 0.0, 0.0, 0.0
    offset, slope = mixture.affine(u)
    for part in u.split(CHUNK):
        log_evidence, r = posterior(torch.addmm(offset, slope, part.T))
        evidence += log_evidence
        mass = mass + r.sum(1).double()
        resultant = resultant + (r @ part).double()
    return evidence, mass, resultant


def ascend(
    u: Tensor, mixture: Mixture, max_sweeps: int, tolerance: float
) -> tuple[Mixture, list[float]]:
    """Alternate E and M steps until the bound gains less than `tolerance` nats per token."""
    objective: list[float] = []
    for _ in range(max_sweeps):
        evidence, mass, resultant = sweep(u, mixture)
        objective.append((evidence - mixture.divergence()) / len(u))
        if len(objective) > 1 and objective[-1] - objective[-2] < tolerance:
            break
        mixture = from_sums(mass, resultant, mixture.concentrations, mixture.dirichlet)
    return mixture, objective
