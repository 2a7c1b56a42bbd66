"""Errors along paths stay within their bounds, which come near where they can; norms are norms."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import SD_SCHEDULE

from vala_research import InputError
from vala_research.diffusion.bilateral_inversion import BilateralInversion, bilateral_sample
from vala_research.diffusion.ddpm_update import error_factor, update_levels
from vala_research.diffusion.inversion import invert
from vala_research.diffusion.schedule import Schedule, sample
from vala_research.evaluation.error_growth import (
    WAYS,
    follow,
    growth_rows,
    jacobian_norm,
    local_constants,
    network,
    perturbed,
    step_factors,
    study,
)
from vala_research.evaluation.gaussian_mixture import GaussianMixture

SCHEDULE = Schedule.from_scheduler(DDIMScheduler(**SD_SCHEDULE), 12)
FILTER = BilateralInversion(kernel_size=3, sigma_intensity=0.05, unit="absolute")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def mixture():
    mean = torch.randn(2, 5, 4, generator=generator(99), dtype=torch.float64)
    return GaussianMixture(1.5 * mean / mean.norm(), 0.5, SCHEDULE.alpha_bar)


def start(mixture, way, seed=0):
    if way == "inversion":
        return mixture.draw(1, generator(seed))
    return torch.randn(1, *mixture.mean.shape, generator=generator(seed), dtype=torch.float64)


def constants(mixture, way):
    found = [mixture.lipschitz(step.t) for step in SCHEDULE]
    return found[::-1] if way == "inversion" else found


def amplification(rows: list[dict]) -> dict[str, float]:
    """Error, product and paper of the last row, over the first error."""
    return {name: rows[-1][name] / rows[0]["error"] for name in ("error", "product", "paper")}


# The mixture.


def test_the_mixture_is_the_score_of_its_density(mixture):
    for t in (1, 500, 999):
        a, v = SCHEDULE.alpha_bar[t], mixture.variance(t)
        z = start(mixture, "ddim", t).requires_grad_()
        logs = [-(z - s * math.sqrt(a) * mixture.mean).square().sum() / (2 * v) for s in (-1, 1)]
        (score,) = torch.autograd.grad(torch.logsumexp(torch.stack(logs), 0), z)
        assert torch.allclose(mixture(z, t), -math.sqrt(1 - a) * score, atol=1e-12)


def test_its_lipschitz_constant_is_exact(mixture):
    for t in (1, 100, 500, 999):
        bound, best = mixture.lipschitz(t), 0.0
        for scale in (0.0, 0.1, 1.0, 30.0):
            z = scale * start(mixture, "ddim", t)
            best = max(best, jacobian_norm(lambda x, t=t: mixture(x, t), z, generator(), 200)[0])
        assert 0.999 * bound < best <= bound * (1 + 1e-12)
    with pytest.raises(InputError, match="deviation is 0"):
        GaussianMixture(mixture.mean, 0.0, SCHEDULE.alpha_bar)


def test_draws_are_of_both_kinds(mixture):
    drawn = mixture.draw(400, generator(1))
    side = (drawn * mixture.mean).sum((1, 2, 3)) / mixture.mean.square().sum()
    assert 150 < int((side > 0).sum()) < 250
    assert drawn.std().item() == pytest.approx(
        math.sqrt(0.25 + mixture.mean.square().mean().item()), rel=0.05
    )


def test_jacobian_norm_is_the_largest_singular_value():
    m = torch.randn(6, 6, generator=generator(2), dtype=torch.float64)
    run = lambda x: torch.sin(x @ m)  # noqa: E731
    z = torch.randn(6, generator=generator(3), dtype=torch.float64)
    norm, v = jacobian_norm(run, z, generator(), 500, tolerance=1e-12)
    whole = torch.func.jacrev(run)(z)
    assert norm == pytest.approx(torch.linalg.matrix_norm(whole, ord=2).item(), rel=1e-6)
    assert (whole @ v).norm().item() == pytest.approx(norm, rel=1e-6)


# Paths.


@pytest.mark.parametrize("settings", [None, FILTER])
def test_paths_are_those_of_the_library(mixture, settings):
    z, clean = start(mixture, "ddim"), start(mixture, "inversion")
    if settings is None:
        expected = {"ddim": sample(mixture, z, SCHEDULE)}
    else:
        expected = {"ddim": bilateral_sample(mixture, z, SCHEDULE, settings)}
    found = invert(mixture, clean, SCHEDULE, settings or "ddim")
    expected["inversion"] = found.latents
    for way, end in expected.items():
        path = follow(mixture, clean if way == "inversion" else z, SCHEDULE, way, settings)
        assert torch.equal(path.latents[-1], end) and len(path.latents) == len(SCHEDULE) + 1
        steps = SCHEDULE.timesteps[::-1] if way == "inversion" else SCHEDULE.timesteps
        assert tuple(t for _, t in path.asked) == steps
        assert all((b > 0) == (settings is not None) for b in path.biases)


def test_factors_are_attained_by_linear_networks():
    for way in WAYS:
        sign = 1 if way == "inversion" else -1
        predict = lambda z, t, sign=sign: sign * 0.8 * z  # noqa: E731
        z = torch.randn(1, 1, 3, 3, generator=generator(), dtype=torch.float64)
        factors = step_factors(SCHEDULE, way, [0.8] * len(SCHEDULE))
        path, other = (follow(predict, x, SCHEDULE, way) for x in (z, 1.01 * z))
        rows = growth_rows(path, other, SCHEDULE, way, [0.8] * len(SCHEDULE))
        for row in rows:
            assert row["error"] == pytest.approx(row["product"], rel=1e-9)
        assert amplification(rows)["error"] == pytest.approx(math.prod(factors), rel=1e-9)
        assert rows[-1]["paper"] > rows[-1]["error"] * (1 - 1e-9)
    expected = [error_factor(a, b, 0.8) for a, b, _ in update_levels(SCHEDULE)]
    assert step_factors(SCHEDULE, "update", [0.8] * len(SCHEDULE)) == expected


@pytest.mark.parametrize("settings", [None, FILTER])
@pytest.mark.parametrize("way", WAYS)
def test_errors_of_the_mixture_keep_their_bounds(mixture, way, settings):
    """From exact constants: a theorem, whatever the size of the error."""
    for seed, size, n_iterations in ((0, 1e-3, 0), (1, 0.5, 0), (2, 1e-2, 20)):
        z = start(mixture, way, seed)
        moved = perturbed(mixture, z, SCHEDULE, way, generator(seed), size, n_iterations)
        assert (moved - z).norm().item() == pytest.approx(size)
        path = follow(mixture, z, SCHEDULE, way)
        other = follow(mixture, moved, SCHEDULE, way, settings)
        rows = growth_rows(path, other, SCHEDULE, way, constants(mixture, way))
        assert all(row["error"] <= row["product"] * (1 + 1e-9) for row in rows)
        if settings is not None and size < 0.01:  # the paper's bound does not know the filter
            assert rows[1]["error"] > rows[1]["paper"]


def test_inversion_comes_near_its_bound_and_denoising_does_not(mixture):
    """A denoiser's eps grows with z, the worst case of inversion: 0.9 of its bound is exceeded."""
    z = start(mixture, "inversion")
    path = follow(mixture, z, SCHEDULE, "inversion")
    local = local_constants(mixture, path, SCHEDULE, generator(), 50)
    exact = constants(mixture, "inversion")
    assert all(a <= b * (1 + 1e-9) for a, b in zip(local, exact, strict=True))
    moved = perturbed(mixture, z, SCHEDULE, "inversion", generator(), 1e-3, 20)
    other = follow(mixture, moved, SCHEDULE, "inversion")
    grown = amplification(growth_rows(path, other, SCHEDULE, "inversion", local))
    assert 0.9 * grown["product"] < grown["error"] < 1.01 * grown["product"]
    z = start(mixture, "ddim")
    path = follow(mixture, z, SCHEDULE)
    local = local_constants(mixture, path, SCHEDULE, generator(), 50)
    moved = perturbed(mixture, z, SCHEDULE, "ddim", generator(), 1e-3, 20)
    other = follow(mixture, moved, SCHEDULE)
    grown = amplification(growth_rows(path, other, SCHEDULE, "ddim", local))
    assert grown["error"] < 0.1 * grown["product"] < 0.01 * grown["paper"]


