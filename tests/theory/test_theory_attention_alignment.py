"""C.10 to C.15 and L_softmax: repaired bounds hold under attack and are attained; claims break."""

import dataclasses
import math
from functools import partial

import pytest
import sympy
import torch

from theory.attention import Comparison, Head, centred, diameter, fro, ideal_output, row, two
from theory.attention_alignment import alignment, combined, decomposition, weights_differ
from theory.attention_search import SIZES, as_drawn, draw, random_ratios, search, solves_it, solving
from theory.shared_tokens import distances, least_distance, token_sufficiency
from theory.softmax_norms import attention_norm, lipschitz_constant
from theory.verdict import ROUNDING, Verdict
from vala_research import InputError
from vala_research.methods.prompt_tokens import PromptTokens, pooled_tokens

SEED = 5  # the table's is 0
ATTACKS = (alignment, weights_differ, combined)
CHECKS = (
    *(partial(check, n_steps=60) for check in ATTACKS), partial(attention_norm, n_steps=100),
    partial(token_sufficiency, n_steps=200), decomposition, lipschitz_constant,
)  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, Verdict]:
    """Every verdict of the group, searched from another seed than the table's.

    A third of the table's steps attain most bounds, and see one that lacks a factor (below).
    """
    return {v.statement: v for v in (check(seed=SEED) for check in CHECKS)}


NAMES = ["C.10", "C.11", "C.12", "C.13", "C.14", "C.15", "L_softmax"]


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_holds_under_attack_and_is_attained(found, name):
    v = found[name]
    assert v.reproduced, v.as_row()
    assert v.n_searched >= 1000
    if v.bound:  # C.11 is an identity
        assert 0.999 <= v.tightness <= 1 + ROUNDING


@pytest.mark.parametrize("name", [n for n in NAMES if n != "C.11"])
def test_a_mutated_bound_is_caught(found, name):
    v = found[name]
    assert not dataclasses.replace(v, bound=0.9 * v.measured).reproduced


def test_a_broken_identity_is_caught(found):
    assert not dataclasses.replace(found["C.11"], measured=1e-9).reproduced


@pytest.mark.parametrize(
    "name, lhs, rhs",
    [
        ("C.10", 0.177, 0.0),
        ("C.12", 0.609, 0.00566),
        ("C.13", 2.0, math.sqrt(2)),
        ("C.14", 0.1414, 0.00049),
        ("C.15", math.sqrt(2), 0.0),
    ],
)
def test_the_claim_as_written_breaks(found, name, lhs, rhs):
    c = found[name].counterexample
    verdict = "holds with hypothesis" if name == "C.12" else "false"
    assert found[name].verdict == verdict and c.breaks
    assert c.lhs == pytest.approx(lhs, rel=5e-3) and c.rhs == pytest.approx(rhs, rel=5e-3)
    repaired = dataclasses.replace(found[name], counterexample=dataclasses.replace(c, rhs=c.lhs))
    assert not repaired.reproduced  # a claim that holds at the point is no counterexample


def test_the_attack_sees_a_bound_that_lacks_a_factor():
    """Without ||X_t|| in term A, or with 0.45 for 1/2, (F) is broken within a few steps."""

    def without_queries(c: Comparison) -> torch.Tensor:
        h = c.head
        moved = two(centred(c.z_ideal @ h.w_k @ h.w_q.mT)) * fro(c.x - c.x_ideal)
        moved = moved + two(h.w_q @ h.w_k.mT) * fro(c.z - c.z_ideal)
        return fro(c.term_a) / (two(centred(c.z_ideal @ h.w_v)) * moved / 2)

    assert search(as_drawn, without_queries, SEED, 60).value > 1.5
    less = search(as_drawn, lambda c: fro(c.term_a) / (0.9 * c.bound_a()), SEED, 60)
    assert less.value > 1.05


def test_both_bounds_hold_at_random_and_the_papers_does_not():
    ratios = {name: torch.tensor(r) for name, r in random_ratios(4000, SEED).items()}
    assert len(ratios["F"]) > 3000
    assert ratios["F"].max() <= 1 + ROUNDING and ratios["R"].max() <= 1 + ROUNDING
    assert (ratios["paper"] > 1).float().mean() > 0.1


def test_the_searched_points_solve_83():
    c = solving(*draw(torch.Generator().manual_seed(SEED), SIZES[1], 500))
    assert solves_it(c).float().mean() > 0.7
    away = dataclasses.replace(c, x_ideal=c.x_ideal + 1e-3)
    assert not solves_it(away).any()


def test_wide_layers_keep_their_bounds():
    """Real layers have other widths for queries, tokens and heads than the paper's square ones."""
    g = torch.Generator().manual_seed(SEED)
    shapes = ((12, 4), (9, 4), (9, 4), (30, 12), (30, 12), (7, 9), (7, 9))
    w_q, w_k, w_v, x, y, z, z_ideal = (torch.randn(s, generator=g).double() for s in shapes)
    c = Comparison(Head(w_q, w_k, w_v), x, y, z, z_ideal)
    assert fro(c.difference) <= c.bound_f() and row(c.difference) <= c.bound_r()
    assert fro(c.term_a) <= c.bound_a()
    assert diameter(z) == pytest.approx(float(torch.cdist(z, z).max()))
    with pytest.raises(InputError, match="wide"):
        Head(w_q, w_k, w_v).weights(z, x)


