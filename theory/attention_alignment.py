"""Bound the difference of attention outputs by queries and by tokens: C.10, C.11, C.12, C.14.

GE-Adapter (arXiv 2501.04606), appendix C.3. Proofs: theory/README.md, C1 to C5.
"""

from math import sqrt

import torch
from torch import Tensor

from theory.attention import Comparison, Head, fro, ideal_output, row, two
from theory.attention_search import SIZES, as_drawn, draw, search, solves_it, solving
from theory.verdict import ROUNDING, Counterexample, Verdict, statement


@statement("C.10")
def alignment(seed: int = 0, n_steps: int = 200) -> Verdict:
    """Theorem C.10, Eq. (84): ||X~ - X*||_F <= gamma ||Z - Z*||_F.

    Verdict: false. Equal tokens give equal outputs only for equal queries, and X_t is not X*.

    True, for any X_t, Z, Z*, weights and X*, with Pi = I - 11'/n_tok, P of (X_t, Z):
    ||X~ - X*||_F <= ||Pi V*||_2 / (2 sqrt d) [||Pi K* W_Q'||_2 ||X_t - X*||_F
        + ||X_t W_Q W_K'||_2 ||Z - Z*||_F] + ||P||_2 ||W_V||_2 ||Z - Z*||_F.   (F)
    No assumption is needed on the weights, the token counts or the existence of X* (Brouwer).

    Proof: theory/README.md, C3; X*: C4.

    seed, n_steps: settings of two attacks on solutions of (83), with any tokens and with Z = Z*.
    Returns the largest lhs / rhs.
    """

    def ratio(c: Comparison) -> Tensor:
        return torch.where(solves_it(c), fro(c.difference) / c.bound_f(), 0.0)

    # Attack with any tokens, and with equal tokens, where queries alone differ.
    differing = search(solving, ratio, seed, n_steps)
    alike = search(solving, ratio, seed, n_steps, dz_scale=0.0)
    worst = max(differing, alike, key=lambda attacked: attacked.value)
    broken, left = other_queries()
    return Verdict(
        statement="C.10", verdict="false",
        claim="|X~ - X*|_F <= gamma |dZ|_F",
        corrected="|X~ - X*|_F <= |Pi V*| / (2 sqrt d) (|Pi K* W_Q'| |X_t - X*|_F + |X_t W_Q W_K'| "
        "|dZ|_F) + |P| |W_V| |dZ|_F",
        measured=worst.value, bound=1.0,
        witness=worst.witness,
        hypotheses={
            "X* solves (83), delta >= |W_V| / 100 at the worst": bool(solves_it(worst.point)),
            "attained with equal tokens and with others": 0.98 <= min(differing.value, alike.value),
            "X* solves (83) in the counterexample": left < 1e-12,
            "iteration finds X* where (83) contracts": finds_ideals(seed),
        },
        counterexample=Counterexample(
            "d = n_q = 1, Z = Z* = (0, 1, 1), weights 1, X_t = 5",
            float(fro(broken.difference)), float(broken.bound_paper()),
        ),
        least_tightness=0.999, n_searched=differing.n_searched + alike.n_searched,
    )  # fmt: skip


