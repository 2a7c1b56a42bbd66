"""Tokens that can be learnt reach some ideals only: C.15.

GE-Adapter's theory (arXiv 2504.16016) C.3; the tokens are `methods.prompt_tokens`. Proof:
theory/README.md, C6.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from theory.attack import Points, attack
from theory.attention import Head, fro
from theory.verdict import Counterexample, Verdict, statement
from vala_research import InputError
from vala_research.methods.prompt_tokens import PromptTokens, pooled_tokens


def least_distance(
    h: Float[Tensor, "n c"], z_u: Float[Tensor, "n_ideal d"], has_bias: bool = False
) -> Float[Tensor, ""]:
    """||(I - H H^+) Z_u*||_F: what no linear map of the image tokens H can come closer to Z_u*.

    has_bias: H has a column of ones besides, as PyTorch's Linear, which the paper names in (14).
    """
    if len(h) != len(z_u):
        raise InputError(f"{len(h)} image tokens meet {len(z_u)} ideal ones: give as many.")
    if has_bias:
        h = torch.cat([h, h.new_ones(len(h), 1)], 1)
    return fro(z_u - h @ (torch.linalg.pinv(h) @ z_u))


def distances(
    d: int = 4, most: int = 12, n_draws: int = 64, has_bias: bool = False, seed: int = 0
) -> list[dict]:
    """Rows of n_unshared, distance, bias: root mean square over random image tokens and ideals."""
    g, rows = torch.Generator().manual_seed(seed), []
    for n in range(1, most + 1):
        drawn = torch.randn(n_draws, 2, n, d, generator=g, dtype=torch.float64)
        squares = [least_distance(h, z, has_bias) ** 2 for h, z in drawn]
        rms = float(torch.stack(squares).mean().sqrt())
        rows.append({"n_unshared": n, "distance": rms, "bias": has_bias})
    return rows


@statement("C.15")
def token_sufficiency(seed: int = 0, n_steps: int = 800, d: int = 4, n_u: int = 10) -> Verdict:
    """Corollary C.15: if N_s, N_u >= d, tokens span R^d, so dZ -> 0 by optimisation.

    Verdict: false. To span R^d is not to be any Z*; and for frame tokens more is worse.

    True, with T_share and W free, the image tokens H and the text C(Z) given:
    min ||dZ||_F^2 = ||(I - H H^+) Z_u*||_F^2 + ||C(Z) - Z_c*||_F^2. The first term is zero for
    every Z_u* iff rank H = N_u, which needs N_u <= d (d + 1 where W has a bias). Nor is dZ -> 0
    necessary: permuted tokens give the same output.

    Proof: T_share meets its part; a least-squares fit per column leaves the part of Z_u* that is
    orthogonal to the columns of H, which has rank <= d; the text moves with no parameter.

    seed, n_steps: of the attack, over T_share, W and its bias, from 16 starts. d, n_u: sizes, n_u
    beyond d + 1. Returns the largest (closed form / distance that the attack reached).
    """
    if n_u <= d + 1:
        raise InputError(f"{n_u} tokens of width {d} can meet every ideal: take {d + 2} or more.")
    g = torch.Generator().manual_seed(seed)
    vision, text = (torch.randn(1, n, d, generator=g, dtype=torch.float64) for n in (2 * n_u, 3))
    ideal = torch.randn(1, d + n_u + 3, d, generator=g, dtype=torch.float64)
    module = PromptTokens(d, d, d, generator=g).double()
    image, z_u = pooled_tokens(vision)[0], ideal[0, d:-3]
    least = (least_distance(image, z_u, True) ** 2 + fro(text - ideal[:, -3:])[0] ** 2).sqrt()

    def reached(shared: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        parts = {"shared": shared, "projection.weight": weight, "projection.bias": bias}
        return fro(torch.func.functional_call(module, parts, (vision, text)) - ideal)[0]

    def draw(g: torch.Generator) -> Points:
        shapes = ((d, d), (d, d), (d,))
        return tuple(torch.randn(16, *s, generator=g, dtype=torch.float64) for s in shapes)

    found = attack(lambda *p: least / torch.func.vmap(reached)(*p), draw, seed, n_steps)
    h, z_u = torch.ones(2, 1).double(), torch.tensor([[1.0], [-1.0]]).double()
    return Verdict(
        "C.15", "N_s, N_u >= d: dZ -> 0", "false",
        "min |dZ|_F^2 = |(I - HH^+) Z_u*|_F^2 + |C(Z) - Z_c*|_F^2; all ideals iff rank H = N_u",
        found.value * float(least), float(least),
        witness=dict(zip(("shared", "weight", "bias"), found.point, strict=True)),
        hypotheses={
            "no distance is left while N_u <= d": ranks_suffice(d, seed),
            "equal image tokens have rank 1 whatever their number": bool(
                least_distance(torch.ones(3, d).double(), torch.eye(3, d).double()) > 1
            ),
            "permuted tokens are far, their output is the same": permutes(seed),
        },
        counterexample=Counterexample(
            "d = 1, N_s = N_u = 2, image tokens (1, 1), ideal (1, -1)",
            float(least_distance(h, z_u)), 0.0,
        ),
        least_tightness=0.999, n_searched=found.n_searched,
    )  # fmt: skip


def ranks_suffice(d: int, seed: int) -> bool:
    g = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(2, n, d, generator=g, dtype=torch.float64) for n in range(1, d + 1)]
    return all(float(least_distance(h, z)) < 1e-9 for h, z in drawn)


def permutes(seed: int, d: int = 4) -> bool:
    """A rotation of the tokens by one place: ||dZ|| > 1, and outputs equal to rounding."""
    g = torch.Generator().manual_seed(seed)
    head = Head(*torch.randn(3, d, d, generator=g, dtype=torch.float64))
    x, z = (torch.randn(n, d, generator=g, dtype=torch.float64) for n in (3, 2 * d))
    moved = z.roll(1, 0)
    return float(fro(moved - z)) > 1 and float(fro(head(x, moved) - head(x, z))) < 1e-12
