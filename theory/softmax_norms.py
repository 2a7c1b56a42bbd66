"""Softmax halves differences; its rows are distributions, and not small: L_softmax, C.13.

GE-Adapter (arXiv 2501.04606), appendix C.3. Proofs: theory/README.md, C1 and C2.
"""

from functools import partial
from math import sqrt

import torch
from torch import Tensor

from theory.attack import Points, attack
from theory.attention import Comparison, Head, fro, two
from theory.verdict import ROUNDING, Counterexample, Verdict, statement
from vala_research import InputError

SIZES = ((1, 5), (6, 2), (3, 3), (2, 5))  # queries, tokens
RESOLVED = 1e8 * torch.finfo(torch.float64).eps  # such a difference is accurate to 1e-8


@statement("L_softmax")
def lipschitz_constant(
    seed: int = 0, n_steps: int = 400, sizes: tuple[int, ...] = (2, 3, 6)
) -> Verdict:
    """Third condition of Theorem C.10: "the Lipschitz constant of softmax satisfies L <= sqrt d".

    Verdict: vacuous. It always holds: L <= 1/2 < 1 <= sqrt d.

    True: ||softmax a - softmax b||_2 <= 1/2 ||a - b||_2 for any number of tokens >= 2, and the
    total variation of softmax a and softmax b is <= tanh(osc(a - b) / 4), osc being max - min.

    Proof: J = diag(p) - pp' is 0 on constants, and v'Jv = Var_p(v) <= (max v - min v)^2 / 4
    <= ||v||^2 / 2 (Popoviciu). The second part: theory/README.md, C1.

    seed, n_steps: settings of the attacks. sizes: numbers of tokens, each at least 2.
    Returns the largest quotient.
    """
    if min(sizes) < 2:
        raise InputError(f"Softmax of {min(sizes)} tokens is constant: give 2 or more.")

    def draw(g: torch.Generator, n_tokens: int) -> Points:
        a, step = torch.randn(2, 32, n_tokens, generator=g, dtype=torch.float64)
        return a, step * 10 ** torch.linspace(-3, 1, 32, dtype=torch.float64)[:, None]

    def quotient(a: Tensor, step: Tensor) -> Tensor:
        moved = ((a + step).softmax(-1) - a.softmax(-1)).norm(dim=-1)
        return torch.where(moved > RESOLVED, moved / step.norm(dim=-1), 0.0)

    def variation(a: Tensor, step: Tensor) -> Tensor:
        moved = ((a + step).softmax(-1) - a.softmax(-1)).abs().sum(-1) / 2
        return torch.where(moved > RESOLVED, moved / variation_bound(step), 0.0)

    # Attack both bounds at every number of tokens.
    lipschitz, total = (
        [attack(f, partial(draw, n_tokens=n), seed, n_steps, lr=0.3) for n in sizes]
        for f in (quotient, variation)
    )
    worst = max(lipschitz, key=lambda attacked: attacked.value)
    a, step = worst.point
    return Verdict(
        statement="L_softmax", verdict="vacuous",
        claim="L_softmax <= sqrt(d) is a condition",
        corrected="L_softmax = 1/2 for any number of tokens >= 2; TV <= tanh(osc / 4)",
        measured=worst.value, bound=float(softmax_bound(torch.ones(1))),
        witness={"a": a, "b": a + step},
        hypotheses={
            "1/2 is attained at every number of tokens": all(f.value > 0.499 for f in lipschitz),
            "TV <= tanh(osc / 4) holds and is attained": attained(total),
        },
        least_tightness=0.999, n_searched=sum(f.n_searched for f in lipschitz + total),
    )  # fmt: skip


def softmax_bound(step: Tensor) -> Tensor:
    """||step|| / 2, a bound of ||softmax(a + step) - softmax a||: C1."""
    return step.norm(dim=-1) / 2


def variation_bound(step: Tensor) -> Tensor:
    """tanh(osc(step) / 4), a bound of the total variation of both softmaxes: C1."""
    return ((step.amax(-1) - step.amin(-1)) / 4).tanh()