@statement("C.11")
def decomposition(seed: int = 0, n: int = 1000) -> Verdict:
    """Lemma C.11, Eq. (86): X~ - X* = (P - P*) V* + P dZ W_V.

    Verdict: holds. It is an identity (add and subtract P V*). So is the logits' difference in the
    first term, of which the paper then drops a part:
    A - B = [(X_t - X*) W_Q K*' + X_t W_Q W_K' dZ'] / sqrt d.

    Proof: theory/README.md, C3; symbolically in the test.

    seed, n: seed and number of random cases.
    Returns the largest error of both identities, relative to their summands.
    """
    g = torch.Generator().manual_seed(seed)
    *_, dz = points = draw(g, SIZES[1], n)
    c = as_drawn(*points)
    h = c.head

    # (86), then the identity of the logits: A - B against its split.
    outputs = fro(c.term_a + c.term_b - c.difference) / (fro(c.term_a) + fro(c.term_b))
    a, b = (q @ h.w_q @ (t @ h.w_k).mT for q, t in ((c.x, c.z), (c.x_ideal, c.z_ideal)))
    split = (c.x - c.x_ideal) @ h.w_q @ (c.z_ideal @ h.w_k).mT + c.x @ h.w_q @ h.w_k.mT @ dz.mT
    logits = fro(a - b - split) / (fro(a) + fro(b))
    worst = float(torch.maximum(outputs, logits).max())
    return Verdict(
        statement="C.11", verdict="holds",
        claim="X~ - X* = (P - P*) V* + P dZ W_V",
        corrected="as stated; in P - P*, logits differ by [(X_t - X*) W_Q K*' + X_t W_Q W_K' dZ'] "
        "/ sqrt d",
        measured=worst, bound=0.0,
        hypotheses={"no case is degenerate": bool((fro(c.term_a) > 1e-9).all())},
        n_searched=n,
    )  # fmt: skip


