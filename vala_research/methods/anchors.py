"""A clip is described by a few anchor directions; frames that cover them are its key frames.

VALA (Wu et al. 2025, arXiv 2510.22970): latents of many frames are assigned to latent anchors by a
variational objective with a contrastive term; the anchors choose key frames and compress what
frames attend to. The paper gives no coefficients. Here the assignment is the posterior of a mixture
of von Mises-Fisher distributions with learnt concentrations: no temperature is to be tuned, and the
scale of a feature does not matter.

    u = x / |x|,  p(u) = sum_k pi_k C_d(kappa_k) exp(kappa_k mu_k . u),  pi ~ Dirichlet(a0),
    mu_k uniform on the sphere;  q(pi) Dirichlet, q(mu_k) von Mises-Fisher, kappa_k a point

(Taghia et al. 2014, Bayesian estimation of the von Mises-Fisher mixture model with variational
inference, with a point estimate for kappa.) What an anchor costs, KL(q(mu_k) | uniform), decides
how many are worth having.

Differs from paper: closed-form coordinate ascent instead of a network trained to assign; the
network (one attention head over frames) only refines the posterior, when asked to.
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError
from vala_research.methods import keyframes as frames_by
from vala_research.methods.contrastive import frame_summaries, refined
from vala_research.methods.von_mises_fisher import (
    concentration,
    log_normaliser,
    log_uniform,
    mean_length,
)

GRANULARITIES = ("site", "token")
KEYFRAME_METHODS = ("vala", "uniform", "random", "first", "kmeans", "kmedoids", "optimal")


@dataclass(frozen=True)
class AnchorSettings:
    """How anchors are found, and what they compress to.

    n_anchors: upper bound; those that do not pay for themselves are dropped. dirichlet (a0): the
    prior of the weights. contrastive_weight, refinement_steps: lambda_c and the Adam steps of the
    refinement; 0 steps is plain variational Bayes. granularity: "site" (an anchor is a
    pseudo-frame) or "token" (an anchor is one token). n_keyframes: None is one an anchor in use.
    max_sweeps, tolerance: sweeps stop when one gains less, in nats a token. coreset: tokens that
    the first sweeps look at (0: all of them).
    """

    n_anchors: int = 8
    dirichlet: float = 0.1
    contrastive_weight: float = 0.1
    refinement_steps: int = 0
    granularity: str = "site"
    n_keyframes: int | None = None
    max_sweeps: int = 50
    tolerance: float = 1e-4
    coreset: int = 4096

    def __post_init__(self):
        for name, least in (("n_anchors", 1), ("refinement_steps", 0), ("max_sweeps", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}: give at least {least}.")
        if not self.dirichlet > 0:
            raise InputError(f"dirichlet is {self.dirichlet}: give a positive number.")
        if self.granularity not in GRANULARITIES:
            raise InputError(
                f"Unknown granularity {self.granularity!r}: choose one of "
                f"{', '.join(GRANULARITIES)}."
            )


@dataclass(frozen=True)
class Anchors:
    """What was found, heaviest anchor first.

    summaries: mean direction of each anchor's tokens within each frame. objective: the bound in
    nats a token, one a sweep over all tokens; larger is better. granularity: what they compress to.
    """

    responsibilities: Float[Tensor, "f n k"]
    directions: Float[Tensor, "k d"]
    concentrations: Float[Tensor, " k"]
    weights: Float[Tensor, " k"]
    summaries: Float[Tensor, "f k d"]
    objective: list[float] = field(repr=False)
    keyframes: list[int] = field(default_factory=list)
    granularity: str = "site"

    @property
    def mass(self) -> Float[Tensor, "f k"]:
        """How many tokens of each frame each anchor explains."""
        return self.responsibilities.sum(1)

    @property
    def n_effective(self) -> int:
        """Anchors that explain half a token and a thousandth of the clip."""
        mass = self.mass.sum(0)
        return int((mass >= max(0.5, 1e-3 * mass.sum().item())).sum())

    @property
    def entropy(self) -> Float[Tensor, "f n"]:
        """Entropy of each token's posterior in nats: where the assignment is uncertain."""
        return torch.special.entr(self.responsibilities).sum(-1)