def test_the_worst_direction_grows_more_than_a_random_one(mixture):
    """From between both kinds of images, where a step along their difference decides."""
    z, m, ends = start(mixture, "ddim"), mixture.mean, {}
    z = z - (z * m).sum() / m.square().sum() * m
    path = follow(mixture, z, SCHEDULE)
    for n in (0, 20):
        moved = perturbed(mixture, z, SCHEDULE, "ddim", generator(7), 1e-4, n)
        end = follow(mixture, moved, SCHEDULE).latents[-1]
        ends[n] = float((end - path.latents[-1]).norm())
    assert ends[20] > 2 * ends[0]


def test_a_unet_along_its_path(tiny):
    """Attention has derivatives in both modes here, and errors keep to local constants."""
    predict = network(tiny, "a red circle moves")
    z = torch.randn(1, 4, 4, 4, generator=generator())
    schedule = Schedule.from_scheduler(tiny.scheduler, 2)
    with torch.no_grad():
        path = follow(predict, z, schedule)
    local = local_constants(predict, path, schedule, generator(), 30)
    whole = torch.func.jacrev(lambda x: predict(x, schedule.timesteps[0]))(z).reshape(64, 64)
    exact = torch.linalg.matrix_norm(whole, ord=2).item()
    assert 0.9 * exact < local[0] <= exact * (1 + 1e-4)
    with torch.no_grad():
        other = follow(predict, perturbed(predict, z, schedule, "ddim", generator()), schedule)
    rows = growth_rows(path, other, schedule, "ddim", local)
    assert all(row["error"] <= 1.05 * row["product"] for row in rows)


def test_a_study_holds_what_its_parts_give(mixture):
    z, clean = start(mixture, "ddim"), start(mixture, "inversion")
    rows = study(mixture, z, clean, SCHEDULE, generator(1), mixture.lipschitz, 3, FILTER)
    assert len(rows) == 2 * 3 * (len(SCHEDULE) + 1) and not any(row["is_local"] for row in rows)
    assert all(row["error"] <= row["product"] * (1 + 1e-9) for row in rows)
    assert {row["start"] for row in rows} == {"random", "worst", "filtered"}
    plain = study(mixture, z, clean, SCHEDULE, generator(1), None, 3)
    assert {row["start"] for row in plain} == {"random", "worst"}
    assert all(row["is_local"] for row in plain)
    local = next(row for row in plain if row["way"] == "ddim")["lipschitz"]
    assert local <= mixture.lipschitz(SCHEDULE.timesteps[0]) * (1 + 1e-9)


def test_an_unknown_way_gets_one_sentence(mixture):
    with pytest.raises(InputError, match="Unknown way 'sde': choose one of ddim, update"):
        follow(mixture, start(mixture, "ddim"), SCHEDULE, "sde")