@statement("C.12")
def weights_differ(seed: int = 0, n_steps: int = 200) -> Verdict:
    """Lemma C.12, Eq. (98): ||term A||_F <= L_softmax ||W_Q|| ||W_K|| ||V*|| ||dZ||_F.

    Verdict: holds with hypotheses that its proof states: ||X_t||_F <= sqrt d (111), and equal
    queries, Q* = X_t W_Q (103), where (83) has X* W_Q. Then (98) follows, with L_softmax = 1/2. As
    written it fails: (110) has a factor ||X_t||_F / sqrt d, which (98) drops.

    True: ||(P - P*) V*||_F <= ||Pi V*||_2 / (2 sqrt d)
        [||Pi K* W_Q'||_2 ||X_t - X*||_F + ||X_t W_Q W_K'||_2 ||dZ||_F].

    Proof: theory/README.md, C3.

    seed, n_steps: settings of the attack. Returns the largest lhs / rhs.
    """

    def ratio(c: Comparison) -> Tensor:
        return fro(c.term_a) / c.bound_a()

    def claimed_ratio(c: Comparison) -> Tensor:
        h, x = c.head, c.x / fro(c.x)[..., None, None] * sqrt(c.head.w_q.shape[-1])
        c = Comparison(h, x, x, c.z, c.z_ideal)  # the paper's two hypotheses
        claimed = two(h.w_q) * two(h.w_k) * two(c.z_ideal @ h.w_v) * fro(c.z - c.z_ideal) / 2
        return fro(c.term_a) / claimed

    worst = search(as_drawn, ratio, seed, n_steps)
    kind = search(as_drawn, claimed_ratio, seed, n_steps // 4)

    # Counterexample: one long query, tokens that move along it.
    e1, e2 = torch.eye(2, dtype=torch.float64)
    z_ideal, x = torch.stack([e2, -e2, e2, -e2]), 1000 * e1[None]
    dz = 1e-3 * torch.stack([e1, -e1, e1, -e1])
    broken = Comparison(Head(*torch.eye(2).double().expand(3, 2, 2)), x, x, z_ideal + dz, z_ideal)
    claimed = sqrt(2) * float(two(z_ideal) * fro(dz))  # the weights are 1, L_softmax = sqrt d
    return Verdict(
        statement="C.12", verdict="holds with hypothesis",
        claim="|term A|_F <= L_softmax |W_Q| |W_K| |V*| |dZ|_F",
        corrected="|term A|_F <= |Pi V*| / (2 sqrt d) (|Pi K* W_Q'| |X_t - X*|_F + |X_t W_Q W_K'| "
        "|dZ|_F)",
        measured=worst.value, bound=1.0,
        witness=worst.witness,
        hypotheses={"(98) holds with (103) and (111), L_softmax = 1/2": kind.value <= 1 + ROUNDING},
        counterexample=Counterexample(
            "Z* = +-e2 twice, dZ = +-e1 / 1000, X_t = (1000, 0), weights I",
            float(fro(broken.term_a)), claimed,
        ),
        least_tightness=0.99, n_searched=worst.n_searched,
    )  # fmt: skip


@statement("C.14")
def combined(seed: int = 0, n_steps: int = 200) -> Verdict:
    """Lemma C.14, Eqs. (117), (118): gamma = L_softmax ||W_K|| ||W_V|| / delta, the rest absorbed.

    Verdict: false. delta appears nowhere in the derivation: when W_V and delta grow together, term
    B grows but gamma does not. ||W_Q||, ||Z*|| and the 1 of term B are not constants either.

    True for any number of queries, with every factor kept. Norms are largest norms of a row, and
    diam is the diameter of V*'s rows:
    ||X~ - X*||_row <= diam / (2 sqrt d) [||K* W_Q'||_row ||X_t - X*||_row
        + ||X_t||_row ||W_Q W_K'||_2 ||dZ||_row] + ||W_V||_2 ||dZ||_row.   (R)

    Proof: theory/README.md, C5.

    seed, n_steps: settings of the attacks. Returns the largest lhs / rhs.
    """

    def ratio(c: Comparison) -> Tensor:
        return row(c.difference) / c.bound_r()

    differing = search(as_drawn, ratio, seed, n_steps)
    alike = search(as_drawn, ratio, seed, n_steps, dz_scale=0.0)
    worst = max(differing, alike, key=lambda attacked: attacked.value)

    # Counterexample: small keys, so that outputs are nearly means of the moved tokens.
    eye = torch.eye(2, dtype=torch.float64)
    head, z_ideal = Head(eye, 1e-3 * eye, eye), torch.stack([*eye, *-eye, eye[0], eye[1]])
    x_ideal, left = ideal_output(head, z_ideal, 1)
    broken = Comparison(head, x_ideal, x_ideal, z_ideal + 0.1, z_ideal)
    return Verdict(
        statement="C.14", verdict="false",
        claim="gamma = L_softmax |W_K| |W_V| / delta",
        corrected="|X~ - X*|_row <= diam / (2 sqrt d) (|K* W_Q'|_row |X_t - X*|_row + |X_t|_row "
        "|W_Q W_K'| |dZ|_row) + |W_V| |dZ|_row",
        measured=worst.value, bound=1.0,
        witness=worst.witness,
        hypotheses={
            "attained with equal tokens and with others": 0.98 <= min(differing.value, alike.value),
            "X* solves (83) in the counterexample": left < 1e-12,
        },
        counterexample=Counterexample(
            "d = 2, n_q = 1, n_tok = 6, W_K = I / 1000, W_Q = W_V = I, X_t = X*, dZ = .1",
            float(fro(broken.difference)), float(broken.bound_paper()),
        ),
        least_tightness=0.999, n_searched=differing.n_searched + alike.n_searched,
    )  # fmt: skip


def finds_ideals(seed: int, n: int = 64) -> bool:
    """Iteration solves (83), as Brouwer promises, for random heads whose right side contracts."""
    _, m, _ = SIZES[1]
    w_q, w_k, w_v, _, _, z, _ = draw(torch.Generator().manual_seed(seed), SIZES[1], n)
    rate = Head(w_q, w_k, w_v).contraction(z)
    shrunk = Head(w_q, w_k * (0.9 / rate)[:, None, None], w_v)  # its rate is 0.9
    return ideal_output(shrunk, z, m)[1] < 1e-12


def other_queries() -> tuple[Comparison, float]:
    """Counterexample of C.10: equal tokens, X_t = 5 away from X*; and the residual of (83)."""
    z, one = torch.tensor([[0.0], [1.0], [1.0]]).double(), torch.ones(1, 1).double()
    head = Head(one, one, one)
    x_ideal, left = ideal_output(head, z, 1)
    return Comparison(head, 5 * one, x_ideal, z, z), left