@statement("C.13")
def attention_norm(seed: int = 0, n_steps: int = 200) -> Verdict:
    """Lemma C.13, Eqs. (112), (113): ||P||_F <= 1, so ||term B||_F <= ||W_V||_2 ||dZ||_F.

    Verdict: false, and (113) is false for every input with more queries than tokens.

    True: sqrt(n_q / n_tok) <= ||P||_2 <= sqrt(max column sum of P) <= sqrt(n_q), hence
    ||term B||_F <= ||P||_2 ||W_V||_2 ||dZ||_F; row by row, the constant is 1.

    Proof: ||P 1|| = sqrt(n_q) and ||1|| = sqrt(n_tok) give the first inequality. The others follow
    from ||P||_2^2 <= ||P||_1 ||P||_inf, whose second factor is 1. Equal rows 1/n_tok attain the
    first two. Rows that all choose one token attain the last two.

    seed, n_steps: settings of the attacks over logits.
    Returns the largest ||P||_2 / sqrt(max column sum).
    """
    # Attack each of the three inequalities.
    upper = [attack(filled, starts(*size), seed, n_steps) for size in SIZES]
    lower = [attack(spread, starts(*size), seed, n_steps) for size in SIZES]
    whole = [attack(chosen, starts(*size), seed, n_steps, lr=0.5) for size in SIZES]
    best = max(upper, key=lambda attacked: attacked.value)

    # Counterexample: four queries, two tokens, both moved by 1.
    one = torch.ones(1, 1, dtype=torch.float64)
    head, z = Head(one, one, one), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    x = torch.arange(4.0, dtype=torch.float64)[:, None]
    broken = Comparison(head, x, x, z + 1, z)
    return Verdict(
        statement="C.13", verdict="false",
        claim="|P|_F <= 1, |term B|_F <= |W_V| |dZ|_F",
        corrected="sqrt(n_q / n_tok) <= |P| <= sqrt(max column sum) <= sqrt(n_q); |term B|_F <= "
        "|P| |W_V| |dZ|_F",
        measured=best.value, bound=1.0,
        witness={"logits": best.point[0]},
        hypotheses={
            "sqrt(n_q / n_tok) <= |P| holds and is attained": attained(lower),
            "|P| <= sqrt(n_q) holds and is attained": attained(whole),
            "row by row the constant is 1": rows_shrink(seed),
        },
        counterexample=Counterexample(
            "d = 1, n_q = 4, n_tok = 2, any queries, both tokens moved by 1",
            float(fro(broken.term_b)), float(two(head.w_v) * fro(z + 1 - z)),
        ),
        least_tightness=0.999, n_searched=sum(f.n_searched for f in upper + lower + whole),
    )  # fmt: skip


def starts(m: int, n_tokens: int, n: int = 24):
    """Draw logits n m n_tokens."""
    return lambda g: (3 * torch.randn(n, m, n_tokens, generator=g, dtype=torch.float64),)


def filled(logits: Tensor) -> Tensor:
    """||P||_2 / sqrt(max column sum)."""
    p = logits.softmax(-1)
    return two(p) / p.sum(-2).amax(-1).sqrt()


def spread(logits: Tensor) -> Tensor:
    """sqrt(n_q / n_tok) / ||P||_2."""
    return sqrt(logits.shape[-2] / logits.shape[-1]) / two(logits.softmax(-1))


def chosen(logits: Tensor) -> Tensor:
    """||P||_2 / sqrt(n_q)."""
    return two(logits.softmax(-1)) / sqrt(logits.shape[-2])


def attained(attacks: list) -> bool:
    """Whether every attack attains its bound and none exceeds it."""
    return all(0.999 <= attacked.value <= 1 + ROUNDING for attacked in attacks)


def rows_shrink(seed: int, n: int = 1000) -> bool:
    """Whether no row of P dZ is longer than the longest row of dZ."""
    g = torch.Generator().manual_seed(seed)
    p = (3 * torch.randn(n, 6, 3, generator=g, dtype=torch.float64)).softmax(-1)
    dz = torch.randn(n, 3, 2, generator=g, dtype=torch.float64)
    longest = dz.norm(dim=-1).amax(-1)
    return bool(((p @ dz).norm(dim=-1).amax(-1) <= longest * (1 + ROUNDING)).all())
