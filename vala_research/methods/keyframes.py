"""Key frames are good when every token of the clip has a close relative in one of them.

D(S) = mean over frames f, tokens i of min over s in S, tokens j of |u_{f,i} - u_{s,j}|^2.
This is the loss when features of edited key frames are propagated to the other frames. TokenFlow
(Geyer et al. 2023, 4.1) copies the features of nearest neighbours in this way.
"""

import math
from collections.abc import Sequence
from itertools import combinations, islice, product

import torch
from jaxtyping import Float
from torch import Tensor

from vala_research import InputError

MAX_ENUMERATED = 20_000


def unit_tokens(features: Float[Tensor, "f n d"]) -> Float[Tensor, "f n d"]:
    """Divide every token by its length. Half precision is raised to float32."""
    if features.ndim != 3 or 0 in features.shape:
        raise InputError(
            f"features have shape {tuple(features.shape)}: give frames x tokens x channels, "
            "none of them zero."
        )
    x = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    length = x.norm(dim=-1, keepdim=True)  # not finite where a channel is not
    if not ((length > 0) & length.isfinite()).all():  # one question, whatever the device
        if not torch.isfinite(length).all():
            raise InputError(
                "features hold NaN or infinity (or lengths beyond 1e19): check the step before."
            )
        raise InputError(
            f"{int((length == 0).sum())} feature tokens are zero and have no direction: "
            "leave them out, or add a constant channel."
        )
    return x / length


def token_costs(
    u: Float[Tensor, "f n d"], frames: Sequence[int] | None = None
) -> Float[Tensor, "f n s"]:
    """Squared distance of every unit token to the nearest token of each of these frames (all)."""
    frames = range(len(u)) if frames is None else frames
    cost = u.new_zeros(*u.shape[:2], len(frames))
    for g, (i, s) in product(range(len(u)), enumerate(frames)):
        if g != s:
            cost[g, :, i] = 2 - 2 * (u[g] @ u[s].T).amax(-1)
    return cost.clamp_min_(0)


def set_cost(cost: Float[Tensor, "m s"], weight: Float[Tensor, " m"], chosen: list[int]) -> float:
    """Weighted mean over rows of the least cost among the chosen columns."""
    return float((cost[:, chosen].amin(-1) * weight).sum() / weight.sum())


def propagation_distortion(features: Float[Tensor, "f n d"], keyframes: list[int]) -> float:
    """D(S) of these key frames, in [0, 4]; smaller is better, 0 when every frame is a key frame."""
    cost = token_costs(unit_tokens(features), keyframes).flatten(0, 1)
    return set_cost(cost, torch.ones_like(cost[:, 0]), list(range(len(keyframes))))


def optimal_set(cost: Float[Tensor, "m s"], weight: Float[Tensor, " m"], n: int) -> list[int]:
    """Find the cheapest n columns by enumeration. Raises InputError beyond 20,000 sets."""
    n_frames = cost.shape[-1]
    if math.comb(n_frames, n) > MAX_ENUMERATED:
        raise InputError(
            f"{math.comb(n_frames, n)} sets of {n} of {n_frames} frames are too many to enumerate "
            f"(at most {MAX_ENUMERATED}): choose fewer frames or the method kmedoids."
        )

    # Transposed: a set is then a few rows, and its minimum runs over these.
    by_frame, best = cost.T.contiguous(), (math.inf, [])
    sets = combinations(range(n_frames), n)
    while part := list(islice(sets, 64)):
        costs = torch.stack([by_frame[list(s)].amin(0) @ weight for s in part])
        value, i = costs.min(0)
        if value < best[0]:
            best = (float(value), list(part[int(i)]))
    return best[1]


def local_set(cost: Float[Tensor, "m s"], weight: Float[Tensor, " m"], n: int) -> list[int]:
    """Find n columns greedily, then swap while that helps (Kaufman and Rousseeuw 1990, PAM)."""
    # Greedy choice: add the column that lowers the cost most.
    columns: list[int] = []
    nearest = torch.full_like(weight, torch.inf)
    while len(columns) < n:
        with_each = torch.minimum(cost, nearest[:, None]).T @ weight
        with_each[columns] = torch.inf
        columns.append(int(with_each.argmin()))
        nearest = torch.minimum(nearest, cost[:, columns[-1]])

    # Swaps: replace one column by the best other one, until no swap lowers the cost.
    best, improved = float(nearest @ weight), True
    while improved:
        improved = False
        for i in range(n):
            rest = columns[:i] + columns[i + 1 :]
            others = cost[:, rest].amin(-1) if rest else torch.full_like(weight, torch.inf)
            with_each = torch.minimum(cost, others[:, None]).T @ weight
            with_each[rest] = torch.inf
            j = int(with_each.argmin())
            if with_each[j] < best * (1 - 1e-6):
                columns, best, improved = [*rest, j], float(with_each[j]), True
                break
    return sorted(columns)


def cheapest_set(cost: Float[Tensor, "m s"], weight: Float[Tensor, " m"], n: int) -> list[int]:
    """Find the optimal set where enumeration is quick, otherwise a local optimum."""
    few = math.comb(cost.shape[-1], n) * len(weight) <= 1 << 22
    return optimal_set(cost, weight, n) if few else local_set(cost, weight, n)


def served_frames(features: Float[Tensor, "f n d"], keyframes: Sequence[int]) -> list[list[int]]:
    """Part a clip among its key frames: a frame goes to the one in which its loss of D(S) is least.

    Returns the numbers of the frames for each key frame, which is one of them itself.
    """
    losses = token_costs(unit_tokens(features), keyframes).mean(1)
    losses[list(keyframes), range(len(keyframes))] = -1.0  # below every loss
    nearest = losses.argmin(-1).tolist()
    return [[f for f, k in enumerate(nearest) if k == i] for i in range(len(keyframes))]


def uniform_frames(n_frames: int, n: int) -> list[int]:
    """The middles of n equal parts."""
    return [(2 * i + 1) * n_frames // (2 * n) for i in range(n)]


def kmeans_frames(u: Float[Tensor, "f n d"], n: int, seed: int = 0) -> list[int]:
    """The frames nearest to the centres of k-means over whole frames."""
    from sklearn.cluster import KMeans

    x = u.flatten(1).cpu().double().numpy()
    distance = torch.from_numpy(KMeans(n, n_init=4, random_state=seed).fit(x).transform(x))
    frames: list[int] = []
    for k in range(n):
        distance[frames, k] = torch.inf
        frames.append(int(distance[:, k].argmin()))
    return sorted(frames)
