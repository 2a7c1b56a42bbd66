"""The normaliser against mpmath, the concentration against its definition."""

import mpmath
import pytest
import torch

from vala_research.methods.von_mises_fisher import (
    MAX_CONCENTRATION,
    concentration,
    log_normaliser,
    log_uniform,
    mean_length,
)

KAPPA = torch.logspace(-3, 4, 8, dtype=torch.float64)


def reference(d: int, kappa: float) -> tuple[float, float]:
    """log C_d and A_d in 50 digits."""
    with mpmath.workdps(50):
        k, nu = mpmath.mpf(kappa), mpmath.mpf(d) / 2 - 1
        bessel = mpmath.besseli(nu, k)
        log_c = nu * mpmath.log(k) - mpmath.mpf(d) / 2 * mpmath.log(2 * mpmath.pi)
        return float(log_c - mpmath.log(bessel)), float(mpmath.besseli(nu + 1, k) / bessel)


@pytest.mark.parametrize("d", [2, 3, 4, 17, 64, 320, 1280])
def test_normaliser_and_mean_length_match_mpmath(d):
    """Relative error 1e-9, the stated one; another dimension's value is far outside it."""
    found = zip(KAPPA, log_normaliser(d, KAPPA), mean_length(d, KAPPA), strict=True)
    for kappa, log_c, length in found:
        expected, expected_length = reference(d, float(kappa))
        assert log_c.item() == pytest.approx(expected, rel=1e-9, abs=2e-9)
        assert length.item() == pytest.approx(expected_length, rel=1e-9)
        assert log_c.item() != pytest.approx(reference(d + 1, float(kappa))[0], rel=1e-4)


def test_zero_concentration_is_the_uniform_distribution_on_the_sphere():
    area = 4 * torch.pi  # of the sphere in three dimensions
    found = log_normaliser(3, torch.zeros(1))
    assert found.exp().item() * area == pytest.approx(1, rel=1e-8)
    for d in (2, 3, 64, 1280):
        assert log_uniform(d) == pytest.approx(log_normaliser(d, torch.zeros(1)).item(), rel=1e-9)
    assert mean_length(3, torch.zeros(1)).item() == 0


@pytest.mark.parametrize("d", [2, 8, 1280])
def test_concentration_inverts_the_mean_length(d):
    kappa = torch.logspace(-2, 4, 13, dtype=torch.float64)
    assert torch.allclose(concentration(d, mean_length(d, kappa)), kappa, rtol=1e-6)


def test_concentration_is_capped_where_tokens_are_identical():
    assert concentration(4, torch.ones(1)).item() == MAX_CONCENTRATION
    assert concentration(4, torch.zeros(1)).item() == 0


def test_normaliser_slope_is_minus_the_mean_length():
    step = 1e-4
    slope = (log_normaliser(16, KAPPA + step) - log_normaliser(16, KAPPA - step)) / (2 * step)
    assert torch.allclose(slope[3:], -mean_length(16, KAPPA)[3:], atol=1e-6)


@pytest.mark.parametrize("d", [2, 4, 16, 64])
def test_the_posterior_of_many_tokens_has_a_huge_concentration(d):
    """A mean direction of a million like tokens: kappa times their number, where scipy ends."""
    for kappa in (0.99e8, 1.01e8, 2e9, 7e9, 1e12):
        expected, expected_length = reference(d, kappa)
        one = torch.tensor([kappa], dtype=torch.float64)
        assert log_normaliser(d, one).item() == pytest.approx(expected, rel=1e-15)
        assert mean_length(d, one).item() == pytest.approx(expected_length, rel=1e-13)