@dataclass
class Mixture:
    """q(pi) = Dirichlet(counts), q(mu_k) = vMF(directions, certainties), and the kappa_k."""

    counts: Float[Tensor, " k"]
    directions: Float[Tensor, "k d"]
    certainties: Float[Tensor, " k"]
    concentrations: Float[Tensor, " k"]

    @property
    def expected_log_weights(self) -> Float[Tensor, " k"]:
        return torch.digamma(self.counts) - torch.digamma(self.counts.sum())

    def logits(self, u: Float[Tensor, "t d"]) -> Float[Tensor, "t k"]:
        """E log pi_k + E log p(u | k); its softmax is the posterior."""
        offset, slope = self.affine(u)
        return torch.addmm(offset, u, slope)

    def affine(self, like: Tensor) -> tuple[Float[Tensor, " k"], Float[Tensor, "d k"]]:
        """offset, slope: the logits are offset + u slope; in the precision of `like`."""
        d = self.directions.shape[-1]
        scale = self.concentrations * mean_length(d, self.certainties)
        offset = self.expected_log_weights + log_normaliser(d, self.concentrations)
        return offset.to(like), (scale[:, None] * self.directions).to(like).T

    def divergence(self, settings: AnchorSettings) -> float:
        """KL(q(pi) | prior) + sum_k KL(q(mu_k) | uniform): what the anchors cost."""
        a, a0 = self.counts, torch.full_like(self.counts, settings.dirichlet)
        weights = torch.lgamma(a.sum()) - torch.lgamma(a).sum() - torch.lgamma(a0.sum())
        weights = weights + torch.lgamma(a0).sum() + ((a - a0) * self.expected_log_weights).sum()
        d, beta = self.directions.shape[-1], self.certainties
        directions = log_normaliser(d, beta) - log_uniform(d) + beta * mean_length(d, beta)
        return float(weights + directions.sum())


