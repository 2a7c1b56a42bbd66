"""Describe a clip by a few anchor directions; the frames that cover them are its key frames.

VALA (Wu et al. 2025, arXiv 2510.22970) assigns the latents of many frames to latent anchors, by a
variational objective with a contrastive term. The anchors choose key frames and compress what
frames attend to. The paper gives no coefficients. Here the assignment is the posterior of a mixture
of von Mises-Fisher distributions with learnt concentrations. There is no temperature to tune, and
the scale of a feature does not matter.

    u = x / |x|,  p(u) = sum_k pi_k C_d(kappa_k) exp(kappa_k mu_k . u),  pi ~ Dirichlet(a0),
    mu_k uniform on the sphere;  q(pi) Dirichlet, q(mu_k) von Mises-Fisher, kappa_k a point

Source: Taghia et al. 2014, Bayesian estimation of the von Mises-Fisher mixture model with
variational inference; here with a point estimate for kappa. The cost of an anchor,
KL(q(mu_k) | uniform), decides how many anchors are worth having.

Differs from paper: closed-form coordinate ascent replaces a network trained to assign. The network
(one attention head over frames) only refines the posterior, on request.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError, chosen_from
from vala_research.methods import keyframes as frames_by
from vala_research.methods.contrastive import frame_summaries, refined
from vala_research.methods.keyframes import propagation_distortion as propagation_distortion
from vala_research.methods.keyframes import unit_tokens
from vala_research.methods.mixture import Mixture, ascend, fitted, maximised, posterior

GRANULARITIES = ("site", "token")
FULL_SWEEPS = 1  # over all tokens, once a coreset has found the anchors
CORE_FRAMES = 128  # of a coreset, at most
NEAREST = 0.3  # share of an anchor's spread that a nearest token keeps; tuned on validation clips
KEYFRAME_METHODS = ("vala", "uniform", "random", "first", "kmeans", "kmedoids", "optimal")


@dataclass(frozen=True)
class AnchorSettings:
    """How anchors are found, and what they compress to.

    n_anchors: upper bound; anchors that do not pay for their cost are dropped.
    dirichlet: a0, the prior of the weights.
    contrastive_weight, refinement_steps: lambda_c and the Adam steps of the refinement; 0 steps
        are plain variational Bayes.
    granularity: "site" (an anchor is a pseudo-frame) or "token" (an anchor is one token).
    n_keyframes: None is one key frame per anchor in use.
    max_sweeps, tolerance: sweeps stop when one gains less, in nats per token.
    coreset: a clip of more tokens is first fitted to this many of them, at ten times the tolerance,
        then by one sweep over all tokens. 0: every sweep is over all tokens.
    """

    n_anchors: int = 8
    dirichlet: float = 0.1
    contrastive_weight: float = 0.1
    refinement_steps: int = 0
    granularity: str = "site"
    n_keyframes: int | None = None
    max_sweeps: int = 50
    tolerance: float = 1e-4
    coreset: int = 2048

    def __post_init__(self):
        for name, least in (("n_anchors", 1), ("refinement_steps", 0), ("max_sweeps", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}: give at least {least}.")
        if not self.dirichlet > 0:
            raise InputError(f"dirichlet is {self.dirichlet}: give a positive number.")
        chosen_from("granularity", self.granularity, GRANULARITIES)


@dataclass(frozen=True)
class Anchors:
    """The anchors of one clip, heaviest first.

    summaries: mean direction of each anchor's tokens in each frame.
    objective: the bound after each sweep over all tokens, in nats per token; larger is better.
    granularity: what the anchors compress to.
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
        """Number of tokens of each frame that each anchor explains."""
        return self.responsibilities.sum(1)

    def of_frames(self, frames: slice | list[int]) -> "Anchors":
        """The same anchors in some frames of the clip, without key frames."""
        r, m = self.responsibilities[frames], self.summaries[frames]
        return replace(self, responsibilities=r, summaries=m, keyframes=[])

    @property
    def n_effective(self) -> int:
        """Number of anchors that explain at least half a token and a thousandth of the clip."""
        mass = self.mass.sum(0)
        return int((mass >= max(0.5, 1e-3 * mass.sum().item())).sum())

    @property
    def entropy(self) -> Float[Tensor, "f n"]:
        """Entropy of each token's posterior in nats: where the assignment is uncertain."""
        return torch.special.entr(self.responsibilities).sum(-1)


def assign_anchors(
    features: Float[Tensor, "f n d"],
    settings: AnchorSettings = AnchorSettings(),
    generator: torch.Generator | None = None,
) -> Anchors:
    """Fit the anchors of one clip of f frames with n tokens each.

    The same features give the same anchors. The fit runs on the CPU: it is short, asks for many
    single numbers, and needs float64, which not every device has. Features of another device are
    fetched once, and the anchors are put beside them.
    generator: initialises the refinement, nothing else.
    Raises InputError for NaN, infinite or zero tokens, and for an empty clip.
    """
    u = unit_tokens(features.cpu())
    mixture, logits, r, objective = _fitted_to_clip(u, settings)

    # Refine the posterior by the contrastive term; then repeat the M step and the order.
    if settings.refinement_steps and settings.contrastive_weight and len(u) > 1:
        r = refined(u, logits, mixture.concentrations,
                    settings.contrastive_weight, settings.refinement_steps, generator)  # fmt: skip
        mixture = maximised(r.flatten(0, 1).T, u.flatten(0, 1), settings.dirichlet)
        order = mixture.counts.argsort(descending=True)
        r, mixture = r[..., order], mixture[order]

    anchors = Anchors(
        r,
        mixture.directions.to(u),
        mixture.concentrations.to(u),
        (mixture.counts / mixture.counts.sum()).to(u),
        frame_summaries(u, r),
        objective,
        granularity=settings.granularity,
    )
    n_keyframes = min(len(u), settings.n_keyframes or anchors.n_effective)
    keyframes = covering_frames(anchors, n_keyframes)
    moved = {k: x.to(features.device) for k, x in vars(anchors).items() if isinstance(x, Tensor)}
    return replace(anchors, keyframes=keyframes, **moved)