def test_ideal_outputs_exist_where_the_iteration_contracts():
    x, left = ideal_output(Head(*torch.eye(2).double().expand(3, 2, 2)), torch.eye(2).double(), 3)
    assert left < 1e-12 and torch.allclose(x, torch.full((3, 2), 0.5, dtype=torch.float64))


def test_softmax_symbolically():
    """Rows of its Jacobian sum to 0, v'Jv is a variance, and two tokens attain 1/2 at a tie."""
    a = sympy.symbols("a1:5", real=True)
    total = sum(sympy.exp(x) for x in a)
    p = [sympy.exp(x) / total for x in a]
    jacobian = sympy.Matrix(p).jacobian(a)
    assert sympy.simplify(jacobian * sympy.ones(4, 1)) == sympy.zeros(4, 1)
    assert sympy.simplify(sympy.ones(1, 4) * jacobian) == sympy.zeros(1, 4)
    v = sympy.Matrix(sympy.symbols("v1:5", real=True))
    mean = sum(q * w for q, w in zip(p, v, strict=True))
    variance = sum(q * w**2 for q, w in zip(p, v, strict=True)) - mean**2
    assert sympy.simplify((v.T * jacobian * v)[0] - variance) == 0

    x, q = sympy.symbols("x q", real=True)
    of_two = sympy.Matrix([[q - q**2, -q * (1 - q)], [-q * (1 - q), q - q**2]])
    eigenvalues = of_two.eigenvals()
    assert set(map(sympy.expand, eigenvalues)) == {0, sympy.expand(2 * q * (1 - q))}
    assert (
        sympy.simplify(sympy.Rational(1, 2) - 2 * q * (1 - q) - 2 * (q - sympy.Rational(1, 2)) ** 2)
        == 0
    )
    # Two tokens whose logits move by +-x / 2 from a tie of -x / 2: TV is tanh(x / 4).
    sigma = 1 / (1 + sympy.exp(-x))
    moved = sigma.subs(x, x / 2) - sigma.subs(x, -x / 2)
    assert sympy.simplify((moved - sympy.tanh(x / 4)).rewrite(sympy.exp)) == 0


def test_the_decomposition_symbolically():
    """(86) with its weights as free matrices, and the split of the logits' difference."""
    m, n, d = sympy.symbols("m n d", integer=True, positive=True)
    p, q = sympy.MatrixSymbol("P", m, n), sympy.MatrixSymbol("Pi", m, n)
    z, y, w = (sympy.MatrixSymbol(*a) for a in (("Z", n, d), ("Y", n, d), ("W", d, d)))
    terms = (p - q) * y * w + p * (z - y) * w
    assert (terms - p * z * w + q * y * w).expand().doit() == sympy.ZeroMatrix(m, d)
    x, i, a = (sympy.MatrixSymbol(*s) for s in (("X", m, d), ("I_", m, d), ("A", d, d)))
    split = (x - i) * a * y.T + x * a * (z - y).T
    assert (split - x * a * z.T + i * a * y.T).expand().doit() == sympy.ZeroMatrix(m, n)


@pytest.mark.parametrize("m, n", [(64, 32), (256, 32), (4096, 77)])
def test_attention_of_an_image_is_not_of_norm_one(m, n):
    """||P||_2 >= sqrt(M / L_tok), 7.29 for Stable Diffusion's largest layers."""
    g = torch.Generator().manual_seed(SEED)
    p = torch.randn(m, n, generator=g, dtype=torch.float64).softmax(-1)
    assert math.sqrt(m / n) <= two(p) <= p.sum(0).max().sqrt() <= math.sqrt(m)
    assert two(p) > 1.4


def test_the_fit_of_the_librarys_tokens_is_the_closed_form():
    """PromptTokens, set to the least-squares fit, is as near as stated; a step away is farther."""
    g = torch.Generator().manual_seed(SEED)
    d, n_u = 4, 10
    vision, ideal = (
        torch.randn(n, d, generator=g, dtype=torch.float64) for n in (2 * n_u, n_u + 3)
    )
    module = PromptTokens(3, d, d, generator=g).double()
    h = pooled_tokens(vision[None])[0]
    fit = torch.linalg.lstsq(torch.cat([h, torch.ones(n_u, 1).double()], 1), ideal[3:]).solution
    with torch.no_grad():
        module.shared.copy_(ideal[:3])
        module.projection.weight.copy_(fit[:d].T)
        module.projection.bias.copy_(fit[d])
        at_fit = fro(module.prefix(vision[None])[0] - ideal)
        module.projection.weight += 1e-3
        away = fro(module.prefix(vision[None])[0] - ideal)
    assert float(at_fit) == pytest.approx(float(least_distance(h, ideal[3:], True)), rel=1e-12)
    assert away > at_fit


def test_the_distance_starts_at_the_width():
    """Zero up to N_u = d (d + 1 with a bias), then sqrt((N_u - d) d) in mean square."""
    for has_bias, free in ((False, 4), (True, 5)):
        rows = distances(4, 12, 200, has_bias, SEED)
        for r in rows:
            expected = math.sqrt(max(0, r["n_unshared"] - free) * 4)
            assert r["distance"] == pytest.approx(expected, rel=0.1, abs=1e-9)
    with pytest.raises(InputError, match="as many"):
        least_distance(torch.ones(3, 2).double(), torch.ones(4, 2).double())
    with pytest.raises(InputError, match="6 or more"):
        token_sufficiency(n_u=5)
    with pytest.raises(InputError, match="2 or more"):
        lipschitz_constant(sizes=(1,))