def assign_anchors(
    features: Float[Tensor, "f n d"],
    settings: AnchorSettings = AnchorSettings(),  # noqa: B008 - frozen
    generator: torch.Generator | None = None,
) -> Anchors:
    """Fit the anchors of one clip: f frames of n tokens.

    Sweeps over a coreset (the same sites of every frame) find and prune the anchors, sweeps over
    all tokens finish them. The same features give the same anchors; `generator` only initialises
    the refinement. Raises InputError for NaN, infinite or zero tokens and for an empty clip.
    """
    u = unit_tokens(features)
    f, n = u.shape[:2]
    n_sites = min(n, max(1, settings.coreset // f)) if settings.coreset else n
    sites = torch.linspace(0, n - 1, n_sites, device=u.device).round().long()
    core = u[:, sites].flatten(0, 1)
    mixture, objective = _ascend(core, _seeded(core, settings), settings)
    mixture = _pruned(core, mixture, objective, settings)
    tokens = u.flatten(0, 1)
    if n_sites < n:  # what was counted on the coreset stands for all tokens
        mixture.counts = settings.dirichlet + (mixture.counts - settings.dirichlet) * n / n_sites
    mixture, objective = _ascend(tokens, mixture, settings)
    logits = mixture.logits(tokens).unflatten(0, (f, n))
    r = logits.softmax(-1)
    if settings.refinement_steps and settings.contrastive_weight and f > 1:
        r = refined(u, logits, mixture.concentrations, settings.contrastive_weight,
                    settings.refinement_steps, generator)  # fmt: skip
        mixture = _maximised(r.flatten(0, 1), tokens, settings)
    order = mixture.counts.argsort(descending=True)
    anchors = Anchors(
        r[..., order],
        mixture.directions[order].to(u),
        mixture.concentrations[order].to(u),
        (mixture.counts / mixture.counts.sum())[order].to(u),
        frame_summaries(u, r[..., order]),
        objective,
        granularity=settings.granularity,
    )
    n_keyframes = min(f, settings.n_keyframes or anchors.n_effective)
    return replace(anchors, keyframes=covering_frames(anchors, n_keyframes))


def unit_tokens(features: Float[Tensor, "f n d"]) -> Float[Tensor, "f n d"]:
    """Every token divided by its length; half precision is raised to float32."""
    if features.ndim != 3 or 0 in features.shape:
        raise InputError(
            f"features have shape {tuple(features.shape)}: give frames x tokens x channels, "
            "none of them zero."
        )
    x = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    if not torch.isfinite(x).all():
        raise InputError("features hold NaN or infinity: look at the step that made them.")
    length = x.norm(dim=-1, keepdim=True)
    if (length == 0).any():
        raise InputError(
            f"{int((length == 0).sum())} feature tokens are zero and have no direction: "
            "leave them out, or add a constant channel."
        )
    return x / length


# Coordinate ascent on the bound.


def _seeded(u: Float[Tensor, "t d"], settings: AnchorSettings) -> Mixture:
    """Farthest-first directions, each token given to its nearest: no chance, no order of frames."""
    k = min(settings.n_anchors, len(u))
    seeds = [int((u @ F.normalize(u.mean(0), dim=0)).argmax())]
    nearest = u @ u[seeds[0]]
    while len(seeds) < k:
        seeds.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, u @ u[seeds[-1]])
    r = F.one_hot((u @ u[seeds].T).argmax(-1), k).to(u)
    return _maximised(r, u, settings)


def _maximised(
    r: Float[Tensor, "t k"], u: Float[Tensor, "t d"], settings: AnchorSettings
) -> Mixture:
    """The M step of given responsibilities, from scratch."""
    mass, resultant = r.sum(0).double(), (r.T @ u).double()
    start = concentration(u.shape[-1], resultant.norm(dim=-1) / (mass + 1))
    return _from_sums(mass, resultant, start, settings)


def _from_sums(mass: Tensor, resultant: Tensor, kappa: Tensor, settings: AnchorSettings) -> Mixture:
    """The M step: q(mu_k) given kappa_k, then kappa_k given q(mu_k); each raises the bound."""
    d, length = resultant.shape[-1], resultant.norm(dim=-1)
    beta = kappa * length
    agreement = mean_length(d, beta) * length / mass.clamp_min(1e-300)
    directions = resultant / length.clamp_min(1e-300)[:, None]
    return Mixture(settings.dirichlet + mass, directions, beta, concentration(d, agreement))


def _sweep(u: Tensor, mixture: Mixture, chunk: int = 1 << 15) -> tuple[float, Tensor, Tensor]:
    """The E step in one pass: sum of log evidence, mass and resultant of each anchor."""
    evidence, mass, resultant = 0.0, 0.0, 0.0
    offset, slope = mixture.affine(u)
    for part in u.split(chunk):
        logits = torch.addmm(offset, part, slope)
        top = logits.logsumexp(-1, keepdim=True)
        r = logits.sub_(top).exp_()
        evidence += top.sum(dtype=torch.float64).item()
        mass = mass + r.sum(0).double()
        resultant = resultant + (r.T @ part).double()
    return evidence, mass, resultant


def _ascend(u: Tensor, mixture: Mixture, settings: AnchorSettings) -> tuple[Mixture, list[float]]:
    """Alternate E and M steps until the bound gains less than the tolerance."""
    objective: list[float] = []
    for _ in range(settings.max_sweeps):
        evidence, mass, resultant = _sweep(u, mixture)
        objective.append((evidence - mixture.divergence(settings)) / len(u))
        if len(objective) > 1 and objective[-1] - objective[-2] < settings.tolerance:
            break
        mixture = _from_sums(mass, resultant, mixture.concentrations, settings)
    return mixture, objective


def _pruned(
    u: Tensor, mixture: Mixture, objective: list[float], settings: AnchorSettings
) -> Mixture:
    """Drop every anchor without which the bound is higher, lightest first.

    Tried only while tokens are few: with 64 an anchor and more, those in use pay for themselves.
    """
    if len(u) > min(1024, 64 * len(mixture.counts)):
        return mixture
    k = 0
    while k < len(mixture.counts) > 1:
        kept = mixture.counts.argsort()
        kept = kept[torch.arange(len(kept), device=kept.device) != k]
        fewer = Mixture(*(x[kept] for x in vars(mixture).values()))
        fewer, trace = _ascend(u, fewer, settings)
        if trace[-1] >= objective[-1]:
            mixture, objective, k = fewer, trace, 0
        else:
            k += 1
    return mixture


# Key frames.


def covering_frames(anchors: Anchors, n: int) -> list[int]:
    """The n frames whose anchors' summaries lie nearest to those of all frames, in order.

    An anchor of frame f costs its mass times the squared distance to the nearest summary of an
    anchor present in a chosen frame: D(S) with each anchor's tokens in a frame taken as one.
    """
    m, mass = anchors.summaries, anchors.mass
    present = mass > 1e-3 * mass.sum(-1, keepdim=True)
    gap = 2 - 2 * torch.einsum("fkd,sjd->fksj", m, m)
    cost = gap.masked_fill(~present, torch.inf).amin(-1).clamp_min(0)  # f k s
    return frames_by.cheapest_set(cost.flatten(0, 1), mass.flatten(), n)


def select_keyframes(
    features: Float[Tensor, "f n d"],
    n: int,
    method: str = "vala",
    generator: torch.Generator | None = None,
    settings: AnchorSettings = AnchorSettings(n_anchors=32),  # noqa: B008 - frozen
) -> list[int]:
    """n distinct frames of a clip, in order.

    method: vala (reads nothing but the anchors), uniform, random, first (the first n), kmeans (of
    whole frames), kmedoids (swaps on D), optimal (enumeration on D). Raises InputError.
    """
    u = unit_tokens(features)
    f = len(u)
    if not 1 <= n <= f:
        raise InputError(f"{n} key frames of {f}: choose from 1 to {f}.")
    if method not in KEYFRAME_METHODS:
        raise InputError(
            f"Unknown key frame method {method!r}: choose one of {', '.join(KEYFRAME_METHODS)}."
        )
    if method == "vala":
        return assign_anchors(u, replace(settings, n_keyframes=n), generator).keyframes
    if method == "random":
        return torch.randperm(f, generator=generator)[:n].sort().values.tolist()
    if method == "kmeans":
        return frames_by.kmeans_frames(u, n)
    if method in ("kmedoids", "optimal"):
        cost = frames_by.token_costs(u).flatten(0, 1)
        search = frames_by.local_set if method == "kmedoids" else frames_by.optimal_set
        return search(cost, torch.ones_like(cost[:, 0]), n)
    return list(range(n)) if method == "first" else frames_by.uniform_frames(f, n)


def propagation_distortion(features: Float[Tensor, "f n d"], keyframes: list[int]) -> float:
    """D(S) in [0, 4]; smaller is better, 0 when every frame is a key frame."""
    cost = frames_by.token_costs(unit_tokens(features)).flatten(0, 1)
    return frames_by.set_cost(cost, torch.ones_like(cost[:, 0]), keyframes)