def _fitted_to_clip(
    u: Float[Tensor, "f n d"], settings: AnchorSettings
) -> tuple[Mixture, Float[Tensor, "f n k"], Float[Tensor, "f n k"], list[float]]:
    """The mixture (heaviest anchor first), every token's logits and posterior, the objective."""
    f, n = u.shape[:2]
    tokens, a0, tolerance = u.flatten(0, 1), settings.dirichlet, settings.tolerance

    # Sweeps over a coreset find and prune the anchors: the same sites of every frame, or, of a long
    # clip, of evenly spread frames.
    n_sites = min(n, max(1, settings.coreset // min(f, CORE_FRAMES))) if settings.coreset else n
    sites = torch.linspace(0, n - 1, n_sites, device=u.device).round().long()
    step = math.ceil(f / CORE_FRAMES) if settings.coreset else 1
    core = u[::step, sites].flatten(0, 1)
    is_core = len(core) < len(tokens)
    accuracy = tolerance * (10 if is_core else 1)
    mixture, objective = fitted(core, settings.n_anchors, a0, settings.max_sweeps, accuracy)

    # Sweeps over all tokens finish them. Counts of the coreset are first scaled to all tokens.
    if is_core:
        scaled = a0 + (mixture.counts - a0) * len(tokens) / len(core)
        mixture, objective = ascend(tokens, replace(mixture, counts=scaled), FULL_SWEEPS, tolerance)

    # The posterior of every token; after a coreset its evidence completes the objective.
    mixture = mixture[mixture.counts.argsort(descending=True)]
    logits = mixture.logits(tokens)
    evidence, r = posterior(logits)
    if is_core:
        objective.append((evidence - mixture.divergence()) / len(tokens))
    logits, r = (x.unflatten(1, (f, n)).permute(1, 2, 0) for x in (logits, r))
    return mixture, logits, r, objective


def covering_frames(anchors: Anchors, n: int) -> list[int]:
    """Choose the n frames whose anchor summaries lie nearest to those of all frames, in order.

    Cost of replacing frame f by frame s. For each anchor: its mass in f, times (a) the squared
    distance to the nearest summary in s plus (b) a floor for the anchor's spread, (d - 1) / kappa,
    which shrinks as s holds more of its tokens. Replacing a frame by itself costs nothing.
    This is D(S) of `keyframes` with each anchor's tokens in a frame taken as one.
    """
    m, mass = anchors.summaries, anchors.mass
    present = mass > 1e-3 * mass.sum(-1, keepdim=True)
    rows, own = m[present], present.nonzero()[:, 0]

    # The floor: the part of an anchor's spread that the nearest of its tokens in s keeps.
    dimension = max(1, m.shape[-1] - 1)
    spread = NEAREST * dimension / anchors.concentrations
    floor = spread * mass.clamp_min(1).pow(-2 / dimension)

    # One row per anchor and frame in which it is present, one column per candidate frame s.
    cost = rows.new_zeros(len(rows), len(m))
    for s, there in enumerate(present):
        gap = (2 - 2 * rows @ m[s, there].T).clamp_min_(0) + floor[s, there]
        cost[:, s] = gap.amin(-1).masked_fill(own == s, 0)
    return frames_by.cheapest_set(cost, mass[present], n)


def select_keyframes(
    features: Float[Tensor, "f n d"],
    n: int,
    method: str = "vala",
    generator: torch.Generator | None = None,
    settings: AnchorSettings = AnchorSettings(256, max_sweeps=5, coreset=4096),
) -> list[int]:
    """Choose n distinct frames of a clip, in order.

    method: vala (reads the anchors alone), uniform, random, first (the first n), kmeans (of
    whole frames), kmedoids (swaps on D), optimal (enumeration on D).
    generator: of "random", and of the refinement of "vala"; of any device.
    Raises InputError.
    """
    # Only the cost of every token in every frame is much work: all else runs on the CPU.
    has_costs = method in ("kmedoids", "optimal")
    u = unit_tokens(features if has_costs else features.cpu())
    f = len(u)
    if not 1 <= n <= f:
        raise InputError(f"{n} key frames of {f}: choose from 1 to {f}.")
    chosen_from("key frame method", method, KEYFRAME_METHODS)
    if method == "vala":
        return assign_anchors(u, replace(settings, n_keyframes=n), generator).keyframes
    if method == "random":
        device = "cpu" if generator is None else generator.device
        order = torch.randperm(f, generator=generator, device=device)
        return order[:n].sort().values.tolist()
    if method == "kmeans":
        return frames_by.kmeans_frames(u, n)
    if has_costs:
        cost = frames_by.token_costs(u).flatten(0, 1).cpu()
        search = frames_by.local_set if method == "kmedoids" else frames_by.optimal_set
        return search(cost, torch.ones_like(cost[:, 0]), n)
    return list(range(n)) if method == "first" else frames_by.uniform_frames(f, n)
