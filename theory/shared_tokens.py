"""Learnt tokens reach some ideal tokens, not all: C.15.

GE-Adapter (arXiv 2501.04606), appendix C.3; the tokens are `methods.prompt_tokens`. Proof:
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
    """Least distance of a linear map of the image tokens H from Z_u*: ||(I - H H^+) Z_u*||_F.

    has_bias: H has a column of ones too, as for PyTorch's Linear, which the paper names in (14).
    """
    if len(h) != len(z_u):
        raise InputError(f"{len(h)} image tokens, but {len(z_u)} ideal tokens: give as many.")
    if has_bias:
        h = torch.cat([h, h.new_ones(len(h), 1)], 1)
    return fro(z_u - h @ (torch.linalg.pinv(h) @ z_u))


def distances(
    d: int = 4, most: int = 12, n_draws: int = 64, has_bias: bool = False, seed: int = 0
) -> list[dict]:
    """Rows (n_unshared, distance, bias): distances are RMS over random image tokens and ideals."""
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

    Verdict: false. Tokens that span R^d need not equal Z*. For frame tokens, more is worse.

    True, where T_share and W are free, and the image tokens H and the text C(Z) are given:
    min ||dZ||_F^2 = ||(I - H H^+) Z_u*||_F^2 + ||C(Z) - Z_c*||_F^2. The first term is zero for
    every Z_u* iff rank H = N_u, which needs N_u <= d (d + 1 where W has a bias). dZ -> 0 is not
    necessary either: permuted tokens give the same output.

    Proof: T_share meets its part. A least-squares fit per column leaves the part of Z_u* that is
    orthogonal to the columns of H, whose rank is <= d. No parameter moves the text.

    seed, n_steps: settings of the attack over T_share, W and its bias, from 16 starts.
    d, n_u: sizes, n_u > d + 1.
    Returns the largest (closed form / distance that the attack reached).
    """
    if n_u <= d + 1:
        raise InputError(f"{n_u} tokens of width {d} can meet every ideal: take {d + 2} or more.")

    # Image tokens, text and an ideal at random, and the closed form of the least distance.
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

    closest = attack(lambda *p: least / torch.func.vmap(reached)(*p), draw, seed, n_steps)
    h, z_u = torch.ones(2, 1).double(), torch.tensor([[1.0], [-1.0]]).double()
    return Verdict(
        statement="C.15", verdict="false",
        claim="N_s, N_u >= d: dZ -> 0",
        corrected="min |dZ|_F^2 = |(I - H_sub H_sub^+) Z_u*|_F^2 + |text - ideal text|_F^2; all "
        "ideals are reached iff rank H_sub = N_u",
        measured=closest.value * float(least), bound=float(least),
        witness=dict(zip(("shared", "weight", "bias"), closest.point, strict=True)),
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
        least_tightness=0.999, n_searched=closest.n_searched,
    )  # fmt: skip


def ranks_suffice(d: int, seed: int) -> bool:
    """Whether random image tokens, at most d, reach every ideal."""
    g = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(2, n, d, generator=g, dtype=torch.float64) for n in range(1, d + 1)]
    return all(float(least_distance(h, z)) < 1e-9 for h, z in drawn)


def permutes(seed: int, d: int = 4) -> bool:
    """Whether rotating the tokens by one place gives ||dZ|| > 1 but equal outputs, to rounding."""
    g = torch.Generator().manual_seed(seed)
    head = Head(*torch.randn(3, d, d, generator=g, dtype=torch.float64))
    x, z = (torch.randn(n, d, generator=g, dtype=torch.float64) for n in (3, 2 * d))
    moved = z.roll(1, 0)
    return float(fro(moved - z)) > 1 and float(fro(head(x, moved) - head(x, z))) < 1e-12
